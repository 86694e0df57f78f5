"""Convolutions and pools over one axis → the same over two, of which the first has length 1.

A kernel of height 1 has no limit on its width on an NPU, and most compilers know pictures better
than series. ONNX pads a Conv with zeros only; any other padding is a Pad of its own and stays.
"""

import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, substitute, view
from onnxq.graph import constant_input, dims_of

__all__ = ["conv1d_to_conv2d"]

_WEIGHTED = frozenset({"Conv", "ConvTranspose"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_FILL = {"kernel_shape": 1, "strides": 1, "dilations": 1, "output_padding": 0, "output_shape": 1}


def conv1d_to_conv2d(model: ir.Model) -> int:
    """``(n, c, l)`` is looked at as ``(n, c, 1, l)``; groups, stride, dilation and padding stay.

    Left alone: a weight that is computed, a pool that gives indices too, two free dimensions.
    A weight that several convolutions share is shared afterwards.
    """
    weights: dict[ir.Value, ir.Value] = {}
    return sum(
        _widen(model.graph, node, weights)
        for node in tuple(model.graph)
        if node.op_type in _WEIGHTED | _POOLS and not node.domain
    )


def _widen(graph: ir.Graph, node: ir.Node, weights: dict[ir.Value, ir.Value]) -> int:
    data, made = node.inputs[0], dims_of(node.outputs[0])
    dims = dims_of(data)
    if data is None or dims is None or made is None or len(dims) != 3:
        return 0
    free = max(dims.count(None), made.count(None)) > 1
    if free or 0 in (*dims, *made) or any(value.uses() for value in node.outputs[1:]):
        return 0
    inputs: list[ir.Value | None] = list(node.inputs)
    if node.op_type in _WEIGHTED:
        inputs[1] = _widened_weight(graph, node, weights)
        if inputs[1] is None:
            return 0
    before = view(graph, data, (*dims[:2], 1, dims[2]))
    layer = ir.node(node.op_type, [before.outputs[0], *inputs[1:]], _widened_attributes(node))
    substitute(graph, node, [before, layer, view(graph, layer.outputs[0], made)])
    return 1


def _widened_weight(
    graph: ir.Graph, node: ir.Node, weights: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """The weight ``(m, c, k)`` as ``(m, c, 1, k)``; None if it is computed."""
    value, weight = node.inputs[1], constant_input(node, 1)
    if value is None or weight is None:
        return None
    if value not in weights:
        weights[value] = add_constant(graph, "widened", weight[:, :, None, :])
    return weights[value]


def _widened_attributes(node: ir.Node) -> dict[str, ir.Attr]:
    """Every attribute that lists an axis lists a first one, over which nothing happens."""
    attributes = dict(node.attributes)
    for name, fill in _FILL.items():
        given = node.attributes.get_ints(name)
        if given is not None:
            attributes[name] = ir.AttrInt64s(name, [fill, *given])
    pads = node.attributes.get_ints("pads")
    if pads is not None:
        attributes["pads"] = ir.AttrInt64s("pads", [0, pads[0], 0, pads[1]])
    return attributes
