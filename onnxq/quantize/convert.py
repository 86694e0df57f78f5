"""A Q/DQ file with the other type of activations beside it, proven to hold the same numbers."""

from pathlib import Path

import numpy as np
import onnx

from onnxq.artifacts import Conversion, QuantizedModel, TensorParameters
from onnxq.errors import ModelError, ParityError, StaleRecordError, UsageError
from onnxq.graph import load_model, save_model, values_of
from onnxq.provenance import provenance
from onnxq.qtypes import IntType
from onnxq.quantize.shift import ELEMENT, OTHER, Shifted, shift_activations
from onnxq.runtime import Session, in_parallel
from onnxq.sample_checks import runs_of
from onnxq.samples import Samples
from onnxq.store import facts_of_file

__all__ = ["convert", "converted_record", "require_same_numbers"]

_SHIFTS = {IntType.INT8: -128, IntType.UINT8: 128}


def convert(path: Path, to: IntType, samples: Samples, output: Path) -> Conversion:
    """Write ``path`` with activations of type ``to`` (int8 or uint8) to ``output``.

    What is written was run beside the original on ``samples`` as the graph says (no optimization):
    outputs are equal to the last bit, every integer activation is 128 from the original's.
    Raises UsageError for another type, ModelError as ``shift_activations`` does or if there is
    nothing to convert, ParityError if the two differ.
    """
    if to not in OTHER:
        raise UsageError(f"activations can become int8 or uint8, not {to}", where=path.name)
    original = load_model(path)
    shifted = shift_activations(original, to, path.name)
    if not shifted.tensors:
        raise ModelError(
            f"holds no {OTHER[to]} activation that could become {to}",
            where=path.name,
            do="use it as it is, or quantize the FP32 model with `onnxq quantize`",
        )
    compared = require_same_numbers(original, shifted, samples, path.name)
    save_model(shifted.model, output)
    return Conversion(
        source=facts_of_file(path),
        converted=facts_of_file(output),
        was=OTHER[to],
        became=to,
        activations=len(shifted.tensors),
        samples=len(samples),
        made_up_data=samples.made_up,
        integers_compared=compared,
        provenance=provenance({"to": to, "samples": samples.name}),
    )


def converted_record(record: QuantizedModel, made: Conversion, target: str) -> QuantizedModel:
    """The record of a converted file: that of the one it was made from, with types as they are now.

    Raises StaleRecordError if ``record`` is about another file.
    """
    if record.model.sha256 != made.source.sha256:
        raise StaleRecordError(
            "is about another file", where=record.model.name, do="convert the file it is about"
        )
    shift = _SHIFTS[made.became]
    activations = {
        name: TensorParameters(scale=p.scale, zero_point=p.zero_point + shift, type=made.became)
        if p.type == made.was
        else p
        for name, p in record.activations.items()
    }
    step = f"made {made.was} activations {made.became}, the same numbers as {made.source.sha256}"
    changes = {
        "model": made.converted,
        "target": target,
        "activation_type": made.became,
        "activations": activations,
        "steps": (*record.steps, step),
        "parts": None,  # those were cut from the other file
        "provenance": made.provenance,
    }
    return record.model_copy(update=changes)


def require_same_numbers(
    original: onnx.ModelProto, shifted: Shifted, samples: Samples, where: str
) -> int:
    """How many integers were found equal but for the shift, on all ``samples``.

    Both graphs run operator by operator, without optimization. Raises ParityError that names the
    first output that differs in a bit or activation that is not shifted, DataError for samples that
    do not fit.
    """
    rows = runs_of(samples, values_of(original)[0])
    before = _watched(original, list(shifted.tensors), OTHER[shifted.type])
    after = _watched(shifted.model, list(shifted.tensors.values()), shifted.type)
    twins = {old: new for old, new in shifted.tensors.items() if old not in rows[0]}
    shift = _SHIFTS[shifted.type]
    outputs = [value.name for value in original.graph.output]

    def compared(index: int) -> int:
        old, new = before.run(rows[index]), after.run(rows[index])
        for name in outputs:
            if old[name].dtype != new[name].dtype or old[name].tobytes() != new[name].tobytes():
                _refuse(f"the output `{name}` of run {index}", where)
        for name, twin in twins.items():
            moved = new[twin].astype(np.int16) - old[name].astype(np.int16)
            if np.any(moved != shift):
                _refuse(f"the integers `{name}` of run {index}", where)
        return sum(old[name].size for name in twins)

    return sum(in_parallel(compared, len(rows)))


def _refuse(what: str, where: str) -> None:
    raise ParityError(
        f"{what} are not those of the original",
        where=where,
        do="report it with the model: the two files must hold the same numbers",
    )


def _watched(model: onnx.ModelProto, tensors: list[str], kind: IntType) -> Session:
    """The graph with its integer activations, of type ``kind``, as further outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in (*copy.graph.output, *copy.graph.input)}
    for name in tensors:
        if name not in known:
            value = onnx.helper.make_tensor_value_info(name, ELEMENT[kind], None)
            copy.graph.output.append(value)
    return Session(copy.SerializeToString(), optimization="none")
