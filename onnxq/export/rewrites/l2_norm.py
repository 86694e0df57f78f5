"""Normalisation to length 1, in operators that targets know.

LpNormalization → ReduceL2 (ReduceL1) and Div, on every target. Where a target does not know
ReduceL2 either, it and other sums of squares → Mul, ReduceSum and Sqrt.
"""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, opset_of, substitute
from onnxq.graph import constant_input, dims_of

__all__ = ["lower_lp_normalization", "lower_sums_of_squares"]

_NORMS = {1: "ReduceL1", 2: "ReduceL2"}
_TINY = np.finfo(np.float32).tiny  # 0 / tiny is 0, which is what the norm of nothing is meant to be
_AXES_ARE_AN_INPUT = 18  # of ReduceL1 and ReduceL2; of ReduceSum since 13


def lower_lp_normalization(model: ir.Model) -> int:
    """``x / max(‖x‖, tiny)`` over one axis: a vector of zeros stays one."""
    graph = model.graph
    found = [
        node
        for node in graph
        if node.op_type == "LpNormalization" and node.outputs[0].dtype == ir.DataType.FLOAT
    ]
    for node in found:
        axis = np.array([node.attributes.get_int("axis", -1)], np.int64)
        name = _NORMS[node.attributes.get_int("p", 2)]
        if opset_of(model) < _AXES_ARE_AN_INPUT:
            norm = ir.node(name, [node.inputs[0]], {"axes": axis.tolist()})
        else:
            norm = ir.node(name, [node.inputs[0], add_constant(graph, "axes", axis)])
        smallest = add_constant(graph, "smallest", np.array(_TINY, np.float32))
        clip = ir.node("Clip", [norm.outputs[0], smallest])
        divided = ir.node("Div", [node.inputs[0], clip.outputs[0]])
        substitute(graph, node, [norm, clip, divided])
    return len(found)


def lower_sums_of_squares(model: ir.Model) -> int:
    """ReduceL2, ReduceSumSquare and the square by Pow → Mul of a value with itself, and sums."""
    return sum(_lower(model.graph, node) for node in tuple(model.graph) if not node.domain)


def _lower(graph: ir.Graph, node: ir.Node) -> int:
    data = node.inputs[0] if node.inputs else None
    if data is None or data.dtype != ir.DataType.FLOAT:
        return 0
    square = ir.node("Mul", [data, data])
    if node.op_type == "Pow":
        exponent = constant_input(node, 1)
        if exponent is None or exponent.size != 1 or exponent.item() != 2:
            return 0
        if exponent.ndim > len(dims_of(data) or ()):
            return 0
        substitute(graph, node, [square])
        return 1
    if node.op_type not in {"ReduceL2", "ReduceSumSquare"}:
        return 0
    axes = node.attributes.get_ints("axes")
    rest = list(node.inputs[1:])
    if axes is not None:
        rest = [add_constant(graph, "axes", np.array(axes, np.int64))]
    attributes = {name: value for name, value in node.attributes.items() if name != "axes"}
    nodes = [square, ir.node("ReduceSum", [square.outputs[0], *rest], attributes)]
    if node.op_type == "ReduceL2":
        nodes.append(ir.node("Sqrt", [nodes[-1].outputs[0]]))
    substitute(graph, node, nodes)
    return 1
