"""Chains of Reshape, Flatten, Squeeze and Unsqueeze → one Reshape in its plainest form."""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import (
    add_constant,
    constant_input,
    dims_of,
    sole_producer,
    substitute,
)

__all__ = ["drop_allowzero", "merge_reshapes"]

_VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})


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
    merged = 0
    for node in tuple(model.graph):
        if node.op_type not in _VIEWS:
            continue
        first = sole_producer(node.inputs[0], _VIEWS)
        target = _target(node)
        if first is None or target is None:
            continue
        shape = add_constant(model.graph, "shape", target)
        substitute(model.graph, node, [ir.node("Reshape", [first.inputs[0], shape])])
        model.graph.remove(first, safe=True)
        merged += 1
    return merged


def _target(node: ir.Node) -> np.ndarray | None:
    """What to give a Reshape so that it makes the shape of this node's output."""
    dims = dims_of(node.outputs[0])
    if dims is not None and dims.count(None) <= 1 and 0 not in dims:
        return np.array([-1 if dim is None else dim for dim in dims], np.int64)
    given = constant_input(node, 1) if node.op_type == "Reshape" else None
    return None if given is None or 0 in given else given.astype(np.int64)
