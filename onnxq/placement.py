"""Which nodes a target computes on integers, and which tensors then carry Q/DQ.

Told from the graph and the target alone: calibration has to know it before there is any range.
"""

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from onnxq.errors import QuantizationError, nearest
from onnxq.graph import (
    WEIGHTED,
    constant_input,
    constant_of,
    input_channel_axis,
    output_channel_axis,
)
from onnxq.target import Target

__all__ = [
    "channel_axes",
    "data_inputs",
    "float_reasons",
    "fold_sources",
    "observed_tensors",
    "pad_fill",
    "refuse_unknown_nodes",
    "roots_of",
]

_CONSTANT_INPUTS = {
    "Conv": {1: "weight", 2: "bias"},
    "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"},
    "Clip": {1: "lower bound", 2: "upper bound"},
    "PRelu": {1: "slope"},
    "Pad": {2: "fill value"},
}
_CHOOSERS = frozenset({"TopK", "ArgMin", "ArgMax", "NonZero", "NonMaxSuppression", "Unique"})


def refuse_unknown_nodes(graph: ir.Graph, exclude: Mapping[str, str], where: str) -> None:
    """Raise QuantizationError, with the nearest name, if ``exclude`` names a node there is not."""
    names = {str(node.name) for node in graph if node.op_type != "Constant"}
    for name in exclude:
        if name not in names:
            raise QuantizationError(
                f"no node is called `{name}`; {nearest(name, names)}", where=where
            )


def observed_tensors(
    graph: ir.Graph, targets: Sequence[Target], exclude: Mapping[str, str]
) -> tuple[str, ...]:
    """Tensors whose range decides a scale on one of ``targets``, in the order of the graph: float
    inputs and outputs, and of all that carry Q/DQ the one that each takes its scale from.

    Behind operators that only move values that is what goes into the first of them; before a folded
    Relu or Clip it is what comes out.
    """
    nodes = [node for node in graph if node.op_type != "Constant"]
    wanted = {str(value.name) for value in (*graph.inputs, *graph.outputs)}
    for target in targets:
        wanted |= _wanted_on(target, nodes, exclude)
    values = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
    return tuple(
        str(value.name)
        for value in values
        if str(value.name) in wanted
        and value.dtype == ir.DataType.FLOAT
        and constant_of(value) is None
    )


def channel_axes(graph: ir.Graph, tensors: Sequence[str]) -> dict[str, int]:
    """For those of ``tensors`` that a weight multiplies: the axis of their channels.

    The first consumer with a constant weight decides; a negative axis counts from the end.
    """
    wanted = set(tensors)
    axes: dict[str, int] = {}
    for node in graph:
        name = str(node.inputs[0].name) if node.inputs and node.inputs[0] else ""
        if node.op_type in WEIGHTED and name in wanted and constant_of(node.inputs[1]) is not None:
            axes.setdefault(name, input_channel_axis(node))
    return axes


def _wanted_on(target: Target, nodes: Sequence[ir.Node], exclude: Mapping[str, str]) -> set[str]:
    reasons = float_reasons(nodes, target, exclude)
    chosen = [node for node in nodes if str(node.name) not in reasons]
    roots, folds = roots_of(chosen, target), fold_sources(chosen, target)
    wanted = set()
    for node in chosen:
        for value in (*data_inputs(node), *node.outputs):
            name = folds.get(str(value.name), str(value.name))
            wanted.add(roots.get(name, name))
        if pad_fill(node):  # may turn out to leave its input's range, and then needs its own
            wanted |= {str(value.name) for value in (node.inputs[0], node.outputs[0]) if value}
    return wanted


def float_reasons(
    nodes: Sequence[ir.Node], target: Target, exclude: Mapping[str, str]
) -> dict[str, str]:
    """Why each node that stays float does so; ``exclude`` names some with the caller's reason."""
    reasons: dict[str, str] = {}
    choosing = _choosing(nodes)
    for node in nodes:
        name = str(node.name)
        reason = exclude[name] or "excluded" if name in exclude else choosing.get(name, "")
        reason = reason or _own_reason(node, target) or _odd_form(node, target)
        if reason:
            reasons[str(node.name)] = reason
    _keep(reasons, nodes, target.folded_ops, _follows_integer(reasons, target))
    _keep(reasons, nodes, target.data_ops, _touches_integer(nodes, reasons, target))
    return reasons


def _choosing(nodes: Sequence[ir.Node]) -> dict[str, str]:
    """Nodes from whose values positions are chosen (neighbours, indices), and that as a reason.

    Rounded coordinates have other neighbours, which no scale makes good. Where a weight lies on the
    way, what is chosen was learned (scores of boxes) and is left to the quantization.
    """
    found: dict[str, str] = {}
    for chooser in nodes:
        before = _before(chooser) if chooser.op_type in _CHOOSERS else []
        if any(n.op_type in WEIGHTED and constant_of(n.inputs[1]) is not None for n in before):
            continue
        for node in before:
            what = f"{chooser.op_type} `{chooser.name}`"
            found.setdefault(str(node.name), f"{what} chooses by it, and would choose others")
    return found


