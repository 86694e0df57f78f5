"""Layers on a batch that the graph makes itself → layers on a batch of one.

A window of n patches is a batch of n to a convolution, and hardware that runs one picture at a time
refuses it. The n pictures are laid side by side as channels: ``(n, c, h, w)`` is looked at as
``(1, n · c, h, w)``. A pool does not mind; a convolution becomes n that share weight and bias.
"""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import (
    add_constant,
    sole_producer,
    sole_reader,
    static_dims,
    substitute,
    view,
)
from onnxq.graph import constant_input

__all__ = ["unroll_batch"]

MOST = 64  # copies of a layer: beyond, a graph of parts that runs in a loop is the better way
_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_ACTIVATIONS = frozenset(
    {"Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"}
)


def unroll_batch(model: ir.Model) -> int:
    """Every Conv, ConvTranspose and pool on a fixed batch from 2 to 64.

    An activation behind a convolution goes with it. Parts that are joined and cut again in the same
    places go from one layer to the next.
    """
    graph = model.graph
    found = 0
    for node in tuple(graph):
        dims = static_dims(node.inputs[0]) if node.inputs else None
        if node.graph is None or node.domain or dims is None:
            continue
        if node.op_type == "Split":
            found += _reconnect(graph, node)
        elif len(dims) > 2 and 1 < dims[0] <= MOST:
            found += _unroll(graph, node, dims)
    return found


def _unroll(graph: ir.Graph, node: ir.Node, dims: tuple[int, ...]) -> int:
    layers = [node]
    data, made = node.inputs[0], static_dims(node.outputs[0])
    if data is None or made is None or any(value.uses() for value in node.outputs[1:]):
        return 0
    wide = view(graph, data, (1, dims[0] * dims[1], *dims[2:]))
    if node.op_type in _POOLS:
        inner = [ir.node(node.op_type, [wide.outputs[0]], node.attributes)]
    elif node.op_type in _CONVOLUTIONS:
        while (after := sole_reader(layers[-1].outputs[0])) is not None and _is_activation(after):
            layers.append(after)
        inner = _copies(graph, layers, wide.outputs[0], dims)
    else:
        return 0
    nodes = [wide, *inner, view(graph, inner[-1].outputs[0], made)]
    substitute(graph, layers[-1], nodes)
    for layer in reversed(layers[:-1]):
        graph.remove(layer, safe=True)
    return 1


def _is_activation(node: ir.Node) -> bool:
    """One value in, one out, and every other input constant."""
    others = range(1, len(node.inputs))
    return node.op_type in _ACTIVATIONS and all(
        node.inputs[i] is None or constant_input(node, i) is not None for i in others
    )


def _copies(
    graph: ir.Graph, layers: list[ir.Node], data: ir.Value, dims: tuple[int, ...]
) -> list[ir.Node]:
    """Split, ``layers`` once for every picture, Concat."""
    count, channels = dims[:2]
    sizes = add_constant(graph, "sizes", np.full(count, channels, np.int64))
    split = ir.node("Split", [data, sizes], {"axis": 1}, num_outputs=count)
    nodes, ends = [split], []
    for part in split.outputs:
        value = part
        for layer in layers:
            nodes.append(ir.node(layer.op_type, [value, *layer.inputs[1:]], layer.attributes))
            value = nodes[-1].outputs[0]
        ends.append(value)
    return [*nodes, ir.node("Concat", ends, {"axis": 1})]


def _reconnect(graph: ir.Graph, split: ir.Node) -> int:
    """Read the parts of a Concat where a Split would cut them out again."""
    join = sole_producer(split.inputs[0], frozenset({"Concat"}))
    if join is None or len(join.inputs) != len(split.outputs):
        return 0
    rank = len(static_dims(split.inputs[0]) or ())
    axes = join.attributes.get_int("axis", 0), split.attributes.get_int("axis", 0)
    parts = [static_dims(value) for value in join.inputs]
    if len({axis % rank for axis in axes}) > 1 or None in parts:
        return 0
    if parts != [static_dims(value) for value in split.outputs]:
        return 0
    if any(value.is_graph_output() for value in split.outputs):
        return 0
    ir.convenience.replace_all_uses_with(split.outputs, [v for v in join.inputs if v is not None])
    graph.remove([split, join], safe=True)
    return 1
