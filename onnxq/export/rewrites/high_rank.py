"""Operators on values of more than four dimensions → the same operators on four or fewer.

Neighbouring axes that an operator treats alike become one axis: an Add does not care where one axis
ends and the next begins, a Softmax only about its own. The views around it then merge with those of
its neighbours.
"""

from collections.abc import Callable, Hashable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, static_dims, substitute, view, viewed
from onnxq.export.rewrites.high_rank_transpose import LEGAL_RANK, lower_transposes
from onnxq.graph import VIEWS, constant_input

__all__ = ["POINTWISE", "lower_ranks"]

POINTWISE = frozenset(
    {
        "Abs", "Cast", "Ceil", "Clip", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid",
        "HardSwish", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round",
        "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
_BROADCASTING = frozenset(
    {
        "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max",
        "Mean", "Min", "Mod", "Mul", "Or", "Pow", "PRelu", "Sub", "Sum", "Where", "Xor",
    }
)  # fmt: skip
_REDUCING = frozenset(
    {
        "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
        "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
    }
)  # fmt: skip
Dims = tuple[int, ...]
Groups = list[list[int]]  # axes that become one axis, in order
Lowering = Callable[[ir.Graph, ir.Node, Dims], "list[ir.Node] | None"]


def lower_ranks(model: ir.Model) -> int:
    """Every operator of a known kind and static shapes whose axes fall into four groups or fewer,
    and every Transpose.

    A view of a view of high rank begins where that one began.
    """
    graph, found = model.graph, lower_transposes(model)
    for node in tuple(graph):
        if node.op_type in VIEWS:
            found += _reroot(graph, node)
            continue
        data = static_dims(node.inputs[0]) if node.inputs else None
        ranks = [len(dims) for value in node.inputs if (dims := static_dims(value)) is not None]
        lowering = _LOWERINGS.get(node.op_type)
        if lowering is None or data is None or max(ranks) <= LEGAL_RANK:
            continue
        nodes = lowering(graph, node, data)
        if nodes is not None:
            _replace(graph, node, nodes)
            found += 1
    return found


def _reroot(graph: ir.Graph, node: ir.Node) -> int:
    """A view of a view of high rank becomes a view of what that one was made from."""
    first = node.inputs[0].producer() if node.inputs[0] is not None else None
    dims = static_dims(node.outputs[0])
    if first is None or first.op_type not in VIEWS or dims is None or first.inputs[0] is None:
        return 0
    if len(static_dims(first.outputs[0]) or ()) <= LEGAL_RANK:
        return 0
    substitute(graph, node, [view(graph, first.inputs[0], dims)])
    return 1


def _replace(graph: ir.Graph, old: ir.Node, new: Sequence[ir.Node]) -> None:
    """Put ``new`` where ``old`` stands; its last nodes make, in order, what ``old`` made."""
    count = len(old.outputs)
    made = [node.outputs[0] for node in new[-count:]]
    ir.convenience.replace_nodes_and_values(graph, old, [old], list(new), old.outputs, made)


# --- axes that are treated alike ----------------------------------------------------------------


def _grouped(labels: Sequence[Hashable | None]) -> Groups | None:
    """Neighbours of equal label together, axes without one left out; None if too many remain."""
    groups: Groups = []
    last: Hashable | None = None
    for axis, label in enumerate(labels):
        if label is None:
            continue
        if groups and label == last:
            groups[-1].append(axis)
        else:
            groups.append([axis])
        last = label
    return None if len(groups) > LEGAL_RANK else groups or [[0]]


def _folded(dims: Dims, groups: Groups) -> Dims:
    return tuple(prod(dims[axis] for axis in group) for group in groups)


def _apart(dims: Dims, touched: set[int]) -> Groups | None:
    """Groups of an operator that knows the axes ``touched`` one by one."""
    return _grouped(
        [axis if axis in touched else None if dim == 1 else "rest" for axis, dim in enumerate(dims)]
    )


def _place(groups: Groups, axis: int) -> int:
    return next(place for place, group in enumerate(groups) if axis in group)


# --- one function a family of operators ---------------------------------------------------------


def _pointwise(graph: ir.Graph, node: ir.Node, data: Dims) -> list[ir.Node]:
    nodes: list[ir.Node] = []
    folded = (data[0], prod(data[1:-2]), *data[-2:])
    first = viewed(graph, _value(node, 0), folded, nodes)
    nodes.append(ir.node(node.op_type, [first, *node.inputs[1:]], node.attributes))
    return [*nodes, view(graph, nodes[-1].outputs[0], data)]


def _global_pool(graph: ir.Graph, node: ir.Node, data: Dims) -> list[ir.Node]:
    nodes: list[ir.Node] = []
    first = viewed(graph, _value(node, 0), (*data[:2], prod(data[2:-1]), data[-1]), nodes)
    nodes.append(ir.node(node.op_type, [first]))
    return [*nodes, view(graph, nodes[-1].outputs[0], (*data[:2], *[1] * (len(data) - 2)))]


def _broadcasting(graph: ir.Graph, node: ir.Node, _: Dims) -> list[ir.Node] | None:
    given = static_dims(node.outputs[0])
    shapes = [static_dims(value) for value in node.inputs]
    if given is None or any(shape is None for shape in shapes):
        return None
    padded = [(1,) * (len(given) - len(shape)) + shape for shape in shapes if shape is not None]
    groups = _grouped(
        [
            None if dim == 1 else tuple(shape[axis] == 1 for shape in padded)
            for axis, dim in enumerate(given)
        ]
    )
    if groups is None:
        return None
    nodes: list[ir.Node] = []
    inputs = [
        viewed(graph, _value(node, i), _folded(shape, groups), nodes)
        for i, shape in enumerate(padded)
    ]
    nodes.append(ir.node(node.op_type, inputs, node.attributes))
    return [*nodes, view(graph, nodes[-1].outputs[0], given)]


def _matmul(graph: ir.Graph, node: ir.Node, _: Dims) -> list[ir.Node] | None:
    given = static_dims(node.outputs[0])
    left, right = static_dims(node.inputs[0]), static_dims(node.inputs[1])
    if given is None or left is None or right is None or min(len(left), len(right)) < 2:
        return None
    rank = len(given)
    left, right = ((1,) * (rank - len(dims)) + dims for dims in (left, right))
    batch = [
        None if given[axis] == 1 else (left[axis] == 1, right[axis] == 1)
        for axis in range(rank - 2)
    ]
    groups = _grouped([*batch, "row", "column"])
    if groups is None:
        return None
    nodes: list[ir.Node] = []
    inputs = [
        viewed(graph, _value(node, i), _folded(dims, groups), nodes)
        for i, dims in enumerate((left, right))
    ]
    nodes.append(ir.node("MatMul", inputs))
    return [*nodes, view(graph, nodes[-1].outputs[0], given)]


def _along(graph: ir.Graph, node: ir.Node, data: Dims) -> list[ir.Node] | None:
    """Softmax, LogSoftmax, Concat and Split: they know one axis."""
    default = 0 if node.op_type == "Split" else -1
    axis = node.attributes.get_int("axis", default) % len(data)
    groups = _apart(data, {axis})
    given = [static_dims(value) for value in node.outputs]
    shapes = [static_dims(value) for value in node.inputs]
    joined = node.op_type == "Concat"
    if groups is None or any(dims is None for dims in (*given, *(shapes if joined else ()))):
        return None
    nodes: list[ir.Node] = []
    inputs = [
        viewed(graph, _value(node, i), _folded(dims, groups), nodes)
        for i, dims in enumerate(shapes)
        if dims is not None and (joined or i == 0)
    ]
    rest = () if joined else node.inputs[1:]
    attributes = {**node.attributes, "axis": ir.AttrInt64("axis", _place(groups, axis))}
    new = ir.node(node.op_type, [*inputs, *rest], attributes, num_outputs=len(node.outputs))
    views = [
        view(graph, value, dims)
        for value, dims in zip(new.outputs, given, strict=True)
        if dims is not None
    ]
    return [*nodes, new, *views]


def _reducing(graph: ir.Graph, node: ir.Node, data: Dims) -> list[ir.Node] | None:
    given = static_dims(node.outputs[0])
    as_input = len(node.inputs) > 1 and node.inputs[1] is not None
    constant = constant_input(node, 1) if as_input else None
    if given is None or (as_input and constant is None):
        return None
    axes = node.attributes.get_ints("axes", ()) if constant is None else constant.tolist()
    if not axes:
        return None  # all of them or none: onnxsim writes them out
    reduced = {axis % len(data) for axis in axes}
    groups = _grouped(
        ["reduced" if a in reduced else None if d == 1 else "kept" for a, d in enumerate(data)]
    )
    if groups is None:
        return None
    nodes: list[ir.Node] = []
    first = viewed(graph, _value(node, 0), _folded(data, groups), nodes)
    places = [place for place, group in enumerate(groups) if group[0] in reduced]
    attributes = {
        name: value for name, value in node.attributes.items() if name not in {"axes", "keepdims"}
    }
    inputs = [first]
    if as_input:
        inputs.append(add_constant(graph, "axes", np.array(places, np.int64)))
    else:
        attributes["axes"] = ir.AttrInt64s("axes", places)
    nodes.append(ir.node(node.op_type, inputs, attributes))
    return [*nodes, view(graph, nodes[-1].outputs[0], given)]


def _slice(graph: ir.Graph, node: ir.Node, data: Dims) -> list[ir.Node] | None:
    given = static_dims(node.outputs[0])
    bounds = [constant_input(node, i) for i in range(1, len(node.inputs))]
    if given is None or len(bounds) < 3 or any(bound is None for bound in bounds):
        return None
    axes = [int(axis) % len(data) for axis in np.asarray(bounds[2])]
    groups = _apart(data, set(axes))
    if groups is None:
        return None
    nodes: list[ir.Node] = []
    first = viewed(graph, _value(node, 0), _folded(data, groups), nodes)
    places = add_constant(graph, "axes", np.array([_place(groups, a) for a in axes], np.int64))
    starts, ends = node.inputs[1:3]
    nodes.append(ir.node("Slice", [first, starts, ends, places, *node.inputs[4:]]))
    return [*nodes, view(graph, nodes[-1].outputs[0], given)]


def _gather(graph: ir.Graph, node: ir.Node, data: Dims) -> list[ir.Node] | None:
    given, indices = static_dims(node.outputs[0]), constant_input(node, 1)
    axis = node.attributes.get_int("axis", 0) % len(data)
    groups = _apart(data, {axis})
    if given is None or indices is None or indices.ndim > 1 or groups is None:
        return None
    nodes: list[ir.Node] = []
    first = viewed(graph, _value(node, 0), _folded(data, groups), nodes)
    nodes.append(ir.node("Gather", [first, node.inputs[1]], {"axis": _place(groups, axis)}))
    return [*nodes, view(graph, nodes[-1].outputs[0], given)]


def _value(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    if value is None:
        raise ValueError(f"{node.op_type} leaves out its input {index}")
    return value


_LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys(_BROADCASTING, _broadcasting),
    **dict.fromkeys(_REDUCING, _reducing),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Concat", "Split"), _along),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), _global_pool),
    "MatMul": _matmul,
    "Slice": _slice,
    "Gather": _gather,
}
