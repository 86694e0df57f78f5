"""A quantized ``.onnx``, whoever wrote it, with the activations that a target wants."""

from pathlib import Path

from onnxq.artifacts import Conversion, QuantizedModel
from onnxq.errors import UsageError
from onnxq.plain.in_range import samples_in_range
from onnxq.plain.quantize import record_of
from onnxq.quantize.convert import convert, converted_record
from onnxq.store import save_record
from onnxq.target import Target
from onnxq.verify.fusion import audit_fusion, config_for, fusion_lines

__all__ = ["convert_file", "integer_nodes"]


def convert_file(
    model: Path, target: Target, source: str | None, output: Path
) -> tuple[Conversion, QuantizedModel | None]:
    """``model`` with the activation type of ``target`` at ``output``, proven equal on samples of
    ``source`` or on random numbers; and, for a file of ours, its record, written beside it.

    Raises UsageError if the model or its record would be overwritten, and as ``convert`` does.
    """
    for path in (output, output.with_suffix(".json")):
        if any(file.exists() and path.exists() and file.samefile(path) for file in _files(model)):
            raise UsageError(
                f"would overwrite {path.name}, which it is made from",
                where=f"-o {output}",
                do="give the converted file another name",
            )
    record = record_of(model)
    made = convert(model, target.activation_type, samples_in_range(model, source), output)
    if record is None:
        return made, None
    converted = converted_record(record, made, target.name)
    save_record(converted, output.with_suffix(".json"))
    return made, converted


def integer_nodes(model: Path, target: Target) -> dict[str, tuple[int, int]]:
    """By operator: how many ONNX Runtime executes on integers here, and how many there are."""
    lines = fusion_lines(audit_fusion(model, config_for(target)))
    return {line.op_type: (line.integer, line.total) for line in lines}


def _files(model: Path) -> tuple[Path, Path]:
    return model, model.with_suffix(".json")
