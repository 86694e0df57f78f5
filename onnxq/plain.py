"""The stages on plain files, for people who arrive with an ``.onnx`` and no recipe."""

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq import plugins
from onnxq.artifacts import (
    Bundle,
    CalibrationResult,
    ExportedModel,
    QuantizedModel,
    ValueFacts,
    VerificationReport,
)
from onnxq.calibrate.readers import refuse_overlap
from onnxq.calibrate.stage import RECORD as CALIBRATION
from onnxq.calibrate.stage import calibrate
from onnxq.errors import ModelError, PluginError, StaleRecordError, UsageError
from onnxq.export.stage import export
from onnxq.graph import load_model, values_of
from onnxq.progress import Progress, silent
from onnxq.quantize.stage import quantize
from onnxq.recipe import (
    CalibrateSection,
    ExportSection,
    QuantizeSection,
    ValueSection,
    VerifySection,
)
from onnxq.sample_checks import made_up_samples
from onnxq.samples import Samples
from onnxq.sources import open_source
from onnxq.store import atomic_folder, load_record, sha256_of_file
from onnxq.target import Target, load_target
from onnxq.verify.gate import metric_named
from onnxq.verify.metrics import Task
from onnxq.verify.tasks import task_for_metric

__all__ = [
    "REPORT",
    "Data",
    "calibrate_file",
    "export_file",
    "hand_off_file",
    "quantize_file",
    "record_of",
    "samples_for",
    "target_for",
    "task_for",
    "verify_files",
]

