"""The few moves that every rewrite is made of."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.graph import constant_of

__all__ = ["add_constant", "constant_input", "dims_of", "sole_producer", "substitute"]


def sole_producer(value: ir.Value | None, op_types: frozenset[str]) -> ir.Node | None:
    """The node of one of ``op_types`` that makes ``value``, if nothing else reads ``value``."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    node = value.producer()
    return node if node is not None and not node.domain and node.op_type in op_types else None


def constant_input(node: ir.Node, index: int) -> Shaped[np.ndarray, "..."] | None:
    """The constant at an input of a node; None if it is left out or computed at run time."""
    return constant_of(node.inputs[index]) if index < len(node.inputs) else None


def dims_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Shape with None for every free dimension; None if not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def add_constant(graph: ir.Graph, name: str, array: Shaped[np.ndarray, "..."]) -> ir.Value:
    """A new initializer whose name begins with ``name``."""
    taken, number = graph.initializers, 0
    while (unique := f"{name}.{number}") in taken:
        number += 1
    value = ir.Value(
        name=unique,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
        const_value=ir.tensor(np.ascontiguousarray(array), name=unique),
    )
    graph.register_initializer(value)
    return value


def substitute(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put the chain ``new`` where ``old`` stands; the last of it makes what ``old`` made."""
    ir.convenience.replace_nodes_and_values(
        graph, old, [old], list(new), [old.outputs[0]], [new[-1].outputs[0]]
    )
