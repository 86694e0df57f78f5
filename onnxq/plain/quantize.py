"""From a plain FP32 ``.onnx`` to an INT8 one, and the record beside it."""

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxq.artifacts import CalibrationResult, ExportedModel, QuantizedModel
from onnxq.calibrate.stage import RECORD as CALIBRATION
from onnxq.errors import StaleRecordError, UsageError
from onnxq.export.stage import RECORD as EXPORT
from onnxq.plain.calibrate import Data, Means, calibrated
from onnxq.plain.export import export_file
from onnxq.progress import Progress, silent
from onnxq.quantize.stage import quantize
from onnxq.recipe import QuantizeSection, Waiver
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import Target, load_target

__all__ = ["quantize_file", "record_of", "target_for"]

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
    from another model or for another form of it.
    """
    given = (model,) if isinstance(source, Path) else (model, *source.files)
    _refuse_overwriting(output, given)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        if isinstance(source, Data):
            excluded = {waiver.name: waiver.reason for waiver in section.exclude}
            means = Means(excluded=excluded, progress=progress)
            ranges = calibrated(model, target, source, work, means)
            samples = _samples_of(source, ranges, work, progress) if section.steps else None
        else:
            _refuse_steps(section)
            samples = None
            ranges = load_record(CalibrationResult, source / CALIBRATION)
            section = _with_excluded(section, ranges)
            export_file(model, target, {}, work)
            if sha256_of_file(work / "fp32.onnx") != ranges.model_sha256:
                raise StaleRecordError(
                    "was calibrated on another model, or for another kind of target",
                    where=str(source),
                    do="run `onnxq calibrate` on this model again",
                )
        return quantize(
            work / "fp32.onnx", ranges, target, section, output, samples=samples, progress=progress
        )


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