def _before(node: ir.Node) -> list[ir.Node]:
    """Every node that ``node`` is computed from."""
    found: dict[ir.Node, None] = {}
    waiting = [node]
    while waiting:
        makers = [value.producer() for value in waiting.pop().inputs if value is not None]
        fresh = [maker for maker in makers if maker is not None and maker not in found]
        found.update(dict.fromkeys(fresh))
        waiting += fresh
    return list(found)


def _own_reason(node: ir.Node, target: Target) -> str:
    """Why the node cannot be integer whatever its neighbours are; empty if it can."""
    if node.op_type not in {*target.integer_ops, *target.data_ops, *target.folded_ops}:
        return f"{target.name} has no integer {node.op_type}"
    if not node.outputs or node.outputs[0].dtype != ir.DataType.FLOAT:
        return "its result is not float32"
    computed = [
        index for index, value in enumerate(node.inputs) if value and constant_of(value) is None
    ]
    for index, role in _CONSTANT_INPUTS.get(node.op_type, {}).items():
        if index in computed:
            return f"its {role} is computed at run time"
    if node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") != "nearest":
        return "only nearest Resize moves values unchanged"
    factors = [node.attributes.get_float(name, 1.0) for name in ("alpha", "beta")]
    if node.op_type == "Gemm" and factors != [1.0, 1.0]:
        return "alpha or beta is not 1"
    return ""


def _odd_form(node: ir.Node, target: Target) -> str:
    """Why this node is not what its operator type promises: to move values, to cut at zero.

    A data operator is given its input's scale, a Relu or Clip the range that holds zero.
    """
    constants = [constant_of(value) for value in node.inputs]
    if node.op_type in target.data_ops and constants[0] is not None:
        return "it moves a constant"
    if node.op_type == "Clip":
        low, high = (*constants[1:], None, None)[:2]
        if (low is not None and low > 0) or (high is not None and high < 0):
            return "its bounds leave zero out"
    if node.op_type == "Gemm" and len(constants) > 2 and constants[2] is not None:
        weight = constants[1]
        if weight is None or constants[2].shape != (weight.shape[output_channel_axis(node)],):
            return "its bias is not one number for each output"
    return ""


def _keep(
    reasons: dict[str, str],
    nodes: Sequence[ir.Node],
    op_types: Sequence[str],
    reason_of: Callable[[ir.Node], str],
) -> None:
    for node in nodes:
        if node.op_type in op_types and str(node.name) not in reasons:
            reason = reason_of(node)
            if reason:
                reasons[str(node.name)] = reason


def _follows_integer(reasons: Mapping[str, str], target: Target) -> Callable[[ir.Node], str]:
    def reason(node: ir.Node) -> str:
        producer = node.inputs[0].producer() if node.inputs[0] else None
        if (
            producer is not None
            and producer.op_type in target.integer_ops
            and str(producer.name) not in reasons
        ):
            return ""
        return "no integer operator before it to fold into"

    return reason


def _touches_integer(
    nodes: Sequence[ir.Node], reasons: Mapping[str, str], target: Target
) -> Callable[[ir.Node], str]:
    roots = roots_of(nodes, target)
    touched = {
        roots.get(str(value.name), str(value.name))
        for node in nodes
        if node.op_type not in target.data_ops and str(node.name) not in reasons
        for value in (*data_inputs(node), *node.outputs)
    }

    def reason(node: ir.Node) -> str:
        root = roots.get(str(node.outputs[0].name), "")
        return "" if root in touched else "moves values between float operators"

    return reason


def data_inputs(node: ir.Node) -> list[ir.Value]:
    """Inputs that carry values: not weights, biases, shapes, bounds or scales."""
    present = [value for value in node.inputs if value is not None]
    if node.op_type in {"Conv", "ConvTranspose", "Gemm", "PRelu"}:
        return present[:1]
    if node.op_type in {"Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "MatMul"}:
        return present
    if node.op_type == "Where":
        return present[1:]
    return present[:1]


def pad_fill(node: ir.Node) -> float:
    """What a Pad fills with; 0 for one that repeats values, and for any other operator."""
    if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
        return 0.0
    fill = constant_input(node, 2)
    return 0.0 if fill is None else float(fill)


def roots_of(nodes: Sequence[ir.Node], target: Target) -> dict[str, str]:
    """For every tensor behind operators that only move values: the tensor that it started as."""
    roots: dict[str, str] = {}
    for node in nodes:
        if node.op_type in target.data_ops and node.inputs and node.inputs[0] is not None:
            source = str(node.inputs[0].name)
            for output in node.outputs:
                roots[str(output.name)] = roots.get(source, source)
    return roots


def fold_sources(chosen: Sequence[ir.Node], target: Target) -> dict[str, str]:
    """Tensor before a folded operator → tensor after it, where the first has no other use."""
    return {
        str(node.inputs[0].name): str(node.outputs[0].name)
        for node in chosen
        if node.op_type in target.folded_ops
        and node.inputs[0] is not None
        and len(node.inputs[0].uses()) == 1
        and not node.inputs[0].is_graph_output()
    }
