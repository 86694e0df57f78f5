"""From a recipe to a bundle: which stage must run, in what order, and where its files lie."""

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, Protocol, TypeVar, get_args, runtime_checkable

import numpy as np
from pydantic import BaseModel

import onnxq
from onnxq import plugins
from onnxq.artifacts import (
    BUNDLE_FILE,
    Bundle,
    CalibrationResult,
    ExportedModel,
    QuantizedModel,
    VerificationReport,
)
from onnxq.calibrate.resources import Resources, forget_pieces
from onnxq.errors import PluginError
from onnxq.handoff.origin import origin_of_recipe
from onnxq.lessons import facts_of_lessons, means_of
from onnxq.progress import Progress, silent
from onnxq.provenance import cpu_flags, versions
from onnxq.recipe import Recipe
from onnxq.recipe_samples import evaluation_of, samples_of
from onnxq.samples import Samples
from onnxq.store import Build, digest_of, load_record, sha256_of_file, sha256_of_source
from onnxq.target import Target, load_target
from onnxq.twins import Twin, bundles_of, make_twins, reports_of, twins_of

__all__ = ["STAGES", "Observer", "Outcome", "Stage", "run"]

Stage = Literal["export", "calibrate", "quantize", "verify", "handoff"]
_Record = TypeVar("_Record", bound=BaseModel)
STAGES: tuple[Stage, ...] = get_args(Stage)
_PACKAGE = Path(onnxq.__file__).parent

RECORDS: Mapping[Stage, str] = {
    "export": "export.json",
    "calibrate": "calibration.json",
    "quantize": "int8.json",
    "verify": "report.json",
    "handoff": BUNDLE_FILE,
}
FP32, EXPORTED, INT8 = "fp32.onnx", "exported.onnx", "int8.onnx"
PARTS, EQUALIZED = "parts", "equalized.onnx"
_STATES = ".finetune"  # of an unfinished training, in the build folder


@runtime_checkable
class Observer(Protocol):
    """Is told what the pipeline does; the shell prints it."""

    def stage_is_current(self, stage: Stage) -> None:
        """The stage's inputs have not changed since it was finished."""
        ...

    def stage_starts(self, stage: Stage) -> None:
        """The stage is about to run."""
        ...

    def stage_ends(self, stage: Stage, seconds: float) -> None:
        """The stage is finished and its files are in place."""
        ...


@dataclass(frozen=True)
class Outcome:
    """Records of the stages up to the last one that was asked for."""

    folder: Path
    exported: ExportedModel | None = None
    calibration: CalibrationResult | None = None
    quantized: QuantizedModel | None = None
    report: VerificationReport | None = None
    bundle: Bundle | None = None
    twin_reports: Mapping[str, VerificationReport] = field(default_factory=dict)
    twin_bundles: Mapping[str, Bundle] = field(default_factory=dict)


@dataclass(frozen=True)
class _Work:
    """What every stage needs to know of this run."""

    recipe: Recipe
    target: Target
    build: Build
    observer: Observer
    progress: Progress
    resources: Resources

    @property
    def search(self) -> Path:
        return self.recipe.python_path

    @cached_property
    def calibration_samples(self) -> Samples:
        return samples_of(self.recipe, self.recipe.data.calibration, self.progress)

    @cached_property
    def evaluation_samples(self) -> Samples:
        return evaluation_of(self.recipe, self.progress)

    @property
    def twins(self) -> tuple[Twin, ...]:
        return twins_of(self.path("quantize", INT8), self.target, self.recipe.quantize.also_for)

    @property
    def parts_facts(self) -> list[dict[str, object]]:
        """What a stage that cuts the graph depends on."""
        return [part.model_dump(mode="json") for part in self.recipe.parts]

    @property
    def equalized(self) -> Path | None:
        """The graph after the float steps, which is calibrated and quantized, if there are any."""
        return self.path("calibrate", EQUALIZED) if self.recipe.quantize.float_steps else None

    def path(self, stage: Stage, name: str) -> Path:
        return self.build.stage(stage) / name

    def record(self, stage: Stage) -> Path:
        return self.path(stage, RECORDS[stage])

    def run_stage(
        self, stage: Stage, facts: Mapping[str, object], write: Callable[[Path], object]
    ) -> None:
        """Run ``write`` unless the stage was finished from the same ``facts`` before."""
        made_by = {
            "code": _code_digest(stage),
            "packages": versions(),
            "target": self.target.model_dump(),
        }
        key = digest_of({**facts, **made_by})
        if self.build.is_current(stage, key):
            self.observer.stage_is_current(stage)
            return
        self.observer.stage_starts(stage)
        start = time.monotonic()
        self.build.write_stage(stage, key, write, RECORDS[stage])
        self.observer.stage_ends(stage, time.monotonic() - start)


