"""How good INT8 is: gates, metrics, predictions, classes, groups."""

import math
from collections.abc import Sequence

from onnxq.artifacts import MetricRow, VerificationReport
from onnxq.verify.report.formatting import MISSING, integer, interval, number, percent
from onnxq.verify.report.observations import ClassAgreement, Pairs, limits_of_agreement
from onnxq.verify.report.tables import (
    Column,
    Section,
    code_columns,
    make_table,
    number_columns,
    text_columns,
)

__all__ = [
    "SEMANTICS",
    "agreement",
    "classes",
    "gates",
    "groups",
    "label_unit",
    "metrics",
    "predictions",
]

SEMANTICS = {"runtime": "as the runtime executes it", "graph": "as the graph says"}
_OTHER = {"runtime": "graph", "graph": "runtime"}
_MARKS = {"lower": "lower is better", "higher": "higher is better", "neither": ""}


def gates(report: VerificationReport) -> Section:
    """What was demanded, and what was found."""
    columns = (
        Column("Verdict", "verdict"),
        *text_columns("Gate"),
        *number_columns("Measured", "Upper end (95\N{NO-BREAK SPACE}%)", "Allowed"),
        *text_columns("Judged by", "What is needed"),
    )
    table = make_table(
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


def metrics(report: VerificationReport) -> Section:
    """Every metric under every variant of the model, and what each step adds to it."""
    seen = report.comparison
    other = SEMANTICS[_OTHER[seen.judged_as]]
    figures = make_table(
        (
            *text_columns("Metric"),
            *number_columns("FP32", "FP32 rewritten", "INT8 (judged)", f"INT8 {other}", "Baseline"),
        ),
        seen.metrics,
        _figure_cells,
    )
    steps = make_table(
        (
            *text_columns("Metric"),
            *number_columns("Rewriting adds", "Quantizing adds", "Worse by", "95 % interval"),
            *text_columns("Interval from"),
        ),
        seen.metrics,
        _step_cells,
    )
    lead = (
        f"{integer(seen.samples)} held-out samples of {seen.source}{_in_groups(seen.groups)}. "
        f"INT8 is judged {SEMANTICS[seen.judged_as]}; INT8 {other} stands beside it; the baseline "
        "is a model that has learned nothing. “Worse by” is how much INT8 is worse than FP32, "
        "negative where it is better: the sum of what rewriting the graph adds (FP32 to FP32 "
        "rewritten) and what quantizing it adds (FP32 rewritten to INT8)."
    )
    return Section("metrics", "Metrics", lead, (figures, steps))


def _in_groups(groups: int) -> str:
    return f" in {integer(groups)} groups" if groups else ""


def _titled_metric(row: MetricRow) -> str:
    marks = ", ".join(mark for mark in (row.unit, _MARKS[row.better]) if mark)
    return f"{row.metric} ({marks})" if marks else row.metric


def _figure_cells(row: MetricRow) -> tuple[str, ...]:
    figures = (row.fp32, row.rewritten, row.int8, row.int8_other, row.baseline)
    return (_titled_metric(row), *map(number, figures))


def _step_cells(row: MetricRow) -> tuple[str, ...]:
    seen = row.interval
    return (
        _titled_metric(row),
        *map(number, (row.rewriting_adds, row.quantizing_adds, row.increase)),
        interval(seen.low, seen.high) if seen else MISSING,
        f"{seen.method}, {integer(seen.count)} {seen.units}" if seen else MISSING,
    )


def label_unit(report: VerificationReport) -> str:
    """Unit of labels and predictions, where the headline metric has the same; else nothing."""
    headline = report.comparison.metrics[0] if report.comparison.metrics else None
    if headline is None or headline.better != "lower" or headline.unit in {"share", "%"}:
        return ""
    return headline.unit


def _titled(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title


def predictions(report: VerificationReport, pair: Pairs | None) -> Section:
    """Spread of labels and predictions of a regression."""
    if pair is None:
        return Section("predictions", "Predictions")
    unit = label_unit(report)
    titles = [_titled(title, unit) for title in ("Lowest", "Mean", "Highest", "Standard deviation")]
    table = make_table(
        (*text_columns("Values"), *number_columns(*titles)),
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


def agreement(report: VerificationReport, pair: Pairs | None) -> Section:
    """Bias and limits of agreement of INT8 with FP32."""
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
    table = make_table(
        (*text_columns("INT8 − FP32"), *number_columns("Value")), facts, lambda fact: fact
    )
    lead = (
        "Differences between the two models, whatever the label: 95 % of them are expected between "
        "the limits of agreement, bias ± 1.96 sd (Bland and Altman 1986)."
    )
    return Section("agreement", "INT8 against FP32", lead, (table,))


def classes(classes: Sequence[ClassAgreement]) -> Section:
    """Agreement of a classifier, class by class."""
    table = make_table(
        (
            *code_columns("Class"),
            *number_columns("Samples", "FP32 right (%)", "INT8 right (%)", "Same (%)"),
        ),
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


def groups(report: VerificationReport) -> Section:
    """The headline metric of every group, worst first."""
    seen = report.comparison
    if not seen.metrics:
        return Section("groups", "Groups")
    headline = seen.metrics[0]
    unit = f" ({headline.unit})" if headline.unit else ""
    table = make_table(
        (
            *code_columns("Group"),
            *number_columns("Samples", f"FP32{unit}", f"INT8{unit}", f"Worse by{unit}"),
        ),
        sorted(seen.by_group, key=lambda row: (math.isfinite(row.increase), -row.increase)),
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
