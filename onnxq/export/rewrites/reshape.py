"""Chains of Reshape, Flatten, Squeeze and Unsqueeze → one Reshape in its plainest form."""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, sole_producer, substitute
from onnxq.graph import VIEWS, constant_input, dims_of

__all__ = ["drop_allowzero", "merge_reshapes"]


def drop_allowzero(model: ir.Model) -> int:
    """``allowzero`` says what a 0 in the shape means; without one it only costs opset 14."""
    count = 0
    for node in model.graph:
        if node.op_type == "Reshape" and "allowzero" in node.attributes:
            shape = constant_input(node, 1)
            if shape is not None and 0 not in shape:
                del node.attributes["allowzero"]
                count += 1
    return count


def merge_reshapes(model: ir.Model) -> int:
    """A chain of views keeps the order of its elements, so its last shape is all that counts.

    Merged only where the last shape is known but for at most one dimension.
    """
    return sum(_merge(model.graph, node) for node in tuple(model.graph) if node.op_type in VIEWS)


def _merge(graph: ir.Graph, node: ir.Node) -> int:
    """Merge a view with the one before it, or drop it if it changes nothing; 1 if it was done."""
    if _is_undone(node, node):
        substitute(graph, node, [ir.node("Identity", [node.inputs[0]])])
        return 1
    first = sole_producer(node.inputs[0], VIEWS)
    target = _target(node)
    if first is None or target is None:
        return 0
    if _is_undone(first, node):
        new = ir.node("Identity", [first.inputs[0]])
    else:
        new = ir.node("Reshape", [first.inputs[0], add_constant(graph, "shape", target)])
    substitute(graph, node, [new])
    graph.remove(first, safe=True)
    return 1


def _is_undone(first: ir.Node, last: ir.Node) -> bool:
    """True if the last view gives back the shape that the first was given."""
    given, made = dims_of(first.inputs[0]), dims_of(last.outputs[0])
    return given is not None and given == made and given.count(None) <= 1


def _target(node: ir.Node) -> np.ndarray | None:
    """What to give a Reshape so that it makes the shape of this node's output."""
    dims = dims_of(node.outputs[0])
    if dims is not None and dims.count(None) <= 1 and 0 not in dims:
        return np.array([-1 if dim is None else dim for dim in dims], np.int64)
    given = constant_input(node, 1) if node.op_type == "Reshape" else None
    return None if given is None or 0 in given else given.astype(np.int64)
