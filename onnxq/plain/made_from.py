"""What a plain INT8 file was quantized from, kept so that it can be quantized again."""

import hashlib
from pathlib import Path

from pydantic import TypeAdapter

from onnxq.artifacts import CalibrationResult, MadeFrom, QuantizedModel
from onnxq.errors import DataError
from onnxq.plain.calibrate import Data
from onnxq.plain.quantize import quantize_file
from onnxq.plugins import is_reference
from onnxq.progress import Progress, silent
from onnxq.recipe import QuantizeSection
from onnxq.store import save_record, sha256_of_file
from onnxq.target import Target

__all__ = ["quantize_again", "quantize_from"]

_DATA = TypeAdapter(Data)


def quantize_from(
    model: Path,
    target: Target,
    source: Data | Path,
    section: QuantizeSection,
    output: Path,
    progress: Progress = silent,
) -> QuantizedModel:
    """``quantize_file``, with what it was made from on its record; of a folder of ranges nothing is
    known but the ranges, so that such a file cannot be made again."""
    record = quantize_file(model, target, source, section, output, progress)
    if isinstance(source, Path) or record.calibration is None:
        return record
    made = MadeFrom(
        model=str(model),
        model_sha256=sha256_of_file(model),
        source=source.source or "",
        samples_sha256=_digest(record.calibration),
        data=_DATA.dump_python(source, mode="json"),
        quantize=section.model_dump(mode="json"),
    )
    record = record.model_copy(update={"made_from": made})
    save_record(record, output.with_suffix(".json"))
    return record


def quantize_again(made: MadeFrom, target: Target, output: Path, where: str) -> QuantizedModel:
    """The INT8 file once more, at ``output``, from the FP32 file and the data that it names.

    Raises DataError for one that is not found from the current folder, naming it, and as
    ``quantize_file`` does.
    """
    data = _DATA.validate_python(made.data)
    named = [("FP32 model", made.model)]
    named += [(what, name) for what, name in _sources(data) if not is_reference(name)]
    for what, name in named:
        if not Path(name).exists():
            raise DataError(
                f"its {what} {name} is not found from this folder",
                where=where,
                do="run it where the file was quantized: paths on the command line begin there",
            )
    section = QuantizeSection.model_validate(made.quantize)
    return quantize_from(Path(made.model), target, data, section, output)


def _sources(data: Data) -> list[tuple[str, str]]:
    sources = (("calibration data", data.source), ("evaluation data", data.evaluation))
    return [(what, name) for what, name in sources if name]


def _digest(calibration: CalibrationResult) -> str:
    """One digest for the content of every sample that the ranges were made of, in their order."""
    return hashlib.sha256("".join(calibration.choice.digests).encode()).hexdigest()
