"""The report as titled tables, in the order in which a reader wants them; HTML and Markdown show
the same ones. A section without anything to say is left out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from onnxq.artifacts import LayerDistance, MetricRow, VerificationReport
from onnxq.verify.report.formatting import (
    MISSING,
    byte_unit,
    integer,
    interval,
    number,
    percent,
)
from onnxq.verify.report.observations import ClassAgreement, Pairs, limits_of_agreement

__all__ = ["SEMANTICS", "Column", "Row", "Section", "Table", "label_unit", "sections", "worst"]

Item = TypeVar("Item")
WORST_LAYERS = 10
SEMANTICS = {"runtime": "as the runtime executes it", "graph": "as the graph says"}
_OTHER = {"runtime": "graph", "graph": "runtime"}
_MARKS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}


@dataclass(frozen=True)
class Column:
    """A column's title, and what its cells are: numbers stand right, code in a fixed width."""

    title: str
    kind: Literal["text", "number", "code", "verdict"] = "number"


@dataclass(frozen=True)
class Row:
    """One cell for each column; ``marked`` rows stand out."""

    cells: tuple[str, ...]
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; every row has as many cells as there are columns."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Section:
    """One part of the report. ``folded`` ones open on a click, ``long`` ones Markdown omits."""

    id: str
    title: str
    lead: str = ""
    tables: tuple[Table, ...] = ()
    folded: bool = False
    long: bool = False


def sections(
    report: VerificationReport, pair: Pairs | None = None, classes: Sequence[ClassAgreement] = ()
) -> tuple[Section, ...]:
    """All sections that have something to say."""
    made: Iterable[Section] = (
        _gates(report),
        _metrics(report),
        _predictions(report, pair),
        _agreement(report, pair),
        _classes(classes),
        _groups(report),
        _layers(report),
        _ranges(report),
        _coverage(report),
        _fusion(report),
        _float_nodes(report),
        _audit(report),
        _sizes(report),
        _calibration(report),
        _parity(report),
        _findings(report),
        _files(report),
    )
    return tuple(section for section in made if any(table.rows for table in section.tables))


def worst(layers: Sequence[LayerDistance]) -> tuple[LayerDistance, ...]:
    """The tensors of lowest SQNR, lowest first."""
    return tuple(sorted(layers, key=lambda layer: layer.sqnr_db)[:WORST_LAYERS])


def _table(
    columns: Sequence[Column],
    items: Iterable[Item],
    cells: Callable[[Item], Sequence[str]],
    marked: Callable[[Item], bool] = lambda _: False,
) -> Table:
    rows = tuple(Row(tuple(cells(item)), marked(item)) for item in items)
    return Table(tuple(columns), rows)


def _text(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, "text") for title in titles)


def _code(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title, "code") for title in titles)


def _numbers(*titles: str) -> tuple[Column, ...]:
    return tuple(Column(title) for title in titles)


# --- how good it is -----------------------------------------------------------------------------


def _gates(report: VerificationReport) -> Section:
    columns = (
        Column("Verdict", "verdict"),
        *_text("Gate"),
        *_numbers("Measured", "Upper end (95 %)", "Allowed"),
        *_text("Judged by", "What is needed"),
    )
    table = _table(
        columns,
        report.gates,
        lambda gate: (
            gate.verdict,
            gate.statement,
            number(gate.point),
            number(gate.bound),
            number(gate.allowed, trim=True),
            {"point": "the measured figure", "bound": "the 95 % interval"}[gate.judge],
            gate.needs or MISSING,
        ),
        lambda gate: gate.verdict != "passed",
    )
    return Section("gates", "Gates", "What was demanded, and what was found.", (table,))


