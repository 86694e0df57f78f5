"""What the INT8 file is: its tensors, integer shares, float rest, size."""

import math
from collections.abc import Sequence

from onnxq.artifacts import LayerDistance, TensorRange, VerificationReport
from onnxq.verify.report.formatting import MISSING, byte_unit, integer, number, percent
from onnxq.verify.report.tables import (
    Section,
    code_columns,
    make_table,
    number_columns,
    text_columns,
)

__all__ = [
    "WORST_LAYERS",
    "audit",
    "coverage",
    "float_nodes",
    "fusion",
    "layers",
    "ranges",
    "saturation",
    "sizes",
    "worst",
]

WORST_LAYERS = 10


def worst(layers: Sequence[LayerDistance]) -> tuple[LayerDistance, ...]:
    """The tensors of lowest SQNR, lowest first; one whose SQNR is no number is worse than any."""
    ranked = sorted(layers, key=lambda at: -math.inf if math.isnan(at.sqnr_db) else at.sqnr_db)
    return tuple(ranked[:WORST_LAYERS])


def layers(report: VerificationReport) -> Section:
    """Distances of the worst tensors."""
    table = make_table(
        (
            *code_columns("Tensor", "Node"),
            *text_columns("Operator"),
            *number_columns("SQNR (dB)", "rmse", "mae", "l2r", "mean", "std", "nse", "cos"),
        ),
        worst(report.layers),
        lambda at: (
            *(at.tensor, at.node, at.op_type),
            *(number(value, 3) for value in (at.sqnr_db, at.rmse, at.mae, at.l2r)),
            *(number(value, 3) for value in (at.mean, at.std, at.nse)),
            number(at.cos, 5),
        ),
    )
    lead = (
        f"Distance of INT8 from FP32 at {integer(len(report.layers))} tensors, in the order of the "
        f"graph, and the {len(table.rows)} worst by figures: signal to quantization noise, and ST "
        "Edge AI's distances (l2r: ‖error‖ / ‖reference‖; nse: Nash–Sutcliffe, best 1)."
    )
    return Section("layers", "Tensors", lead, (table,))


def saturation(report: VerificationReport) -> Section:
    """What would happen on x86 processors that keep sums of pairs in 16 bits."""
    rows = [row for row in report.saturation if row.verdict != "cannot"]
    table = make_table(
        (
            *code_columns("Node"),
            *text_columns("Operator", "Saturates"),
            *number_columns(
                "Channels that can", "of", "Largest pair sum", "Saturated (%)", "Changed (%)"
            ),
        ),
        rows,
        lambda row: (
            row.node,
            row.op_type,
            row.verdict,
            integer(row.channels),
            integer(row.of_channels),
            integer(row.worst_sum),
            MISSING if row.saturated is None else percent(row.saturated / (row.pair_sums or 1)),
            MISSING if row.changed is None else percent(row.changed),
        ),
        lambda row: row.verdict == "does",
    )
    lead = (
        "On x86 processors without VNNI two products of uint8 and int8 are added in 16 bits, which "
        "end at 32,767. What these nodes would do there, on a few of the samples; this machine "
        "counted it in integers."
    )
    return Section("saturation", "Saturation on x86 without VNNI", lead, (table,), folded=True)


def ranges(report: VerificationReport) -> Section:
    """Ranges of all tensors."""
    table = make_table(
        (
            *code_columns("Tensor"),
            *number_columns("Low", "High", "Seen low", "Seen high", "Outside (%)", "Zeros (%)"),
            *text_columns("Pinned by"),
        ),
        report.ranges.items(),
        lambda item: (
            item[0],
            *(number(value) for value in (item[1].low, item[1].high)),
            *(number(value) for value in (item[1].observed_low, item[1].observed_high)),
            percent(item[1].outside_fraction),
            percent(_share_of_zeros(item[1])),
            item[1].pinned or MISSING,
        ),
    )
    lead = f"What tensors are quantized over, beside what calibration saw: {len(table.rows)}."
    return Section("ranges", "Ranges", lead, (table,), folded=True, long=True)


def _share_of_zeros(seen: TensorRange) -> float | None:
    return seen.zeros / seen.values if seen.zeros is not None and seen.values else None


