"""Einsum → MatMul, which has integer kernels everywhere; or the Transpose or Mul that it is.

An index of both operands and of the result counts products that lie side by side (batch), one of
both operands alone is summed over, one of a single operand and the result is a row or a column.
"""

from dataclasses import dataclass
from string import ascii_letters

import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, product_of, substitute, view, viewed
from onnxq.graph import constant_input, dims_of

__all__ = ["einsum_to_matmul"]


def einsum_to_matmul(model: ir.Model) -> int:
    """Every Einsum of two operands that is a batched matrix product up to views and Transposes.

    A constant operand becomes the second one, transposed beforehand. Left alone: an index that
    stands twice in one operand, a sum over one operand alone, a length of 1 against another, more
    than two operands, and more free dimensions than a view can have.
    """
    graph = model.graph
    return sum(_lower(graph, node) for node in tuple(graph) if node.op_type == "Einsum")


@dataclass(frozen=True)
class _Operand:
    """A value, and the index of each of its axes."""

    value: ir.Value
    indices: str

    def arranged(
        self, graph: ir.Graph, groups: tuple[str, ...], sizes: dict[str, int | None], fold: bool
    ) -> tuple[ir.Value, list[ir.Node]]:
        """Axes in the order of ``groups``; with ``fold`` each group is one axis."""
        order = "".join(groups)
        perm = [self.indices.index(letter) for letter in order]
        shape = [product_of([sizes[letter] for letter in group]) for group in groups]
        constant = ir.convenience.get_const_tensor(self.value)
        if constant is not None:
            array = constant.numpy().transpose(perm)
            made = array.reshape([-1 if n is None else n for n in shape]) if fold else array
            return add_constant(graph, "operand", made), []
        value, nodes = self.value, []
        if perm != sorted(perm):
            nodes.append(ir.node("Transpose", [value], {"perm": perm}))
            value = nodes[-1].outputs[0]
        if fold and any(len(group) != 1 for group in groups):
            nodes.append(view(graph, value, shape))
            value = nodes[-1].outputs[0]
        return value, nodes


def _lower(graph: ir.Graph, node: ir.Node) -> int:
    parsed = _parsed(node)
    sizes = None if parsed is None else _sizes(node, parsed[0])
    if parsed is None or sizes is None:
        return 0
    indices, result = parsed
    values = [value for value in node.inputs if value is not None]
    operands = [_Operand(value, letters) for value, letters in zip(values, indices, strict=True)]
    if len(operands) == 2 and constant_input(node, 0) is not None:
        operands.reverse()
    if any(len(set(letters)) < len(letters) for letters in (*indices, result)):
        return 0
    match operands:
        case [single] if set(single.indices) == set(result):
            perm = [single.indices.index(letter) for letter in result]
            nodes = [ir.node("Transpose", [single.value], {"perm": perm})]
        case [left, right] if set(left.indices) ^ set(right.indices) <= set(result):
            nodes = _product(graph, left, right, result, sizes)
        case _:
            nodes = []
    if nodes:
        substitute(graph, node, nodes)
    return min(len(nodes), 1)


def _product(
    graph: ir.Graph, left: _Operand, right: _Operand, result: str, sizes: dict[str, int | None]
) -> list[ir.Node]:
    """The nodes of a product of two; none if a view would have two free dimensions."""
    both = set(left.indices) & set(right.indices)
    batch = "".join(letter for letter in result if letter in both)
    summed = "".join(letter for letter in left.indices if letter in both and letter not in result)
    rows = "".join(letter for letter in result if letter not in right.indices)
    columns = "".join(letter for letter in result if letter not in left.indices)
    if not summed and not (rows and columns):
        return _elementwise(graph, left, right, result, sizes)
    groups: list[tuple[str, ...]] = [
        (batch, rows, summed),
        (batch, summed, columns),
        (batch, rows, columns),
    ]
    if not batch:
        groups = [group[1:] for group in groups]
    if any(sum(sizes[letter] is None for letter in "".join(group)) > 1 for group in groups):
        return []
    first, nodes = left.arranged(graph, groups[0], sizes, True)
    second, more = right.arranged(graph, groups[1], sizes, True)
    nodes += [*more, ir.node("MatMul", [first, second])]
    made = "".join(groups[2])
    if any(len(group) != 1 for group in groups[2]):
        nodes.append(view(graph, nodes[-1].outputs[0], [sizes[letter] for letter in made]))
    if made != result:
        perm = [made.index(letter) for letter in result]
        nodes.append(ir.node("Transpose", [nodes[-1].outputs[0]], {"perm": perm}))
    return nodes


def _elementwise(
    graph: ir.Graph, left: _Operand, right: _Operand, result: str, sizes: dict[str, int | None]
) -> list[ir.Node]:
    """Nothing is summed, and one operand has all indices: the other one is broadcast to it."""
    values, nodes = [], []
    for operand in (left, right):
        own = "".join(letter for letter in result if letter in operand.indices)
        value, more = operand.arranged(graph, tuple(own), sizes, False)
        if own != result:
            shape = [sizes[letter] if letter in own else 1 for letter in result]
            if shape.count(None) > 1:
                return []
            value = viewed(graph, value, shape, more)
        values.append(value)
        nodes += more
    return [*nodes, ir.node("Mul", values)]


def _parsed(node: ir.Node) -> tuple[list[str], str] | None:
    """The indices of every operand and of the result, an ellipsis written out as indices."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    before, arrow, result = equation.partition("->")
    indices = before.split(",")
    ranks = [None if (dims := dims_of(value)) is None else len(dims) for value in node.inputs]
    if len(indices) != len(ranks) or None in ranks:
        return None
    spare = [letter for letter in ascii_letters if letter not in equation]
    lengths = {
        rank - len(letters.replace("...", ""))
        for letters, rank in zip(indices, ranks, strict=True)
        if "..." in letters and rank is not None
    }
    if len(lengths) > 1 or min(lengths, default=0) < 0 or max(lengths, default=0) > len(spare):
        return None  # ellipses of different lengths broadcast
    dots = "".join(spare[: max(lengths, default=0)])
    indices = [letters.replace("...", dots) for letters in indices]
    if not arrow:
        named = sorted(set("".join(indices)) - set(dots))
        result = dots + "".join(c for c in named if "".join(indices).count(c) == 1)
    if any(len(letters) != rank for letters, rank in zip(indices, ranks, strict=True)):
        return None
    result = result.replace("...", dots)
    return (indices, result) if set(result) <= set("".join(indices)) else None


def _sizes(node: ir.Node, indices: list[str]) -> dict[str, int | None] | None:
    """The length of every index; None where two operands do not agree on one, or one is 0."""
    sizes: dict[str, int | None] = {}
    for value, letters in zip(node.inputs, indices, strict=True):
        for letter, dim in zip(letters, dims_of(value) or (), strict=True):
            if dim == 0 or sizes.setdefault(letter, dim) != dim:
                return None
    return sizes
