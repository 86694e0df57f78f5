"""Expand → what broadcasting does by itself; else copies side by side."""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, static_dims, substitute, viewed
from onnxq.graph import constant_input

__all__ = ["drop_expand", "expand_to_copies"]

_BROADCASTING = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
        "Mean", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Sum", "Where", "Xor",
    }
)  # fmt: skip
_MOST_ELEMENTS = 1 << 20  # of a constant that is written out
_MOST_COPIES = 8  # joined by Concat; more are a Tile
Dim = int | str | None


def drop_expand(model: ir.Model) -> int:
    """Expand that changes no shape, or that only feeds operators which would expand it themselves;
    a constant is written out where it is small."""
    graph = model.graph
    return sum(_drop(graph, node) for node in tuple(graph) if node.op_type == "Expand")


def expand_to_copies(model: ir.Model) -> int:
    """Every other Expand of static shapes: a Concat of the value with itself, or a Tile.

    Concat has integer kernels and leaves scales alone.
    """
    graph = model.graph
    return sum(_copy(graph, node) for node in tuple(graph) if node.op_type == "Expand")


def _drop(graph: ir.Graph, node: ir.Node) -> int:
    data, made = node.inputs[0], node.outputs[0]
    if data is None:
        return 0
    before, after = _shape(data), _shape(made)
    constant, static = constant_input(node, 0), static_dims(made)
    if before == after and before is not None and None not in before:
        substitute(graph, node, [ir.node("Identity", [data])])
    elif constant is not None and static is not None and np.prod(static) <= _MOST_ELEMENTS:
        written = add_constant(graph, "expanded", np.broadcast_to(constant, static))
        substitute(graph, node, [ir.node("Identity", [written])])
    elif (
        made.uses()
        and not made.is_graph_output()
        and all(_broadcasts(use.node, use.idx, before) for use in made.uses())
    ):
        ir.convenience.replace_all_uses_with(made, data)
        graph.remove(node, safe=True)
    else:
        return 0
    return 1


def _shape(value: ir.Value | None) -> tuple[Dim, ...] | None:
    """The shape with names for free dimensions; None if not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def _broadcasts(reader: ir.Node, place: int, shape: tuple[Dim, ...] | None) -> bool:
    """Whether the reader gives the same shape for an input of ``shape`` at ``place``."""
    made = _shape(reader.outputs[0])
    if reader.op_type not in _BROADCASTING or shape is None or made is None or None in made:
        return False
    others = [_shape(value) for i, value in enumerate(reader.inputs) if i != place]
    known = [shape, *(other for other in others if other is not None)]
    padded = [(1,) * (len(made) - len(dims)) + dims for dims in known]
    return all(any(dims[axis] == dim for dims in padded) for axis, dim in enumerate(made))


def _copy(graph: ir.Graph, node: ir.Node) -> int:
    data, before, after = node.inputs[0], static_dims(node.inputs[0]), static_dims(node.outputs[0])
    if data is None or before is None or after is None:
        return 0
    padded = (1,) * (len(after) - len(before)) + before
    repeats = [new // old for old, new in zip(padded, after, strict=True)]
    copied = [axis for axis, count in enumerate(repeats) if count > 1]
    nodes: list[ir.Node] = []
    value = viewed(graph, data, padded, nodes)
    if len(copied) == 1 and repeats[copied[0]] <= _MOST_COPIES:
        copies = [value] * repeats[copied[0]]
        nodes.append(ir.node("Concat", copies, {"axis": copied[0]}))
    else:
        counts = add_constant(graph, "repeats", np.array(repeats, np.int64))
        nodes.append(ir.node("Tile", [value, counts]))
    substitute(graph, node, nodes)
    return 1