def run(  # noqa: PLR0913 - one parameter for each thing that a person may ask for
    recipe: Recipe,
    folder: Path,
    observer: Observer,
    *,
    last: Stage = "handoff",
    again_from: Stage | None = None,
    resources: Resources | None = None,
    progress: Progress = silent,
) -> Outcome:
    """Run a recipe's stages up to ``last``, each only if what it is made from has changed.

    ``again_from`` names a stage that runs in any case, and with it all that follow. A bundle is
    made only of a model that passed. Raises whatever a stage raises; finished stages are kept.
    """
    target = load_target(recipe.target)
    steps: Mapping[Stage, Callable[[_Work, Outcome], Outcome]] = {
        "export": _export,
        "calibrate": _calibrate,
        "quantize": _quantize,
        "verify": _verify,
        "handoff": _hand_off,
    }
    with Build(folder) as build:
        given = replace(resources or Resources(), resume=None)
        work = _Work(recipe, target, build, observer, progress, given)
        if again_from is not None:
            for stage in STAGES[STAGES.index(again_from) :]:
                build.forget(stage)
        outcome = Outcome(folder=folder)
        for stage in STAGES[: STAGES.index(last) + 1]:
            if stage == "handoff" and outcome.report and outcome.report.verdict != "passed":
                break
            outcome = steps[stage](work, outcome)
    return outcome


def _export(work: _Work, outcome: Outcome) -> Outcome:
    section = work.recipe.export
    sources = plugins.source_files(section.network, work.search) if section.network else ()
    file = section.checkpoint or section.model
    facts = {
        "section": section.model_dump(mode="json", exclude={"checkpoint", "model"}),
        "parts": work.parts_facts,
        "file": sha256_of_file(file) if file and file.is_file() else None,
        "sources": sha256_of_source(*sources),
        "data": work.calibration_samples.digest,
    }

    def write(folder: Path) -> object:
        from onnxq.export.stage import export

        return export(
            section,
            folder,
            target=work.target,
            search=work.search,
            samples=work.calibration_samples,
            parts=work.recipe.parts,
            progress=work.progress,
        )

    work.run_stage("export", facts, write)
    exported = load_record(ExportedModel, work.record("export"))
    return replace(outcome, exported=exported)


def _calibrate(work: _Work, outcome: Outcome) -> Outcome:
    exported = _needed(outcome.exported)
    section = work.recipe.calibrate
    facts = {
        "section": section.model_dump(mode="json"),
        "model": exported.model.sha256,
        "domains": [v.model_dump(mode="json") for v in (*exported.inputs, *exported.outputs)],
        "exclude": [waiver.name for waiver in work.recipe.quantize.exclude],
        "float": [e.name for e in work.recipe.quantize.precision if e.weights == "float"],
        "float_steps": _float_steps_facts(work),
        "calibration": work.calibration_samples.digest,
        "evaluation": work.evaluation_samples.digest,
    }

    def write(folder: Path) -> object:
        from onnxq.calibrate.stage import Subject, calibrate
        from onnxq.equalized import cut_tensors, equalized_subject
        from onnxq.graph import load_graph
        from onnxq.quantize.precision import left_float

        _refuse_early(work, exported)
        graph = load_graph(work.path("export", FP32))
        subject = Subject(
            model=work.path("export", FP32),
            inputs=exported.inputs,
            outputs=exported.outputs,
            target=work.target,
            exclude=left_float(graph, work.recipe.quantize),
        )
        if work.recipe.quantize.float_steps:
            subject = equalized_subject(
                subject, work.calibration_samples, section, work.recipe.quantize.float_steps,
                folder, kept=cut_tensors(work.recipe.parts), progress=work.progress,
            )  # fmt: skip
        return calibrate(
            subject,
            work.calibration_samples,
            section,
            folder,
            evaluation=work.evaluation_samples,
            resources=work.resources,
            kept=work.build.stage("calibrate"),
            progress=work.progress,
        )

    work.run_stage("calibrate", facts, write)
    forget_pieces(work.build.stage("calibrate"))
    calibration = load_record(CalibrationResult, work.record("calibrate"))
    return replace(outcome, calibration=calibration)