MOST_SAMPLES = 200
DEFAULT_TARGET = "ort-x86"
REPORT = "report.json"
_RECORD_KEYS = frozenset({"fp32_sha256", "calibration_sha256"})
Domains = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Data:
    """Where samples come from, and how they are used; ``source`` None means random numbers."""

    source: str | None
    domains: Domains
    section: CalibrateSection
    samples: int | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The file that samples come from, if they come from one."""
        return (Path(self.source),) if self.source is not None else ()

    def open(self, exported: ExportedModel) -> tuple[Samples, CalibrateSection]:
        """The samples, and the section with the number that will be taken."""
        names = tuple(value.name for value in exported.inputs)
        if self.source is None:
            count = self.samples or 32
            opened = made_up_samples(exported.inputs, count, self.section.seed)
        else:
            opened = open_source(self.source, {}, names)
            count = self.samples or min(len(opened), MOST_SAMPLES)
        return opened, self.section.model_copy(update={"samples": max(count, 1)})


def export_file(
    model: Path, target: Target, domains: Domains, folder: Path, opset: int | None = None
) -> ExportedModel:
    """The canonical form of an FP32 ``.onnx`` in ``folder``. Raises as ``export`` does.

    ``opset`` is the model's own unless given, or the nearest to it that ``target`` takes.
    """
    inputs, outputs = values_of(load_model(model))
    known = {value.name for value in (*inputs, *outputs)}
    for name in domains:
        if name not in known:
            raise UsageError(
                f"`{name}` is no input or output", where="--domain", do=f"known: {sorted(known)}"
            )

    def sections(values: Sequence[ValueFacts]) -> tuple[ValueSection, ...]:
        return tuple(
            ValueSection(name=v.name, domain=domains[v.name]) for v in values if v.name in domains
        )

    section = ExportSection(
        model=model.resolve(),
        opset=min(max(opset or _opset(model), target.opset[0]), target.opset[1]),
        inputs=sections(inputs),
        outputs=sections(outputs),
    )
    return export(section, folder, target=target, search=None, samples=None, progress=silent)


def _opset(model: Path) -> int:
    imports = load_model(model).opset_import
    return next(int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx"))


def calibrate_file(
    model: Path, target: Target, data: Data, folder: Path, progress: Progress = silent
) -> CalibrationResult:
    """Canonical graph and ranges of ``model`` in ``folder``, put there whole or not at all."""
    with atomic_folder(folder, CALIBRATION) as work:
        return _calibrated(model, target, data, work, progress)


def _calibrated(
    model: Path, target: Target, data: Data, work: Path, progress: Progress
) -> CalibrationResult:
    exported = export_file(model, target, data.domains, work)
    samples, section = data.open(exported)
    values = (exported.inputs, exported.outputs)
    return calibrate(work / "fp32.onnx", values, samples, section, work, progress=progress)


def quantize_file(
    model: Path,
    target: Target,
    source: Data | Path,
    section: QuantizeSection,
    output: Path,
    progress: Progress = silent,
) -> QuantizedModel:
    """The INT8 file of ``model`` at ``output``; ``source`` is data, or a folder of ``calibrate``.

    Raises UsageError if a file would be overwritten that is no earlier result, StaleRecordError if
    the folder was made from another model or for another form of it.
    """
    given = (model,) if isinstance(source, Path) else (model, *source.files)
    _refuse_overwriting(output, given)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if isinstance(source, Data):
            ranges = _calibrated(model, target, source, work, progress)
        else:
            ranges = load_record(CalibrationResult, source / CALIBRATION)
            export_file(model, target, {}, work)
            if sha256_of_file(work / "fp32.onnx") != ranges.model_sha256:
                raise StaleRecordError(
                    "was calibrated on another model, or for another kind of target",
                    where=str(source),
                    do="run `onnxq calibrate` on this model again",
                )
        return quantize(work / "fp32.onnx", ranges, target, section, output)


def _refuse_overwriting(output: Path, given: Sequence[Path]) -> None:
    record = output.with_suffix(".json")
    if output == record:
        raise UsageError(
            "is where the record would go", where=f"-o {output}", do="end the name in .onnx"
        )
    for path in (output, record):
        if path.exists() and any(file.exists() and file.samefile(path) for file in given):
            raise UsageError(
                f"would overwrite {path.name}, which it is made from",
                where=f"-o {output}",
                do="give the INT8 file another name",
            )
    if record.exists() and not _is_ours(record):
        raise UsageError(
            f"its record would overwrite {record.name}, which onnxq has not written",
            where=f"-o {output}",
            do="give another name, or move that file",
        )


def record_of(int8: Path) -> QuantizedModel | None:
    """The record that ``quantize`` wrote beside ``int8``; None for a file from elsewhere.

    Raises StaleRecordError if the record is about another file.
    """
    path = int8.with_suffix(".json")
    if not _is_ours(path):
        return None
    record = load_record(QuantizedModel, path)
    if record.model.sha256 != sha256_of_file(int8):
        raise StaleRecordError(
            "describes another file", where=str(path), do=f"remove it, or make {int8.name} again"
        )
    return record


def _is_ours(path: Path) -> bool:
    """Whether a file is a record of ``quantize``, be it of this version or of another."""
    with contextlib.suppress(OSError, ValueError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return isinstance(values, dict) and values.keys() >= _RECORD_KEYS
    return False


def target_for(record: QuantizedModel | None, asked: str | None) -> Target:
    """The target that a file was made for, or the one that is asked for.

    Raises UsageError if the two contradict each other, or if there is no such target.
    """
    if asked is None:
        return load_target(record.target if record else DEFAULT_TARGET)
    if record is not None and asked != record.target:
        raise UsageError(
            f"the target {asked} is asked for, and {record.model.name} was made for "
            f"{record.target}",
            where="--target",
            do=f"leave it out, or quantize for {asked}",
        )
    return load_target(asked)


def verify_files(  # noqa: PLR0913 - what is compared, on what, how it is judged, where it goes
    fp32: Path,
    int8: Path,
    samples: Samples,
    task: Task,
    section: VerifySection,
    folder: Path,
    *,
    target: str | None = None,
    progress: Progress = silent,
) -> VerificationReport:
    """Judge ``int8`` against ``fp32`` on ``samples``; reports go to ``folder``.

    The record beside ``int8`` is heeded: its target, the FP32 model it was made from, and the
    samples of its calibration. Raises UsageError for another target, StaleRecordError for another
    model, LeakageError for samples that it was calibrated on, and as ``verify`` does.
    """
    from onnxq.verify.stage import Evidence, verify

    quantized = record_of(int8)
    if quantized is not None and quantized.calibration is not None:
        refuse_overlap(quantized.calibration, samples)
    chosen = target_for(quantized, target)
    with tempfile.TemporaryDirectory() as scratch:
        opset = _opset(int8) if quantized is not None else None  # a recipe may have chosen it
        exported = export_file(fp32, chosen, {}, Path(scratch), opset)
        known = (exported.model.sha256, sha256_of_file(fp32))  # either form may be given
        if quantized is not None and quantized.fp32_sha256 not in known:
            raise StaleRecordError(
                f"was made from another FP32 model than {fp32.name}",
                where=str(int8),
                do=f"give the model that it was made from, or quantize {fp32.name}",
            )
        evidence = Evidence(
            name=int8.stem,
            fp32=fp32,
            rewritten=Path(scratch) / "fp32.onnx",
            int8=int8,
            target=chosen,
            exported=exported,
            quantized=quantized,
        )
        return verify(evidence, task, samples, section, folder, progress=progress)


def task_for(metric: str) -> tuple[Task, str]:
    """The task, and the name of its metric that is gated: ``metric``, or the first one of the task
    that ``module:function`` returns.

    Raises UsageError for a metric that is unknown or no mean over samples, and PluginError.
    """
    if plugins.is_reference(metric):
        task = plugins.call(metric, {})
        if not isinstance(task, Task):
            raise PluginError("does not return a Task", where=metric)
        gated = task.metrics[0]
    else:
        task = task_for_metric(metric)
        gated = metric_named(task, metric)
    if gated.per_sample is None or gated.better == "neither":
        able = [f"`{m.name}`" for m in task.metrics if m.per_sample and m.better != "neither"]
        raise UsageError(
            f"`{gated.name}` is no mean over samples and cannot be gated",
            where="--metric",
            do=f"gate one that has a value per sample: {', '.join(able) or 'the task has none'}",
        )
    return task, gated.name


def hand_off_file(
    int8: Path,
    folder: Path,
    *,
    target: str | None = None,
    source: str | None = None,
    report: Path | None = None,
    allow_unverified: bool = False,
) -> Bundle:
    """The bundle of ``int8`` in ``folder``; ``report`` is the folder that ``verify`` wrote.

    Raises ModelError for a file that is not quantized, and as ``hand_off`` does.
    """
    from onnxq.handoff.stage import hand_off

    if not any(node.op_type == "DequantizeLinear" for node in load_model(int8).graph.node):
        raise ModelError(
            "is not quantized: it holds no DequantizeLinear node",
            where=str(int8),
            do="run `onnxq quantize` on it, and hand off what that writes",
        )
    quantized = record_of(int8)
    return hand_off(
        model=int8,
        target=target_for(quantized, target),
        folder=folder,
        quantized=quantized,
        report=load_record(VerificationReport, report / REPORT) if report else None,
        report_folder=report,
        samples=samples_for(int8, source) if source else None,
        allow_unverified=allow_unverified,
    )


def samples_for(model: Path, source: str) -> Samples:
    """Samples of a file or ``module:function``, with the inputs of ``model``."""
    names = tuple(value.name for value in values_of(load_model(model))[0])
    return open_source(source, {}, names)
