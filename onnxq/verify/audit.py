"""What the file on disk really is: its integers, their legality, and how much of it they cover.

A record says at most which operators were to be integer: whether they are, and every number, comes
from the file alone.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx_ir as ir

from onnxq.artifacts import AuditRow, Coverage, CoverageLine
from onnxq.errors import AuditError, ModelError
from onnxq.graph import (
    WEIGHTED,
    constant_input,
    constant_of,
    is_quantized_form,
    macs_of,
    output_channel_axis,
)
from onnxq.qdq import (
    QDQ,
    QUANTIZE,
    dequantizer,
    is_folded_at_load,
    stored_integers,
    stored_type,
)
from onnxq.target import Target
from onnxq.verify.constants import constant_faults

__all__ = ["audit", "coverage", "gives_wrong_numbers", "refuse_other_forms", "require_sound"]

_WRONG_NUMBERS = "ONNX Runtime computes wrong numbers from that"
_FOLDED = frozenset({"Relu", "Clip"})  # vanish into the Q behind them
_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "Concat", "MatMul"})
_WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})


def audit(
    model: ir.Model,
    selected: Mapping[str, str] | None = None,
    fp32: ir.Model | None = None,
    moved: Mapping[str, Mapping[str, float]] | None = None,
) -> tuple[AuditRow, ...]:
    """One row for every operator that is integer or was ``selected`` (name → operator) to be.

    Without a selection, every Conv, ConvTranspose, Gemm and MatMul whose weight is quantized is
    looked at: of one with a float weight nobody knows whether that is a fault or was meant. With
    the ``fp32`` graph that the file was made from, weights and biases are held against it, node by
    node, but for what was ``moved`` on record (node → ``weight`` or ``bias`` → steps). A row's
    ``faults`` say what is not as it must be.
    """
    present = {str(node.name) for node in model.graph}
    rows = [
        AuditRow(
            node=name,
            op_type=op_type,
            weight_type=None,
            weight_levels=None,
            weight_channels=None,
            faults=("it is not in the file",),
        )
        for name, op_type in (selected or {}).items()
        if name not in present and op_type not in _FOLDED
    ]
    exact = {str(node.name): node for node in fp32.graph} if fp32 is not None else {}
    for node in _operators(model):
        if selected is None:
            wanted = node.op_type in WEIGHTED and _from_dq(node.inputs[1])
        else:
            wanted = str(node.name) in selected
        if wanted:
            rows.append(
                _row(node, exact.get(str(node.name)), (moved or {}).get(str(node.name), {}))
            )
    return tuple(rows)


def _row(node: ir.Node, exact: ir.Node | None, shifts: Mapping[str, float]) -> AuditRow:
    weight, integers = _weight_of(node)
    moved = constant_faults(node, exact, shifts) if exact is not None else []
    return AuditRow(
        node=str(node.name),
        op_type=node.op_type,
        weight_type=None if weight is None or integers is None else stored_type(weight),
        weight_levels=None if integers is None else len(np.unique(integers)),
        weight_channels=None if weight is None else _elements(weight.inputs[1]),
        faults=(*_faults(node), *moved),
    )


def _weight_of(node: ir.Node) -> tuple[ir.Node | None, np.ndarray | None]:
    """The DQ that gives the node its weight, and the integers stored for it."""
    dq = dequantizer(node.inputs[1]) if node.op_type in WEIGHTED else None
    return dq, stored_integers(dq) if dq is not None else None


def _faults(node: ir.Node) -> tuple[str, ...]:
    """Why the node cannot be executed on integers; nothing if it can."""
    weight = _weight_faults(node, *_weight_of(node)) if node.op_type in WEIGHTED else []
    return (*weight, *_neighbour_faults(node))


def _weight_faults(node: ir.Node, weight: ir.Node | None, integers: np.ndarray | None) -> list[str]:
    if weight is None:
        computed = node.op_type == "MatMul" and constant_of(node.inputs[1]) is None
        return [] if computed else ["its weight is float"]
    if integers is None:
        return []  # both operands computed, as in attention
    faults = []
    bits = 8 * integers.dtype.itemsize
    if not np.issubdtype(integers.dtype, np.integer) or bits > 8:
        faults.append(f"its weight is stored as {integers.dtype}")
    zero_point = constant_input(weight, 2)
    if integers.dtype == np.int8 and zero_point is not None and np.any(zero_point):
        faults.append("the zero point of its int8 weight is not 0")
    axis = weight.attributes.get_int("axis", 1) % max(integers.ndim, 1)
    if _elements(weight.inputs[1]) > 1 and axis != output_channel_axis(node):
        faults.append(
            f"its weight is dequantized along axis {axis}, not its output channels "
            f"({output_channel_axis(node)}): {_WRONG_NUMBERS}"
        )
    return faults


def _neighbour_faults(node: ir.Node) -> list[str]:
    faults = []
    folded = node.op_type in _FOLDED and node.inputs[0] is not None
    for index, value in enumerate(node.inputs):
        if (
            folded
            or value is None
            or not _is_float(value)
            or (index == 2 and node.op_type in _WITH_BIAS)
        ):
            continue
        if not _from_dq(value) and (constant_of(value) is None or node.op_type in _ELEMENTWISE):
            faults.append(f"its input `{value.name}` is float")
    for output in node.outputs:
        if _is_float(output) and not _into_q(output):
            faults.append(f"its output `{output.name}` stays float")
    for value in node.inputs:
        dq = dequantizer(value)
        scale = constant_of(dq.inputs[1]) if dq is not None else None
        if scale is not None and not np.all(np.isfinite(scale) & (scale > 0)):
            faults.append(f"a scale of `{value.name if value else ''}` is not a positive number")
    return faults


def require_sound(rows: Iterable[AuditRow], where: str) -> None:
    """Raise AuditError that lists every fault; also if there is no integer operator at all."""
    rows = tuple(rows)
    if not rows:
        raise AuditError(
            "holds no integer operator at all",
            where=where,
            do="quantize it: `onnxq quantize MODEL.onnx --data … -o OUT.onnx`",
        )
    faults = [f"{row.op_type} `{row.node}`: {fault}" for row in rows for fault in row.faults]
    if faults:
        more = f"\n  … and {len(faults) - 15} more" if len(faults) > 15 else ""
        raise AuditError(
            f"{len(faults)} faults in what was to be integer\n  " + "\n  ".join(faults[:15]) + more,
            where=where,
            do="quantize again with this version, or exclude these nodes by name with a reason",
        )


def gives_wrong_numbers(rows: Iterable[AuditRow]) -> bool:
    """Whether ONNX Runtime computes something else from the file than the file says."""
    return any(fault.endswith(_WRONG_NUMBERS) for row in rows for fault in row.faults)


def refuse_other_forms(model: ir.Model, where: str) -> None:
    """Raise ModelError if the file is quantized in another form than Q/DQ."""
    others = [n for n in model.graph if n.op_type not in QDQ and is_quantized_form(n.op_type)]
    if others:
        raise ModelError(
            "QOperator or dynamic form; onnxq reads the Q/DQ form "
            f"({len(others)} nodes, first {others[0].op_type} `{others[0].name}`)",
            where=where,
            do="quantize the FP32 model with `onnxq quantize`, or statically with "
            "quant_format=QuantFormat.QDQ in onnxruntime.quantization",
        )


def coverage(model: ir.Model, selected: Collection[str] | None, target: Target) -> Coverage:
    """Integer share of operators, parameters and MACs, over one list: the file's operators.

    An operator is integer if it was ``selected`` to be, by name, and has no fault. Without a
    selection, every operator that the target can make integer counts as selected: one that it
    cannot (a LayerNormalization between quantized neighbours) is float whatever lies around it.
    """
    possible = {*target.integer_ops, *target.data_ops, *target.folded_ops}
    operators = integer_operators = parameters = integer_parameters = macs = integer_macs = 0
    for node in _operators(model):
        chosen = node.op_type in possible if selected is None else str(node.name) in selected
        is_integer = chosen and not _faults(node)
        operators += 1
        integer_operators += is_integer
        for value in node.inputs:
            integers, floats = _parameters(value)
            parameters += integers + floats
            integer_parameters += integers
        cost = macs_of(node)
        macs += cost
        integer_macs += cost * is_integer
    return Coverage(
        operators=CoverageLine(integer=integer_operators, total=operators),
        parameters=CoverageLine(integer=integer_parameters, total=parameters),
        macs=CoverageLine(integer=integer_macs, total=macs),
    )


def _operators(model: ir.Model) -> list[ir.Node]:
    passed = QDQ | {"Constant", "Cast"}
    return [n for n in model.graph if n.op_type not in passed and not is_folded_at_load(n)]


def _from_dq(value: ir.Value | None) -> bool:
    return dequantizer(value) is not None


def _into_q(value: ir.Value) -> bool:
    """Whether every use of ``value`` is a Q; a Relu or Clip between them is folded into it."""
    users = [use.node for use in value.uses()]
    if value.is_graph_output() or not users:
        return False
    return all(
        user.op_type == QUANTIZE or (user.op_type in _FOLDED and _into_q(user.outputs[0]))
        for user in users
    )


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype == ir.DataType.FLOAT


def _elements(value: ir.Value | None) -> int:
    array = constant_of(value)
    return 0 if array is None else int(array.size)


def _parameters(value: ir.Value | None) -> tuple[int, int]:
    """Elements of a constant operand: (stored as integers, stored as float)."""
    dq = dequantizer(value)
    if dq is not None:
        integers = stored_integers(dq)
        return 0 if integers is None else int(integers.size), 0
    array = constant_of(value)
    return (0, int(array.size)) if array is not None and array.dtype == np.float32 else (0, 0)