def _float_steps_facts(work: _Work) -> list[object]:
    """What the graph after the float steps depends on beside the calibration's own facts."""
    names = work.recipe.quantize.float_steps
    if not names:
        return []
    code = sha256_of_source(_PACKAGE / "quantize" / "float_steps", _PACKAGE / "export")
    return [*sorted(names), work.parts_facts, code]


def _refuse_early(work: _Work, exported: ExportedModel) -> None:
    """Raise TargetRuleError for what no quantization can mend, before time is spent on it."""
    from onnxq.graph import load_model
    from onnxq.handoff.check import check, refuse_broken_rules
    from onnxq.quantize.precision import refuse_unsupported

    targets = (work.target, *(twin.target for twin in work.twins))
    refuse_unsupported(work.recipe.quantize, targets)
    files = [work.path("export", FP32)]
    if exported.parts is not None:
        files = [work.path("export", PARTS) / part.file.name for part in exported.parts.parts]
    for file in files:
        waivers = work.recipe.handoff.waive
        broken = check(load_model(file), work.target, waivers, file_name=file.name, phase="any")
        refuse_broken_rules(broken, work.target, f"{file.name} (FP32)")


def _quantize(work: _Work, outcome: Outcome) -> Outcome:
    calibration = _needed(outcome.calibration)
    section = work.recipe.quantize
    facts = {
        "section": section.model_dump(mode="json"),
        "parts": work.parts_facts,
        "calibration": _digest(calibration),
        "also_for": [twin.target.model_dump() for twin in work.twins],
        "lessons": facts_of_lessons(work.recipe, work.progress),
    }
    states = work.build.folder / _STATES

    def write(folder: Path) -> object:
        from onnxq.equalized import load_equalized
        from onnxq.quantize.precision import refuse_unsupported
        from onnxq.quantize.stage import quantize

        equalized = None
        if work.equalized is not None:
            equalized = load_equalized(work.equalized.parent, work.path("export", FP32))
        refuse_unsupported(section, [twin.target for twin in work.twins])
        samples = None
        if section.refining:
            chosen = np.array(calibration.choice.indices, np.int64)
            samples = work.calibration_samples.take(chosen)
        means = None
        if "finetune" in section.refining:
            exported, evaluation = _needed(outcome.exported), work.evaluation_samples
            means = means_of(work.recipe, exported, evaluation, states, work.progress)
        record = quantize(
            work.equalized or work.path("export", FP32), calibration, work.target, section,
            folder / INT8, work.recipe.parts, samples=samples, means=means, equalized=equalized,
            progress=work.progress,
        )  # fmt: skip
        twins = twins_of(folder / INT8, work.target, section.also_for)
        make_twins(twins, folder / INT8, work.calibration_samples)
        return record

    work.run_stage("quantize", facts, write)
    shutil.rmtree(states, ignore_errors=True)
    quantized = load_record(QuantizedModel, work.record("quantize"))
    return replace(outcome, quantized=quantized)