def _metrics(report: VerificationReport) -> Section:
    seen = report.comparison
    other = SEMANTICS[_OTHER[seen.judged_as]]
    columns = (
        *_text("Metric"),
        *_numbers("FP32", "FP32 rewritten", "INT8", f"INT8 {other}", "Worse by", "95 % interval"),
        *_text("Interval from"),
        *_numbers("Baseline"),
    )
    table = _table(columns, seen.metrics, _metric_cells)
    lead = (
        f"{integer(seen.samples)} held-out samples of {seen.source}{_in_groups(seen.groups)}. "
        f"INT8 is judged {SEMANTICS[seen.judged_as]}; {other} it stands beside. “Worse by” is "
        "how much INT8 is worse than FP32, negative where it is better; the baseline is a model "
        "that has learned nothing."
    )
    return Section("metrics", "Metrics", lead, (table,))


def _in_groups(groups: int) -> str:
    return f" in {integer(groups)} groups" if groups else ""


def _metric_cells(row: MetricRow) -> tuple[str, ...]:
    marks = ", ".join(mark for mark in (row.unit, _MARKS[row.better]) if mark)
    seen = row.interval
    return (
        f"{row.metric} ({marks})" if marks else row.metric,
        number(row.fp32),
        number(row.rewritten),
        number(row.int8),
        number(row.int8_other),
        number(row.increase),
        interval(seen.low, seen.high) if seen else MISSING,
        f"{seen.method}, {integer(seen.count)} {seen.units}" if seen else MISSING,
        number(row.baseline),
    )


def label_unit(report: VerificationReport) -> str:
    """Unit of labels and predictions, where the headline metric has the same; else nothing."""
    headline = report.comparison.metrics[0] if report.comparison.metrics else None
    if headline is None or headline.better != "lower" or headline.unit in {"share", "%"}:
        return ""
    return headline.unit


