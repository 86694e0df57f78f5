"""Statistics and ranges of a plain ``.onnx``."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnxq.artifacts import CalibrationResult, ExportedModel
from onnxq.calibrate.merge import Part, merged_evidence
from onnxq.calibrate.resources import Resources, forget_pieces
from onnxq.calibrate.stage import RECORD, Subject, calibrate, conclude, load_statistics
from onnxq.equalized import MODEL as EQUALIZED
from onnxq.equalized import RECORD as FLOAT_STEPS
from onnxq.equalized import equalized_subject
from onnxq.errors import UsageError
from onnxq.export.stage import RECORD as EXPORT
from onnxq.plain.export import Domains, export_file
from onnxq.progress import Progress, silent
from onnxq.recipe import METHOD_OPTIONS, CalibrateSection, FloatStepName
from onnxq.sample_checks import made_up_samples
from onnxq.samples import Samples
from onnxq.sources import open_source
from onnxq.store import atomic_folder, load_record
from onnxq.target import Target, load_target

__all__ = ["Data", "Means", "calibrate_file", "calibrated", "merge_folders"]

MOST_SAMPLES = 200
EXPORTED, FP32 = "exported.onnx", "fp32.onnx"


@dataclass(frozen=True)
class Data:
    """Where samples come from, and how they are used; ``source`` None means random numbers.

    ``options`` are those of the source. ``samples`` None takes all there are, at most 200.
    ``evaluation`` is a source of samples that ranges are tried on, for the passport.
    ``float_steps`` are run on the graph before it is calibrated.
    """

    source: str | None
    domains: Domains
    section: CalibrateSection
    samples: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    evaluation: str | None = None
    float_steps: tuple[FloatStepName, ...] = ()

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that samples come from, if they come from some."""
        return tuple(Path(source) for source in (self.source, self.evaluation) if source)

    def open(
        self, exported: ExportedModel, batch: int, progress: Progress
    ) -> tuple[Samples, CalibrateSection]:
        """The samples, and the section with the number that will be taken."""
        names = tuple(value.name for value in exported.inputs)
        if self.source is None:
            count = self.samples or 32
            opened = made_up_samples(exported.inputs, count, self.section.seed)
        else:
            opened = open_source(
                self.source, self.options, names, progress=progress, inputs=exported.inputs
            )
            count = self.samples or min(len(opened), MOST_SAMPLES) // batch * batch
        return opened, self.section.model_copy(update={"samples": max(count, 1)})

    def open_evaluation(self, exported: ExportedModel, progress: Progress) -> Samples | None:
        """The samples that ranges are tried on, if some are given."""
        if self.evaluation is None:
            return None
        names = tuple(value.name for value in exported.inputs)
        return open_source(
            self.evaluation, self.options, names, progress=progress, inputs=exported.inputs
        )


@dataclass(frozen=True)
class Means:
    """What a calibration has at hand beside its data.

    ``excluded`` maps names of nodes that stay float to the reason; the result serves the targets
    ``also_for`` too. ``kept`` is where an earlier
    result lies, and pieces of an unfinished one beside it.
    """

    excluded: Mapping[str, str] = field(default_factory=dict)
    also_for: tuple[Target, ...] = ()
    resources: Resources = field(default_factory=Resources)
    kept: Path | None = None
    progress: Progress = silent


def calibrate_file(
    model: Path, target: Target, data: Data, folder: Path, means: Means | None = None
) -> CalibrationResult:
    """Canonical graph, statistics and ranges of ``model`` in ``folder``, put there whole or not at
    all; pieces of an interrupted run lie beside it. Raises as ``export`` and ``calibrate`` do."""
    with atomic_folder(folder, RECORD) as work:
        given = replace(means or Means(), kept=folder)
        result = calibrated(model, target, data, work, given)
    forget_pieces(folder)
    return result


def calibrated(
    model: Path, target: Target, data: Data, work: Path, means: Means
) -> CalibrationResult:
    """Like ``calibrate_file``, into a folder that is the caller's to put in place."""
    exported = export_file(model, target, data.domains, work)
    subject = replace(
        _subject(work, exported, target), exclude=means.excluded, also_for=means.also_for
    )
    for other in means.also_for:
        _refuse_other_form(model, data.domains, exported, other)
    samples, section = data.open(exported, subject.batch, means.progress)
    if data.float_steps:
        subject = equalized_subject(
            subject, samples, section, data.float_steps, work, progress=means.progress
        )
    return calibrate(
        subject,
        samples,
        section,
        work,
        evaluation=data.open_evaluation(exported, means.progress),
        resources=means.resources,
        kept=means.kept,
        progress=means.progress,
    )


def _refuse_other_form(
    model: Path, domains: Domains, exported: ExportedModel, target: Target
) -> None:
    """Raise UsageError if ``target`` wants the model in another form than the one exported."""
    with tempfile.TemporaryDirectory() as folder:
        other = export_file(model, target, domains, Path(folder))
    if other.model.sha256 != exported.model.sha256:
        raise UsageError(
            f"{target.name} wants the graph in another form (batch {target.batch}, opset "
            f"{target.opset[0]} to {target.opset[1]}), so one calibration cannot serve both",
            where="--also-for",
            do=f"calibrate for {target.name} by itself, or give a model with a batch of 1",
        )


def _subject(work: Path, exported: ExportedModel, target: Target) -> Subject:
    return Subject(work / FP32, exported.inputs, exported.outputs, target)


def merge_folders(
    folders: Sequence[Path], folder: Path, given: Mapping[str, object] | None = None
) -> CalibrationResult:
    """The statistics of ``folders``, made by ``calibrate_file``, as one in ``folder``.

    Ranges are made as in all of them, but for the METHOD_OPTIONS ``given``. Raises UsageError if
    they differ and no method is given, ValidationError for options that do not go together, and as
    ``load_statistics`` and ``merged_evidence`` do.
    """
    parts = [Part(str(place), *load_statistics(place)) for place in folders]
    parts.sort(key=lambda part: part.result.choice.digests)  # in whatever order they were given
    evidence = merged_evidence(parts)
    first, graph = parts[0].result, Path(parts[0].place)
    chosen = _section([part.result for part in parts], given or {})
    with atomic_folder(folder, RECORD) as work:
        for name in (EXPORT, FP32, EXPORTED):
            shutil.copyfile(graph / name, work / name)
        exported = load_record(ExportedModel, work / EXPORT)
        subject = _subject(work, exported, load_target(first.target))
        if (graph / FLOAT_STEPS).exists():
            for name in (EQUALIZED, FLOAT_STEPS):
                shutil.copyfile(graph / name, work / name)
            subject = replace(subject, model=work / EQUALIZED)
        return conclude(subject, chosen, evidence, work)


def _section(results: Sequence[CalibrationResult], given: Mapping[str, object]) -> CalibrateSection:
    """How ranges are made: as in all of ``results``, but for what is ``given``."""
    sections = [CalibrateSection.model_validate(result.provenance.options) for result in results]
    ways = {section.model_dump_json(include=set(METHOD_OPTIONS)) for section in sections}
    if len(ways) > 1 and "method" not in given:
        raise UsageError(
            f"their ranges were made in {len(ways)} ways: {', '.join(sorted(ways))}",
            where="merge",
            do="say with --method which to take",
        )
    kept = sections[0].model_dump(exclude=set(METHOD_OPTIONS) if "method" in given else set())
    return CalibrateSection.model_validate(kept | {"collect": None} | dict(given))
