"""What values a tensor can hold at most, told from the graph alone: interval arithmetic.

Source: Moore 1966, Interval Analysis; for a layer, the sum of each weight times the end of its
input's interval that makes it largest.
"""

from math import inf

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64

from onnxq.graph import VIEWS, constant_input, constant_of
from onnxq.quantize.float_steps.scaling import largest_sums
from onnxq.quantize.float_steps.sources import weighted

__all__ = ["intervals"]

Ends = Float64[np.ndarray, " _"]
Interval = tuple[Ends, Ends]  # lowest and highest by channel of axis 1, or one for all
_ROUNDING = 1e-5  # of the sum of magnitudes: what float32 may add to an exact sum
_FIXED = {"HardSigmoid": (0.0, 1.0), "Sigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0)}
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


def intervals(graph: ir.Graph) -> dict[str, Interval]:
    """For every tensor the lowest and the highest value that each of its channels can hold.

    Infinite where the graph does not tell: for its inputs, and behind operators other than
    convolutions, activations with bounds, pools, and those that move values.
    """
    found: dict[str, Interval] = {}
    for node in graph:
        if node.outputs:
            found[str(node.outputs[0].name)] = _interval(node, found)
    return found


def _interval(node: ir.Node, found: dict[str, Interval]) -> Interval:
    data = node.inputs[0] if node.inputs else None
    low, high = found.get(str(data.name), _one(-inf, inf)) if data is not None else _one(-inf, inf)
    match node.op_type:
        case "Relu":
            result = np.maximum(low, 0), np.maximum(high, 0)
        case "Clip":
            least, most = (constant_of(value) for value in [*node.inputs, None, None][1:3])
            ends = (-inf if least is None else float(least), inf if most is None else float(most))
            result = np.clip(low, *ends), np.clip(high, *ends)
        case "Conv" if weighted(node):
            result = _of_convolution(node, low, high)
        case op_type if op_type in _FIXED:
            result = _one(*_FIXED[op_type])
        case op_type if op_type in _POOLS:
            result = np.minimum(low, 0), np.maximum(high, 0)  # what is padded with counts too
        case op_type if op_type in {*VIEWS, "Transpose"}:
            result = _one(float(low.min()), float(high.max()))
        case _:
            result = _one(-inf, inf)
    return result


def _of_convolution(node: ir.Node, low: Ends, high: Ends) -> Interval:
    weight, bias = constant_input(node, 1), constant_input(node, 2)
    if weight is None or (bias is None and len(node.inputs) > 2 and node.inputs[2] is not None):
        return _one(-inf, inf)
    shift = 0.0 if bias is None else bias.astype(np.float64)
    low, high = np.minimum(low, 0), np.maximum(high, 0)  # it may pad with zeros
    most = largest_sums(node, weight, low, high)
    least = -largest_sums(node, -weight, low, high)
    slack = _ROUNDING * (np.abs(most - least) + np.abs(shift))
    return least + shift - slack, most + shift + slack


def _one(low: float, high: float) -> Interval:
    return np.array([low]), np.array([high])