def coverage(report: VerificationReport) -> Section:
    """Integer shares of the file."""
    seen = report.coverage
    lines = (
        ("Operators", seen.operators),
        ("Parameters", seen.parameters),
        ("Multiply–accumulates", seen.macs),
    )
    table = make_table(
        (*text_columns("Quantity"), *number_columns("Integer", "Total", "Integer (%)")),
        [line for line in lines if line[1].total],
        lambda line: (
            line[0],
            integer(line[1].integer),
            integer(line[1].total),
            percent(line[1].fraction),
        ),
    )
    return Section("coverage", "Coverage", "How much of the file is integer.", (table,))


def fusion(report: VerificationReport) -> Section:
    """What this machine executes on integers; without a remedy where a compiler decides."""
    table = make_table(
        (*text_columns("Operator"), *number_columns("On integers", "Total", "On integers (%)")),
        report.fusion,
        lambda line: (
            line.op_type,
            integer(line.integer),
            integer(line.total),
            percent(line.integer / line.total if line.total else None),
        ),
        lambda line: line.integer < line.total,
    )
    for_runtime = report.comparison.judged_as == "runtime"
    lead = f"What ONNX Runtime really executes on integers on this machine.{_agreement(report)}"
    if not for_runtime:
        lead += f" It says nothing of {report.target}, where a compiler decides (`onnxq check`)."
    remedy = ("What to change",) if for_runtime else ()
    floating = make_table(
        (*code_columns("Node"), *text_columns("Operator", "Why it is float", *remedy)),
        (node for node in report.executions if node.runs == "float"),
        lambda node: (node.node, node.op_type, node.why, *((node.do,) if for_runtime else ())),
        lambda node: for_runtime and node.expected != "float",
        title="Executed in float" if for_runtime else "Executed in float on this machine",
    )
    tables = (table, floating) if floating.rows else (table,)
    title = "Executed on integers"
    if not for_runtime:
        title = "On this machine's ONNX Runtime, for information"
    return Section("executed", title, lead, tables)


def _agreement(report: VerificationReport) -> str:
    """How far INT8 with fusion is from INT8 as the graph says."""
    found = report.fused_against_unfused
    if found is None:
        return ""
    steps = "" if found.steps is None else f" ({number(found.steps)} steps)"
    return (
        f" INT8 as executed here against INT8 as the graph says, {integer(found.samples)} samples: "
        f"SQNR {number(found.sqnr_db)} dB, rmse {number(found.rmse)}, mean {number(found.mean)}, "
        f"cos {number(found.cos)}, at most {number(found.largest)}{steps}."
    )


def float_nodes(report: VerificationReport) -> Section:
    """What stays float, and why."""
    table = make_table(
        (*code_columns("Node"), *text_columns("Operator", "Reason")),
        report.float_nodes,
        lambda node: (node.node, node.op_type, node.reason),
    )
    return Section("float", "Left in float", "What was not quantized, and why.", (table,))


def audit(report: VerificationReport) -> Section:
    """What every integer operator of the file holds."""
    table = make_table(
        (
            *code_columns("Node"),
            *text_columns("Operator", "Weight type"),
            *number_columns("Levels", "Scales"),
            *text_columns("Faults"),
        ),
        report.audit,
        lambda row: (
            row.node,
            row.op_type,
            row.weight_type or MISSING,
            integer(row.weight_levels),
            integer(row.weight_channels),
            "; ".join(row.faults) or MISSING,
        ),
        lambda row: bool(row.faults),
    )
    lead = f"Integer operators as the file holds them, read from its bytes: {len(table.rows)}."
    return Section("audit", "Audit", lead, (table,), folded=True, long=True)


def sizes(report: VerificationReport) -> Section:
    """Size ledger and cost."""
    largest = [max(line.fp32_bytes, line.int8_bytes or 0) for line in report.sizes]
    unit, factor = byte_unit(max(largest, default=0))
    table = make_table(
        (*text_columns("What"), *number_columns(f"FP32 ({unit})", f"INT8 ({unit})", "Ratio")),
        report.sizes,
        lambda line: (
            line.what,
            number(line.fp32_bytes / factor, trim=factor == 1),
            number(None if line.int8_bytes is None else line.int8_bytes / factor, trim=factor == 1),
            f"{number(line.fp32_bytes / line.int8_bytes, 3)}×" if line.int8_bytes else MISSING,
        ),
    )
    macs = f"{integer(report.macs)} multiply–accumulates a sample." if report.macs else ""
    return Section("sizes", "Size and cost", macs, (table,))
