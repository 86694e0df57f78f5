"""From a plain FP32 ``.onnx`` to an INT8 one, and the record beside it."""

import contextlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from onnxq.artifacts import CalibrationResult, EqualizedModel, ExportedModel, QuantizedModel
from onnxq.calibrate.stage import RECORD as CALIBRATION
from onnxq.equalized import MODEL as EQUALIZED
from onnxq.equalized import RECORD as FLOAT_STEPS
from onnxq.equalized import load_equalized
from onnxq.errors import StaleRecordError, UsageError
from onnxq.export.stage import RECORD as EXPORT
from onnxq.graph import load_graph
from onnxq.plain.calibrate import Data, Means, calibrated
from onnxq.plain.export import export_file
from onnxq.progress import Progress, silent
from onnxq.quantize.precision import left_float, refuse_unsupported
from onnxq.quantize.stage import quantize
from onnxq.quantize.training.means import Means as Lessons
from onnxq.recipe import QuantizeSection, Waiver
from onnxq.samples import Samples
from onnxq.store import atomic_file, load_record, sha256_of_file
from onnxq.target import Target, load_target

__all__ = ["equalized_of", "quantize_file", "record_of", "target_for"]

DEFAULT_TARGET = "ort-x86"
_RECORD_KEYS = frozenset({"fp32_sha256", "calibration_sha256"})


def quantize_file(
    model: Path,
    target: Target,
    source: Data | Path,
    section: QuantizeSection,
    output: Path,
    progress: Progress = silent,
) -> QuantizedModel:
    """The INT8 file of ``model`` at ``output``; ``source`` is data, or a folder of ``calibrate``.

    Raises UsageError if a file would be overwritten that is no earlier result, or if the section
    has steps, which need data, and ``source`` is a folder; StaleRecordError if that folder was made
    from another model or for another form of it; TargetRuleError, before anything is run, for bits
    that the target has no place for.
    """
    given = (model,) if isinstance(source, Path) else (model, *source.files)
    _refuse_overwriting(output, given)
    _refuse_float_steps(source, section)
    refuse_unsupported(section, [target])
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if isinstance(source, Data):
            excluded = _left_float(model, target, source, section)
            means = Means(excluded=excluded, progress=progress)
            names = section.float_steps or source.float_steps
            source = replace(source, float_steps=names)
            ranges = calibrated(model, target, source, work, means)
            samples = _samples_of(source, ranges, work, progress) if section.refining else None
        else:
            _refuse_steps(section)
            samples = None
            ranges = load_record(CalibrationResult, source / CALIBRATION)
            section = _with_excluded(section, ranges)
            export_file(model, target, {}, work)
            for name in (EQUALIZED, FLOAT_STEPS):
                if (source / name).exists():
                    shutil.copyfile(source / name, work / name)
            if sha256_of_file(_calibrated(work)) != ranges.model_sha256:
                raise StaleRecordError(
                    "was calibrated on another model, or for another kind of target",
                    where=str(source),
                    do="run `onnxq calibrate` on this model again",
                )
        equalized = _equalized(work, output)
        states = output.with_name(f".{output.name}.finetune")  # of an unfinished training
        record = quantize(
            _calibrated(work), ranges, target, section, output, samples=samples,
            means=Lessons(search=Path.cwd(), kept=states), equalized=equalized, progress=progress,
        )  # fmt: skip
    shutil.rmtree(states, ignore_errors=True)
    return record


def _calibrated(work: Path) -> Path:
    """The graph that ranges were made of: the canonical one, or that after float steps."""
    equalized = work / EQUALIZED
    return equalized if equalized.exists() else work / "fp32.onnx"


def _equalized(work: Path, output: Path) -> EqualizedModel | None:
    """The record of the float steps, if there were any; the graph after them goes beside
    ``output``, to be looked at by who verifies it."""
    if not (work / FLOAT_STEPS).exists():
        return None
    record = load_equalized(work, work / "fp32.onnx")
    with atomic_file(_beside(output)) as temporary:
        shutil.copyfile(work / EQUALIZED, temporary)
    return record


def equalized_of(int8: Path, record: QuantizedModel | None) -> Path | None:
    """The graph after float steps that ``int8`` was made from, beside it; None if it was made
    without any. Raises StaleRecordError if it is not there."""
    if record is None or record.equalized is None:
        return None
    if not _beside(int8).is_file():
        raise StaleRecordError(
            f"was made from {_beside(int8).name}, which is not beside it",
            where=str(int8),
            do="put it there, or quantize again",
        )
    return _beside(int8)


def _beside(int8: Path) -> Path:
    return int8.with_suffix(f".{EQUALIZED}")


def _left_float(
    model: Path, target: Target, source: Data, section: QuantizeSection
) -> dict[str, str]:
    """Nodes that are to stay float, and why; patterns of names are those of the canonical graph."""
    if not any(entry.weights == "float" for entry in section.precision):
        return {waiver.name: waiver.reason for waiver in section.exclude}
    with tempfile.TemporaryDirectory() as folder:
        export_file(model, target, source.domains, Path(folder))
        return left_float(load_graph(Path(folder) / "fp32.onnx"), section)


def _samples_of(source: Data, ranges: CalibrationResult, work: Path, progress: Progress) -> Samples:
    """The samples that the calibration drew."""
    exported = load_record(ExportedModel, work / EXPORT)
    opened, _ = source.open(exported, ranges.collection.batch, progress)
    return opened.take(np.array(ranges.choice.indices, np.int64))


def _refuse_steps(section: QuantizeSection) -> None:
    if section.steps:
        raise UsageError(
            f"`{section.steps[0]}` is measured on samples, which a folder of ranges does not hold",
            where="--step",
            do="give --data SOURCE instead of --calibration",
        )


def _refuse_float_steps(source: Data | Path, section: QuantizeSection) -> None:
    if section.float_steps and isinstance(source, Path):
        raise UsageError(
            f"`{section.float_steps[0]}` comes before ranges are made, and {source} holds ranges",
            where="--float-step",
            do="give it to `onnxq calibrate`, which makes that folder",
        )


def _with_excluded(section: QuantizeSection, ranges: CalibrationResult) -> QuantizeSection:
    """The section, leaving float what was to stay float at calibration."""
    named = {waiver.name for waiver in section.exclude}
    more = [
        Waiver(name=name, reason=reason)
        for name, reason in ranges.excluded.items()
        if name not in named
    ]
    return section.model_copy(update={"exclude": (*section.exclude, *more)})


def _refuse_overwriting(output: Path, given: Sequence[Path]) -> None:
    record = output.with_suffix(".json")
    if output == record:
        raise UsageError(
            "is where the record would go", where=f"-o {output}", do="end the name in .onnx"
        )
    for path in (output, record, _beside(output)):
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