def _verify(work: _Work, outcome: Outcome) -> Outcome:
    exported, calibration = _needed(outcome.exported), _needed(outcome.calibration)
    quantized = _needed(outcome.quantized)
    section = work.recipe.verify
    facts = {
        "section": section.model_dump(mode="json"),
        "name": work.recipe.name,
        "task": sha256_of_source(*plugins.source_files(work.recipe.task, work.search)),
        "cpu": cpu_flags(),
        "records": [_digest(record) for record in (exported, calibration, quantized)],
        "data": work.evaluation_samples.digest,
    }

    def write(folder: Path) -> object:
        from onnxq.graph import load_model
        from onnxq.handoff.hazards import hazards
        from onnxq.verify.metrics import Task
        from onnxq.verify.stage import Evidence, verify

        task = plugins.call(work.recipe.task, {}, work.search)
        if not isinstance(task, Task):
            raise PluginError("does not return a Task", where=work.recipe.task)
        evidence = Evidence(
            name=work.recipe.name,
            fp32=work.path("export", EXPORTED),
            rewritten=work.path("export", FP32),
            int8=work.path("quantize", INT8),
            target=work.target,
            exported=exported,
            calibration=calibration,
            quantized=quantized,
            hazards=hazards(load_model(work.path("quantize", INT8)), work.target),
            equalized=work.equalized,
        )
        todo = {folder: evidence} | {
            folder / twin.target.slug: replace(
                evidence,
                int8=twin.model,
                target=twin.target,
                quantized=load_record(QuantizedModel, twin.record),
            )
            for twin in work.twins
        }
        for place, each in todo.items():
            place.mkdir(exist_ok=True)
            verify(each, task, work.evaluation_samples, section, place, progress=work.progress)
        return None

    work.run_stage("verify", facts, write)
    report = load_record(VerificationReport, work.record("verify"))
    twins = reports_of(work.twins, work.build.stage("verify"))
    return replace(outcome, report=report, twin_reports=twins)


def _hand_off(work: _Work, outcome: Outcome) -> Outcome:
    exported, quantized = _needed(outcome.exported), _needed(outcome.quantized)
    report = _needed(outcome.report)
    section = work.recipe.handoff
    origin = origin_of_recipe(work.recipe, work.calibration_samples, work.evaluation_samples)
    text = work.recipe.written.text
    facts = {
        "section": section.model_dump(mode="json"),
        "origin": [origin.model_dump(mode="json"), text],
        "report": sha256_of_source(work.build.stage("verify")),
    }

    def write(folder: Path) -> object:
        from onnxq.handoff.stage import hand_off

        hand = partial(
            hand_off,
            exported=exported,
            section=section,
            samples=work.evaluation_samples,
            origin=origin,
            recipe_text=text,
        )
        passed = [
            twin.target.slug
            for twin in work.twins
            if outcome.twin_reports[twin.target.name].verdict == "passed"
        ]
        hand(
            model=work.path("quantize", INT8),
            quantized=quantized,
            report=report,
            report_folder=work.build.stage("verify"),
            target=work.target,
            folder=folder,
            also=passed,
        )
        for twin in work.twins:
            judged = outcome.twin_reports[twin.target.name]
            if judged.verdict == "passed":
                hand(
                    model=twin.model,
                    quantized=load_record(QuantizedModel, twin.record),
                    report=judged,
                    report_folder=work.path("verify", twin.target.slug),
                    target=twin.target,
                    folder=folder / twin.target.slug,
                )
        return None

    work.run_stage("handoff", facts, write)
    bundle = load_record(Bundle, work.record("handoff"))
    twins = bundles_of(work.twins, work.build.stage("handoff"))
    return replace(outcome, bundle=bundle, twin_bundles=twins)


def _needed(record: _Record | None) -> _Record:
    """A record that the stage before has made."""
    if record is None:
        raise RuntimeError("stages run in order")
    return record


def _digest(record: BaseModel) -> str:
    return digest_of(record.model_dump(mode="json"))


def _code_digest(stage: Stage) -> str:
    """Digest of onnxq's own code that the stage runs through: its folder and the floors below."""
    return sha256_of_source(
        _PACKAGE / stage,
        _PACKAGE / "formats",
        _PACKAGE / "artifacts",
        _PACKAGE / "splitting",
        *sorted(_PACKAGE.glob("*.py")),
    )
