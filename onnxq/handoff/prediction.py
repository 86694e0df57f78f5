"""Where each node of a graph will run on a target, from the target's profile: a prediction.

The table of operators says where one runs at best. A rule that a node breaks, Q/DQ that it lacks,
or in an FP32 graph the reason why it will stay float, moves it elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnxq.artifacts import Execution, NodePrediction, Prediction, PredictionShare
from onnxq.graph import macs_of
from onnxq.handoff.check import faults_of
from onnxq.handoff.subject import Fault, Subject, float_sides, is_constant, subject_of
from onnxq.kernels import expected
from onnxq.placement import float_reasons
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.target import Operator, Target, Tier

__all__ = ["predict"]

Place: TypeAlias = tuple[Tier, str]  # where, and why there
_WORST_FIRST: tuple[Tier, ...] = (
    "refused",
    "unknown",
    "importer only",
    "software float",
    "software",
    "software integer",
    "hardware",
    "folded",
)
_BY_KERNELS: Mapping[Execution, Tier] = {
    "integer": "software integer",
    "data": "software integer",
    "folded": "folded",
    "float": "software float",
}


def predict(
    model: ir.Model | onnx.ModelProto,
    target: Target,
    *,
    file_name: str = "model.onnx",
) -> Prediction:
    """Where every node of ``model`` but Q and DQ will run on ``target``, and why.

    Of a Q/DQ file as it is; of an FP32 graph as it would be once quantized for the target; of
    either with a batch of one.
    Where ONNX Runtime is what runs a Q/DQ file, its kernels decide about every node; elsewhere one
    between DQ and Q runs where the table says. Nodes inside other nodes (If, Loop, Scan) are not
    looked at. Raises UsageError for a target file that names no check.
    """
    subject = subject_of(model, target, file_name)
    nodes = [node for node in subject.model.graph if node.op_type not in (QUANTIZE, DEQUANTIZE)]
    _give_names(nodes)
    quantized = any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in subject.nodes)
    moved = _without_qdq(nodes, target) if quantized else _left_float(nodes, target)
    for node, place in _by_rules(subject, quantized, nodes):
        moved.setdefault(node, []).append(place)
    predictions = tuple(_prediction(node, target, moved.get(node, ())) for node in nodes)
    return Prediction(
        target=target.name,
        tool_version=target.tool_version,
        of="quantized" if quantized else "float",
        nodes=predictions,
        borders=_borders(nodes, predictions),
        shares=_shares(predictions),
    )


def _give_names(nodes: Sequence[ir.Node]) -> None:
    """Give a node without a name of its own that of its first output, which is one."""
    taken: set[str] = set()
    for node in nodes:
        if not node.name or node.name in taken:
            node.name = str(node.outputs[0].name)
        taken.add(node.name)


def _prediction(node: ir.Node, target: Target, moved: Sequence[Place]) -> NodePrediction:
    """The worst of where it could run and where it is moved to; of equals, the first reason."""
    places = [_at_best(node, target), *moved]
    runs, why = min(places, key=lambda place: _WORST_FIRST.index(place[0]))
    return NodePrediction(
        node=str(node.name), op_type=node.op_type, runs=runs, why=why, macs=macs_of(node)
    )


def _at_best(node: ir.Node, target: Target) -> Place:
    if _from_constants(node):
        return "folded", "it is computed from constants alone"
    entry = target.operator(node.op_type) if node.domain in ("", "ai.onnx") else None
    if entry is None:
        return target.other_operators, "the target's table does not name it"
    return entry.runs, _decomposition(node, entry) or entry.when


def _decomposition(node: ir.Node, entry: Operator) -> str:
    """Whether a window is beyond what the hardware takes at once; it is then made of several.

    A Conv one row high may be as wide as it likes.
    """
    sides = node.attributes.get_ints("kernel_shape", ())
    if not sides or entry.runs != "hardware":
        return ""
    strided = (node.attributes.get_ints("strides", ()) or [1])[-1] > 1
    width = entry.limits.get(f"kernel_width_at_stride_{2 if strided else 1}")
    height = entry.limits.get("kernel_height")
    window = entry.limits.get("window")
    if isinstance(window, tuple):
        height = width = window[-1]
    if not (isinstance(height, int) and isinstance(width, int)):
        return ""
    rows, columns = max(sides[:-1], default=1), sides[-1]
    if rows <= height and (columns <= width or (rows == 1 and window is None)):
        return ""
    return f"its window of {' x '.join(map(str, sides))} is decomposed: {height} x {width} at once"


def _left_float(nodes: Sequence[ir.Node], target: Target) -> dict[ir.Node, list[Place]]:
    """Nodes of an FP32 graph that the quantizer would leave float, but for those that vanish."""
    reasons = float_reasons([node for node in nodes if node.op_type != "Constant"], target, {})
    return {
        node: [("software float", reasons[str(node.name)])]
        for node in nodes
        if str(node.name) in reasons and not _vanishes(node, target)
    }


def _vanishes(node: ir.Node, target: Target) -> bool:
    """Whether the node is gone whatever stands around it; a Relu is not."""
    free = _at_best(node, target)[0] == "folded" and node.op_type not in target.folded_ops
    return free or _from_constants(node)


def _from_constants(node: ir.Node) -> bool:
    given = [value for value in node.inputs if value is not None]
    return bool(given) and all(is_constant(value) for value in given)


def _without_qdq(nodes: Sequence[ir.Node], target: Target) -> dict[ir.Node, list[Place]]:
    """Nodes of a Q/DQ file that compute in float, or what ONNX Runtime makes of each."""
    moved: dict[ir.Node, list[Place]] = {}
    for node in nodes:
        if _vanishes(node, target):
            continue
        if target.judged_as == "runtime":
            found = expected(node, int8_fuses=target.fuses_int8)
            moved[node] = [(_BY_KERNELS[found.runs], found.why)]
            continue
        sides = float_sides(node, target)
        if sides:
            moved[node] = [("software float", ", ".join(sides))]
    return moved


def _by_rules(
    subject: Subject, quantized: bool, nodes: Sequence[ir.Node]
) -> Iterator[tuple[ir.Node, Place]]:
    """What breaks a rule that says where that leads to, and every node where that spreads."""
    for rule, faults in faults_of(subject, "quantized" if quantized else "any"):
        for fault in faults if rule.then else ():
            for node in nodes if rule.spreads else _touched(fault):
                yield node, (rule.then or "unknown", f"{rule.id}: {fault.where} {fault.what}")


def _touched(fault: Fault) -> Iterator[ir.Node]:
    """The node of the fault; of a value, also those that take it, as it is or from its DQ.

    A Q at fault touches what makes its input and what takes its output.
    """
    waiting = [fault.value] if fault.value is not None else []
    if fault.node is not None:
        yield fault.node
        if fault.node.op_type == QUANTIZE:
            maker = fault.node.inputs[0].producer() if fault.node.inputs[0] is not None else None
            if maker is not None:
                yield maker
            waiting += fault.node.outputs
    while waiting:
        for node in waiting.pop().consumers():
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                waiting += node.outputs
            else:
                yield node


def _borders(nodes: Sequence[ir.Node], predictions: Sequence[NodePrediction]) -> int:
    """Q and DQ between a float operator and one on integers, each once."""
    found: set[ir.Node] = set()
    for node, prediction in zip(nodes, predictions, strict=True):
        if prediction.runs == "software float":
            made = [value.producer() for value in node.inputs if value is not None]
            found |= {dq for dq in made if dq is not None and dq.op_type == DEQUANTIZE}
            read = [user for value in node.outputs for user in value.consumers()]
            found |= {q for q in read if q.op_type == QUANTIZE}
    return sum(not is_constant(node.inputs[0]) and not _at_an_end(node) for node in found)


def _at_an_end(node: ir.Node) -> bool:
    """Whether a DQ takes what a graph input is quantized to, or a Q gives what an output is."""
    beyond = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node.op_type == DEQUANTIZE:
        value = beyond.inputs[0] if beyond is not None else node.inputs[0]
        return value is not None and value.is_graph_input()
    return any(user.outputs[0].is_graph_output() for user in node.outputs[0].consumers())


def _shares(predictions: Sequence[NodePrediction]) -> tuple[PredictionShare, ...]:
    """One for each place in which anything runs, the best first."""
    total = sum(node.macs for node in predictions)
    found = []
    for runs in reversed(_WORST_FIRST):
        there = [node for node in predictions if node.runs == runs]
        macs = sum(node.macs for node in there)
        if there:
            found.append(
                PredictionShare(
                    runs=runs, nodes=len(there), macs=macs, share=macs / total if total else 0.0
                )
            )
    return tuple(found)
