"""Whether the weights and biases of the file are those of the FP32 graph, but for rounding."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Integer

from onnxq.graph import WEIGHTED, constant_input, constant_of
from onnxq.qdq import dequantizer, packed_integers, stored_integers, stored_type

__all__ = ["constant_faults"]

_HALF_STEP = 0.5 + 1e-4  # in float32, a quotient beside a tie may round to either side
_FLOAT32_QUOTIENT = 2.0**-22  # relative error of bias / scale as float32 has it
_ENDS = {"int8": 127, "int4": 7}  # of the grids that are planned
_BIAS_SCALE = 1e-5  # what ONNX Runtime lets a bias scale be off s_x · s_w, relative


@dataclass(frozen=True)
class _Stored:
    """A constant behind a DQ; ``scale`` broadcasts against ``integers``, ``lowest`` is the smallest
    as the file stores them, in ``type``."""

    integers: Integer[np.ndarray, "..."]
    scale: Float[np.ndarray, "..."]
    values: Float[np.ndarray, "..."]
    type: str
    lowest: int


def constant_faults(node: ir.Node, fp32: ir.Node, moved: Mapping[str, float]) -> list[str]:
    """What of the weight and bias of ``node`` is not explained by rounding those of ``fp32``.

    A weight and a bias lie within half a step of FP32's, or of where they were ``moved`` to on
    record (so many steps at most); an int8 weight lies within −127…127, an int4 one within −7…7,
    and the scale of a bias is that of the input times that of the weight. What is not quantized, or
    not a constant, is passed over.
    """
    if node.op_type not in WEIGHTED:
        return []
    weight = _stored(node.inputs[1])
    exact = constant_of(fp32.inputs[1])
    faults = []
    if weight is not None and exact is not None:
        faults += _distance_fault("weight", weight, exact, moved)
        lowest, most = weight.lowest, _ENDS.get(weight.type)
        if most is not None and lowest < -most:
            faults.append(
                f"its {weight.type} weight reaches −{-lowest}, and none is planned beyond "
                f"−{most}…{most}"
            )
    bias, exact = _stored(_input(node, 2)), constant_input(fp32, 2)
    if bias is not None and exact is not None:
        if exact.size in {1, bias.values.size}:  # a Gemm's may be of any such shape
            exact = np.broadcast_to(exact.reshape(-1), bias.values.shape)
        faults += _distance_fault("bias", bias, exact, moved)
        faults += _bias_scale_fault(node, bias, weight)
    if exact is not None and _input(node, 2) is None:
        faults.append("the bias of FP32 is not there")
    return faults


def _distance_fault(
    what: str, stored: _Stored, exact: Float[np.ndarray, "..."], moved: Mapping[str, float]
) -> list[str]:
    if exact.shape != stored.values.shape:
        return [
            f"its {what} has shape {list(stored.values.shape)}, that of FP32 {list(exact.shape)}"
        ]
    distance = np.abs(stored.values - exact.astype(np.float64))
    explained = moved.get(what, 0.0) * (1 + _BIAS_SCALE) + _HALF_STEP
    allowed = explained * stored.scale
    if stored.integers.dtype == np.int32:
        allowed = allowed + _FLOAT32_QUOTIENT * np.abs(exact.astype(np.float64))
    if np.all(distance <= allowed):
        return []
    worst = float(np.max(distance / stored.scale))
    why = f"the record {explained:.3g}" if what in moved else "rounding explains half of 1"
    return [f"its {what} lies up to {worst:.3g} steps from FP32's, and {why}"]


def _bias_scale_fault(node: ir.Node, bias: _Stored, weight: _Stored | None) -> list[str]:
    data = dequantizer(node.inputs[0])
    input_scale = constant_of(data.inputs[1]) if data is not None else None
    if input_scale is None or weight is None:
        return []
    wanted = float(input_scale.reshape(-1)[0]) * weight.scale.reshape(-1)
    found = bias.scale.reshape(-1)
    if len(found) not in {1, len(wanted)} or not np.allclose(found, wanted, _BIAS_SCALE, 0):
        return ["the scale of its bias is not that of its input times that of its weight"]
    return []


def _stored(value: ir.Value | None) -> _Stored | None:
    """What a DQ makes of the integers in the file; None for anything else."""
    dq = dequantizer(value)
    if dq is None:
        return None
    integers = stored_integers(dq)
    scale, zero_point = (constant_input(dq, index) for index in (1, 2))
    if integers is None or scale is None or not np.issubdtype(integers.dtype, np.integer):
        return None
    shape = [1] * integers.ndim
    if scale.size > 1:
        axis = dq.attributes.get_int("axis", 1) % integers.ndim
        if scale.size != integers.shape[axis]:
            return None  # in blocks, which no target takes
        shape[axis] = scale.size
    wide = scale.astype(np.float64).reshape(shape)
    zero = np.zeros(1) if zero_point is None else zero_point.astype(np.float64)
    centred = integers.astype(np.float64) - (zero.reshape(shape) if zero.size > 1 else zero.sum())
    packed = packed_integers(dq)
    lowest = 0 if packed is None else int(packed.min(initial=0))
    return _Stored(integers, wide, centred * wide, stored_type(dq), lowest)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
