"""Transpose of more than four dimensions → Transposes of four or fewer, with views around them.

Neighbouring axes that stay neighbours move as one block, and axes of length 1 do not move at all.
What then still has more than four blocks is a row of exchanges of two neighbouring blocks, each a
Transpose of four dimensions or fewer.
"""

import onnx_ir as ir

from onnxq.export.rewrites.edit import Dims, product_of, substitute, view
from onnxq.graph import dims_of

__all__ = ["LEGAL_RANK", "lower_transposes"]

LEGAL_RANK = 4
Move = tuple[list[int | None], list[int]]  # the shape to look at the elements in, and perm


def lower_transposes(model: ir.Model) -> int:
    """Every Transpose of higher rank whose input the graph computes itself.

    One that reads a graph input of that rank is left: the input stays what it is, and rearranging
    it is the host's. Two free dimensions are too many for a view.
    """
    graph = model.graph
    return sum(_lower(graph, node) for node in tuple(graph) if node.op_type == "Transpose")


def _lower(graph: ir.Graph, node: ir.Node) -> int:
    data = node.inputs[0]
    dims, given = dims_of(data), dims_of(node.outputs[0])
    if data is None or dims is None or given is None or len(dims) <= LEGAL_RANK:
        return 0
    if data.is_graph_input() or dims.count(None) > 1 or 0 in dims or 0 in given:
        return 0
    perm = node.attributes.get_ints("perm") or range(len(dims))[::-1]
    nodes: list[ir.Node] = []
    for shape, order in _moves(list(dims), list(perm)):
        nodes.append(view(graph, data, shape))
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": order}))
        data = nodes[-1].outputs[0]
    substitute(graph, node, [*nodes, view(graph, data, given)])
    return 1


def _moves(dims: list[int | None], perm: list[int]) -> list[Move]:
    """Transposes of legal rank that, one after the other, do what ``perm`` does to ``dims``."""
    sizes, order = _blocks(dims, perm)
    if order == sorted(order):
        return []
    if len(order) <= LEGAL_RANK:
        return [(sizes, order)]
    start = next(i for i, block in enumerate(order) if block != i)
    block = order[start]
    cut = [sizes[:start], sizes[start:block], [sizes[block]], sizes[block + 1 :]]
    present = [i for i, part in enumerate(cut) if part]
    swapped = [i for i in (0, 2, 1, 3) if i in present]
    move = [product_of(cut[i]) for i in present], [present.index(i) for i in swapped]
    now = [*range(start), block, *range(start, block), *range(block + 1, len(order))]
    return [move, *_moves([sizes[i] for i in now], [now.index(i) for i in order])]


def _blocks(dims: Dims, perm: list[int]) -> Move:
    """The same Transpose of as few axes as can be: sizes of the blocks, and their new order."""
    axes = [axis for axis, dim in enumerate(dims) if dim != 1]
    runs: list[list[int]] = []
    for place in (axes.index(axis) for axis in perm if dims[axis] != 1):
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    in_order = sorted(runs)
    sizes = [product_of([dims[axes[place]] for place in run]) for run in in_order]
    return sizes, [in_order.index(run) for run in runs]
