"""Transposes in a row → one, and a Transpose that moves nothing → a Reshape."""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, sole_producer, substitute
from onnxq.graph import dims_of

__all__ = ["merge_transposes"]


def merge_transposes(model: ir.Model) -> int:
    """Compose neighbours; where only axes of length 1 move, no element does: a Reshape does it."""
    return sum(
        _compose(model.graph, node) or _flatten(model.graph, node)
        for node in tuple(model.graph)
        if node.op_type == "Transpose" and node.attributes.get_ints("perm") is not None
    )


def _compose(graph: ir.Graph, second: ir.Node) -> int:
    first = sole_producer(second.inputs[0], frozenset({"Transpose"}))
    inner = None if first is None else first.attributes.get_ints("perm")
    outer = second.attributes.get_ints("perm")
    if first is None or inner is None or outer is None:
        return 0
    perm = [inner[axis] for axis in outer]
    moved = perm != list(range(len(perm)))
    new = ir.node("Transpose", [first.inputs[0]], {"perm": perm})
    substitute(graph, second, [new if moved else ir.node("Identity", [first.inputs[0]])])
    graph.remove(first, safe=True)
    return 1


def _flatten(graph: ir.Graph, node: ir.Node) -> int:
    dims, perm = dims_of(node.inputs[0]), node.attributes.get_ints("perm")
    if dims is None or perm is None or dims.count(None) > 1 or 0 in dims:
        return 0
    kept = [axis for axis in perm if dims[axis] != 1]
    if kept != sorted(kept):
        return 0
    if list(perm) == sorted(perm):
        substitute(graph, node, [ir.node("Identity", [node.inputs[0]])])
        return 1
    target = np.array([-1 if dims[axis] is None else dims[axis] for axis in perm], np.int64)
    shape = add_constant(graph, "shape", target)
    substitute(graph, node, [ir.node("Reshape", [node.inputs[0], shape])])
    return 1