def _titled(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title


def _predictions(report: VerificationReport, pair: Pairs | None) -> Section:
    if pair is None:
        return Section("predictions", "Predictions")
    unit = label_unit(report)
    titles = [_titled(title, unit) for title in ("Lowest", "Mean", "Highest", "Standard deviation")]
    table = _table(
        (*_text("Values"), *_numbers(*titles)),
        (("Labels", pair.label), ("FP32", pair.fp32), ("INT8", pair.int8)),
        lambda item: (
            item[0],
            *(number(float(value)) for value in (item[1].min(), item[1].mean(), item[1].max())),
            number(float(item[1].std(ddof=1))),
        ),
    )
    left_out = f" {integer(pair.left_out)} that are not finite are left out." * bool(pair.left_out)
    lead = f"{integer(len(pair.label))} predictions against their labels.{left_out}"
    return Section("predictions", "Predictions", lead, (table,))


def _agreement(report: VerificationReport, pair: Pairs | None) -> Section:
    if pair is None:
        return Section("agreement", "INT8 against FP32")
    limits = limits_of_agreement(pair)
    difference = pair.int8 - pair.fp32
    inside = (difference >= limits.low) & (difference <= limits.high)
    facts = (
        (_titled("Bias", label_unit(report)), number(limits.bias)),
        (_titled("Lower limit", label_unit(report)), number(limits.low)),
        (_titled("Upper limit", label_unit(report)), number(limits.high)),
        (_titled("Largest difference", label_unit(report)), number(float(abs(difference).max()))),
        ("Differences between the limits (%)", percent(float(inside.mean()))),
    )
    table = _table((*_text("INT8 − FP32"), *_numbers("Value")), facts, lambda fact: fact)
    lead = (
        "Differences between the two models, whatever the label: 95 % of them are expected between "
        "the limits of agreement, bias ± 1.96 sd (Bland and Altman 1986)."
    )
    return Section("agreement", "INT8 against FP32", lead, (table,))


def _classes(classes: Sequence[ClassAgreement]) -> Section:
    table = _table(
        (*_code("Class"), *_numbers("Samples", "FP32 right (%)", "INT8 right (%)", "Same (%)")),
        sorted(classes, key=lambda row: row.same / row.samples),
        lambda row: (
            row.label,
            integer(row.samples),
            percent(row.fp32_right / row.samples),
            percent(row.int8_right / row.samples),
            percent(row.same / row.samples),
        ),
    )
    lead = "How often FP32 and INT8 give the same answer, least agreement first."
    return Section("classes", "Agreement by class", lead, (table,))


def _groups(report: VerificationReport) -> Section:
    seen = report.comparison
    if not seen.metrics:
        return Section("groups", "Groups")
    headline = seen.metrics[0]
    unit = f" ({headline.unit})" if headline.unit else ""
    table = _table(
        (*_code("Group"), *_numbers("Samples", f"FP32{unit}", f"INT8{unit}", f"Worse by{unit}")),
        sorted(seen.by_group, key=lambda row: -row.increase),
        lambda row: (
            row.group,
            integer(row.samples),
            number(row.fp32),
            number(row.int8),
            number(row.increase),
        ),
        lambda row: row.group == seen.worst_group,
    )
    named = f" Worst: {seen.worst_group}." if seen.worst_group is not None else ""
    return Section("groups", f"{headline.metric} by group", f"Worst first.{named}", (table,))


# --- what the file is ---------------------------------------------------------------------------


def _layers(report: VerificationReport) -> Section:
    table = _table(
        (
            *_code("Tensor", "Node"),
            *_text("Operator"),
            *_numbers("SQNR (dB)", "rmse", "mae", "l2r", "mean", "std", "nse", "cos"),
        ),
        worst(report.layers),
        lambda at: (
            *(at.tensor, at.node, at.op_type),
            *(number(value) for value in (at.sqnr_db, at.rmse, at.mae, at.l2r)),
            *(number(value) for value in (at.mean, at.std, at.nse, at.cos)),
        ),
    )
    lead = (
        f"Distance of INT8 from FP32 at {integer(len(report.layers))} tensors, in the order of the "
        f"graph, and the {len(table.rows)} worst by figures: signal to quantization noise, and ST "
        "Edge AI's distances (l2r: ‖error‖ / ‖reference‖; nse: Nash–Sutcliffe, best 1)."
    )
    return Section("layers", "Tensors", lead, (table,))


def _ranges(report: VerificationReport) -> Section:
    table = _table(
        (
            *_code("Tensor"),
            *_numbers("Low", "High", "Seen low", "Seen high", "Outside (%)", "Zeros (%)"),
            *_text("Pinned by"),
        ),
        report.ranges.items(),
        lambda item: (
            item[0],
            *(number(value) for value in (item[1].low, item[1].high)),
            *(number(value) for value in (item[1].observed_low, item[1].observed_high)),
            percent(item[1].outside_fraction),
            percent(item[1].zeros / item[1].values if item[1].values else None),
            item[1].pinned or MISSING,
        ),
    )
    lead = f"What {len(table.rows)} tensors are quantized over, beside what calibration saw."
    return Section("ranges", "Ranges", lead, (table,), folded=True, long=True)


def _coverage(report: VerificationReport) -> Section:
    seen = report.coverage
    lines = (
        ("Operators", seen.operators),
        ("Parameters", seen.parameters),
        ("Multiply–accumulates", seen.macs),
    )
    table = _table(
        (*_text("Quantity"), *_numbers("Integer", "Total", "Integer (%)")),
        [line for line in lines if line[1].total],
        lambda line: (
            line[0],
            integer(line[1].integer),
            integer(line[1].total),
            percent(line[1].fraction),
        ),
    )
    return Section("coverage", "Coverage", "How much of the file is integer.", (table,))


def _fusion(report: VerificationReport) -> Section:
    table = _table(
        (*_text("Operator"), *_numbers("On integers", "Total", "On integers (%)")),
        report.fusion,
        lambda line: (
            line.op_type,
            integer(line.integer),
            integer(line.total),
            percent(line.integer / line.total if line.total else None),
        ),
        lambda line: line.integer < line.total,
    )
    sqnr = report.fused_against_unfused_sqnr_db
    agree = (
        ""
        if sqnr is None
        else f" SQNR of the outputs, INT8 as executed here against INT8 as the graph says: "
        f"{number(sqnr)} dB."
    )
    lead = f"What ONNX Runtime really executes on integers on this machine.{agree}"
    return Section("executed", "Executed on integers", lead, (table,))


def _float_nodes(report: VerificationReport) -> Section:
    table = _table(
        (*_code("Node"), *_text("Operator", "Reason")),
        report.float_nodes,
        lambda node: (node.node, node.op_type, node.reason),
    )
    return Section("float", "Left in float", "What was not quantized, and why.", (table,))


def _audit(report: VerificationReport) -> Section:
    table = _table(
        (
            *_code("Node"),
            *_text("Operator", "Weight type"),
            *_numbers("Levels", "Scales"),
            *_text("Faults"),
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
    lead = f"What {len(table.rows)} operators of the file hold, read from its bytes."
    return Section("audit", "Audit", lead, (table,), folded=True, long=True)


def _sizes(report: VerificationReport) -> Section:
    largest = [max(line.fp32_bytes, line.int8_bytes or 0) for line in report.sizes]
    unit, factor = byte_unit(max(largest, default=0))
    table = _table(
        (*_text("What"), *_numbers(f"FP32 ({unit})", f"INT8 ({unit})", "Ratio")),
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


# --- where it comes from ------------------------------------------------------------------------


def _facts(facts: Iterable[tuple[str, str]], first: str = "Fact", second: str = "Value") -> Table:
    return _table(_text(first, second), [fact for fact in facts if fact[1]], lambda fact: fact)


def _calibration(report: VerificationReport) -> Section:
    choice = report.calibration
    if choice is None:
        return Section("calibration", "Calibration")
    groups = sorted(set(choice.groups))
    labels = ""
    if choice.label_low is not None and choice.label_high is not None:
        labels = f"{number(choice.label_low)} to {number(choice.label_high)}"
        labels += f", mean {number(choice.label_mean)}" if choice.label_mean is not None else ""
    taken = f"{integer(len(choice.indices))} (asked for {integer(choice.asked)})"
    facts = (
        ("Source", choice.source),
        ("Plan", choice.plan),
        ("Seed", str(choice.seed)),
        ("Samples", taken),
        ("Groups", f"{len(groups)}: {_listed(groups)}" if groups else ""),
        ("Labels", labels),
        ("Data", "random numbers, no data" if choice.made_up else ""),
        ("Notes", "; ".join(choice.notes)),
    )
    lead = "The samples from which the ranges come."
    return Section("calibration", "Calibration", lead, (_facts(facts),))


def _listed(names: Sequence[str], most: int = 24) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _parity(report: VerificationReport) -> Section:
    table = _table(
        (
            Column("Verdict", "verdict"),
            *_text("Hop", "Inputs"),
            *_numbers("Samples", "Largest difference", "Relative", "Cosine"),
        ),
        report.parity,
        lambda hop: (
            "passed" if hop.passed else "failed",
            hop.hop,
            hop.inputs,
            integer(hop.samples),
            number(hop.max_absolute),
            number(hop.max_relative),
            number(hop.cosine, 7),
        ),
        lambda hop: not hop.passed,
    )
    return Section("parity", "Export parity", "From the network to its FP32 graph.", (table,))


def _findings(report: VerificationReport) -> Section:
    found = _table(
        _text("Where", "What", "What to do"),
        report.findings,
        lambda finding: (finding.where, finding.what, finding.do or MISSING),
    )
    waived = _table(
        _text("Waived", "Reason"),
        [waiver.partition(": ") for waiver in report.waived],
        lambda parts: (parts[0], parts[2] or MISSING),
    )
    tables = tuple(table for table in (found, waived) if table.rows)
    return Section("findings", "Findings and waivers", "", tables)


def _files(report: VerificationReport) -> Section:
    table = _table(
        (*_text("What"), *_code("File"), *_numbers("Bytes"), *_code("SHA-256")),
        (("FP32", report.fp32), ("INT8", report.int8)),
        lambda item: (item[0], item[1].name, integer(item[1].size_bytes), item[1].sha256),
    )
    return Section("files", "Files", "What was measured.", (table,))
