"""A view, then an operator that computes every element by itself → the operator, then the view.

A view between a Conv and its activation hides from quantization that the two are one; behind the
activation it often meets a view that undoes it.
"""

import onnx_ir as ir

from onnxq.export.rewrites.edit import sole_producer, substitute
from onnxq.export.rewrites.high_rank import POINTWISE
from onnxq.export.rewrites.high_rank_transpose import LEGAL_RANK
from onnxq.graph import VIEWS, constant_input, dims_of

__all__ = ["sink_views"]

_WITH_A_NUMBER = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})


def sink_views(model: ir.Model) -> int:
    """Move every view that only such an operator reads behind it.

    Operators on two tensors count where the other one is a single constant number. A view of a
    value of more than four dimensions stays where it is: the operator is better off behind it.
    """
    return sum(_sink(model.graph, node) for node in tuple(model.graph))


def _sink(graph: ir.Graph, node: ir.Node) -> int:
    place = _data_of(node)
    shape = None if place is None else sole_producer(node.inputs[place], VIEWS)
    if place is None or shape is None:
        return 0
    rank = len(dims_of(shape.inputs[0]) or ())
    operands = [constant_input(node, i) for i in range(len(node.inputs)) if i != place]
    if not max((c.ndim for c in operands if c is not None), default=0) <= rank <= LEGAL_RANK:
        return 0
    inputs = [shape.inputs[0] if i == place else value for i, value in enumerate(node.inputs)]
    first = ir.node(node.op_type, inputs, node.attributes)
    last = ir.node(shape.op_type, [first.outputs[0], *shape.inputs[1:]], shape.attributes)
    substitute(graph, node, [first, last])
    graph.remove(shape, safe=True)
    return 1


def _data_of(node: ir.Node) -> int | None:
    """Which input the operator computes its output from, element by element."""
    if node.domain or len(node.outputs) != 1:
        return None
    if node.op_type in POINTWISE:
        return 0
    if node.op_type not in _WITH_A_NUMBER or len(node.inputs) != 2:
        return None
    for place in (0, 1):
        other, data = constant_input(node, 1 - place), dims_of(node.inputs[place])
        if other is not None and other.size == 1 and data is not None and other.ndim <= len(data):
            return place
    return None
