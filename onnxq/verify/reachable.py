"""Which integers an 8-bit tensor of a Q/DQ file can hold, told from the operator it comes from."""

import math

import numpy as np
import onnx_ir as ir

from onnxq.affine import dequantize, quantize
from onnxq.graph import constant_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.qtypes import AffineParameters, IntType

__all__ = ["parameters_of", "reachable"]

_KEEPS_BOUNDS = frozenset(
    {
        "AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool",
        "Identity", "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Slice", "Split", "Squeeze",
        "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_BOUNDED = {
    "HardSigmoid": (0.0, 1.0),
    "Sigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}


def parameters_of(node: ir.Node) -> AffineParameters | None:
    """Scale and zero point of a Q or DQ of 8-bit activations; None for anything else."""
    scale = constant_of(node.inputs[1])
    zero_point = constant_of(node.inputs[2]) if len(node.inputs) > 2 else np.zeros(1, np.uint8)
    if scale is None or zero_point is None or scale.size > 1:
        return None
    if zero_point.dtype not in (np.int8, np.uint8):
        return None
    kind = IntType(str(zero_point.dtype))
    return AffineParameters(float(scale.reshape(-1)[0]), int(zero_point.reshape(-1)[0]), kind)


def reachable(data: ir.Node) -> tuple[int, int]:
    """Smallest and largest integer that can stand before a DQ: what the operator behind its Q can
    give, where that is known, else all of the type."""
    given = parameters_of(data)
    if given is None or data.inputs[0] is None:
        return (0, 255)
    q = data.inputs[0].producer()
    if q is None or q.op_type != QUANTIZE:
        return given.type.qmin, given.type.qmax
    ends = np.array(_bounds(q.inputs[0]), np.float32)
    low, high = quantize(ends, given.scale, given.zero_point, given.type)
    return int(low), int(high)


def _bounds(value: ir.Value | None) -> tuple[float, float]:
    """Real values that a tensor of the file can hold, as far as its operator tells."""
    node = value.producer() if value is not None else None
    if node is None:
        return -math.inf, math.inf
    if node.op_type == DEQUANTIZE and (given := parameters_of(node)) is not None:
        ends = np.array(reachable(node), np.int32)
        low, high = dequantize(ends, given.scale, given.zero_point)
        return float(low), float(high)
    if node.op_type in {"Relu", "Clip"}:
        return _clipped(node)
    if node.op_type in _KEEPS_BOUNDS:
        low, high = _bounds(node.inputs[0])
        return min(low, 0.0), max(high, 0.0)  # an AveragePool may count its padding
    return _BOUNDED.get(node.op_type, (-math.inf, math.inf))


def _clipped(node: ir.Node) -> tuple[float, float]:
    """Bounds behind a Relu or Clip; a limit that is no plain constant is not looked into."""
    low, high = _bounds(node.inputs[0])
    if node.op_type == "Relu":
        return max(low, 0.0), max(high, 0.0)
    limits = [constant_of(limit) for limit in node.inputs[1:]]
    floor = -math.inf if not limits or limits[0] is None else float(limits[0])
    ceiling = math.inf if len(limits) < 2 or limits[1] is None else float(limits[1])
    return min(max(low, floor), ceiling), min(max(high, floor), ceiling)
