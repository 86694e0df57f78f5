"""The few moves that every rewrite is made of."""

from collections.abc import Sequence
from math import prod

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.graph import constant_of, dims_of

__all__ = [
    "Dims",
    "add_constant",
    "opset_of",
    "product_of",
    "sole_producer",
    "sole_reader",
    "static_dims",
    "substitute",
    "view",
    "viewed",
]

Dims = Sequence[int | None]


def sole_producer(value: ir.Value | None, op_types: frozenset[str]) -> ir.Node | None:
    """The node of one of ``op_types`` that makes ``value``, if nothing else reads ``value``."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = value.producer()
    return node if node is not None and not node.domain and node.op_type in op_types else None


def sole_reader(value: ir.Value) -> ir.Node | None:
    """The one node that reads ``value`` in one place, if it is no graph output."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def static_dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape, if every dimension is known and none is 0: what a view can be made of."""
    dims = dims_of(value)
    if dims is None or None in dims or 0 in dims:
        return None
    return tuple(dim for dim in dims if dim is not None)


def product_of(dims: Dims) -> int | None:
    """Elements of a shape; None if a dimension is free."""
    known = [dim for dim in dims if dim is not None]
    return prod(known) if len(known) == len(dims) else None


def opset_of(model: ir.Model) -> int:
    """The version of ONNX's own operators that the graph is written in."""
    return int(model.graph.opset_imports.get("", 1))


def add_constant(graph: ir.Graph, name: str, array: Shaped[np.ndarray, "..."]) -> ir.Value:
    """A new initializer whose name begins with ``name``."""
    taken, number = graph.initializers, 0
    while (unique := f"{name}.{number}") in taken:
        number += 1
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(np.array(array, order="C"), name=unique),
    )
    graph.register_initializer(value)
    return value


def view(graph: ir.Graph, value: ir.Value, dims: Dims) -> ir.Node:
    """A Reshape of ``value`` to ``dims``, of which at most one may be free and none is 0."""
    target = np.array([-1 if dim is None else dim for dim in dims], np.int64)
    return ir.node("Reshape", [value, add_constant(graph, "shape", target)])


def viewed(graph: ir.Graph, value: ir.Value, dims: Dims, nodes: list[ir.Node]) -> ir.Value:
    """``value`` in the shape ``dims``: itself, a new constant, or what a view appended gives."""
    if dims_of(value) == tuple(dims):
        return value
    constant = constant_of(value)
    if constant is not None:
        shape = [-1 if dim is None else dim for dim in dims]
        return add_constant(graph, "viewed", constant.reshape(shape))
    nodes.append(view(graph, value, dims))
    return nodes[-1].outputs[0]


def substitute(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put the chain ``new`` where ``old`` stands; the last of it makes what ``old`` made."""
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], list(new), [old.outputs[0]], [new[-1].outputs[0]]
    )
