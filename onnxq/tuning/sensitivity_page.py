"""A sensitivity as tables and plots, for Markdown, HTML and the terminal."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from onnxq.artifacts import LayerSensitivity, Sensitivity, decibels
from onnxq.tuning.sensitivity import RECORD
from onnxq.verify.report.charts import Bar, bars, waterfall
from onnxq.verify.report.formatting import MISSING, integer, number
from onnxq.verify.report.page import Figure, Page
from onnxq.verify.report.tables import (
    Section,
    Table,
    code_columns,
    make_table,
    number_columns,
    text_columns,
)

__all__ = ["budget_parts", "budget_table", "cost_of", "ranked", "sensitivity_page"]

_PER_MILLE = 1000.0
_KEYS = (("fp32", "weights"), ("int8", "activations"))


def cost_of(row: LayerSensitivity) -> float | None:
    """What a layer is ranked by: the error with it alone quantized, else its part of the budget,
    else what the error sinks by without it (which a caller ranks by −without)."""
    if row.only is not None:
        return row.only
    parts = [part for part in (row.budget_weights, row.budget_activations) if part is not None]
    if parts:
        return math.fsum(parts)
    return -row.without if row.without is not None else None


def ranked(found: Sensitivity) -> tuple[LayerSensitivity, ...]:
    """Layers, the costliest first."""
    return tuple(sorted(found.layers, key=lambda row: -(cost_of(row) or -math.inf)))


def budget_parts(found: Sensitivity) -> tuple[float, float] | None:
    """What weights and what activations add to the error; None if it was not divided. The two add
    up to the whole error, exactly."""
    weights = [row.budget_weights for row in found.layers if row.budget_weights is not None]
    rest = [row.budget_activations for row in found.layers if row.budget_activations is not None]
    return (math.fsum(weights), math.fsum(rest)) if weights or rest else None


def sensitivity_page(found: Sensitivity) -> Page:
    """The whole record: the chart, the budget, every figure."""
    first = ranked(found)[0] if found.layers else None
    lead = (
        f"All quantized, the outputs stand at {_db(found.error)} dB; weights alone at "
        f"{_db(found.weights_error)} dB, activations alone at {_db(found.activations_error)} dB."
    )
    if first is not None and first.only is not None:
        lead += f" Of single layers {first.layer} costs most: {_db(first.only)} dB by itself."
    sections = [
        Section(
            "layers",
            "Layers by cost",
            "One layer quantized and all others float, and the other way round. A layer is a node "
            "with its constants and all tensors that share its output's scale. Error is Σ error² / "
            "Σ FP32² of the outputs, in thousandths; SQNR is −10·log10 of it.",
            (_layers_table(found),),
        )
    ]
    figures: dict[str, tuple[Figure, ...]] = {"layers": (_bars(ranked(found)),)}
    if budget_parts(found) is not None:
        sections.insert(
            0,
            Section(
                "budget",
                "The budget of the error",
                "Q/DQ are switched on one after the other: along the graph, and in each layer its "
                "weights before its activations. What each adds to the error of the outputs is its "
                "part, so the parts add up to the whole error exactly. A part can be negative, "
                "where one error takes off another; it depends on that order, and the figures of "
                "single layers further down do not.",
                (budget_table(found),),
            ),
        )
        figures["budget"] = _waterfalls(found)
    return Page(
        title=f"What quantizing {found.name} for {found.target} costs, layer by layer",
        lead=lead,
        sections=tuple(sections),
        provenance=found.provenance,
        record=RECORD,
        notes=_notes(found),
        figures=figures,
    )


def budget_table(found: Sensitivity) -> Table:
    """Parts of the error in the order that they were switched on, and their sums."""
    rows = [
        (row.layer, row.op_type, row.budget_weights, row.budget_activations) for row in found.layers
    ]
    rows.append(("together", "", *(budget_parts(found) or (None, None))))
    total = found.error
    return make_table(
        (
            *code_columns("Layer"),
            *text_columns("Operator"),
            *number_columns("Weights (‰)", "Activations (‰)", "Together (‰)", "Of the whole (%)"),
        ),
        rows,
        lambda row: (
            *(row[0], row[1], _mille(row[2]), _mille(row[3]), _mille(_sum(row[2:]))),
            number(100 * _sum(row[2:]) / total, 3, trim=True) if total else MISSING,
        ),
        lambda row: row[0] == "together",
    )


def _layers_table(found: Sensitivity) -> Table:
    has_loss = any(row.fisher is not None for row in found.layers)
    columns = (
        *code_columns("Layer"),
        *text_columns("Operator"),
        *number_columns("Weights", "MACs", "Only it (‰)", "SQNR (dB)", "All but it (dB)"),
        *number_columns("Its weights (dB)", "Its activations (dB)"),
        *(number_columns("Fisher, loss") if has_loss else ()),
    )
    return make_table(
        columns,
        ranked(found),
        lambda row: (
            *(row.layer, row.op_type, integer(row.weights), integer(row.macs), _mille(row.only)),
            *(_db(row.only), _db(row.without), _db(row.only_weights), _db(row.only_activations)),
            *((number(row.fisher, 3),) if has_loss else ()),
        ),
    )


def _bars(rows: Sequence[LayerSensitivity]) -> Figure:
    drawn = [Bar(row.layer, _PER_MILLE * (cost_of(row) or 0.0)) for row in rows]
    return Figure(
        Markup(bars(drawn, "error with this layer alone quantized (‰)")), "The costliest first."
    )


def _waterfalls(found: Sensitivity) -> tuple[Figure, ...]:
    weights, activations = budget_parts(found) or (0.0, 0.0)
    whole = [
        Bar("weights", _PER_MILLE * weights), Bar("activations", _PER_MILLE * activations, "int8")
    ]  # fmt: skip
    steps = [
        Bar(row.layer, _PER_MILLE * part, kind)
        for row in found.layers
        for part, kind in ((row.budget_weights, "fp32"), (row.budget_activations, "int8"))
        if part is not None
    ]
    title = "error of the outputs (‰)"
    return (
        Figure(Markup(waterfall(whole, title, "all quantized")), "All layers together.", _KEYS),
        Figure(Markup(waterfall(steps, title, "all quantized")), "Along the graph.", _KEYS),
    )


def _notes(found: Sensitivity) -> tuple[str, ...]:
    notes = [
        f"Measured on {integer(found.samples)} of the samples that the ranges come from "
        f"({found.data}): they choose a precision, and judge nothing.",
        "Computed as the graph says, without optimization.",
    ]
    if found.loss:
        known = any(row.fisher is not None for row in found.layers)
        notes.append(f"Fisher: {found.loss}." if known else f"Fisher: {found.loss}")
    return tuple(notes)


def _db(error: float | None) -> str:
    value = decibels(error)
    return MISSING if value is None else "∞" if math.isinf(value) else f"{value:.1f}"


def _mille(value: float | None) -> str:
    return MISSING if value is None else number(_PER_MILLE * value, 3)


def _sum(parts: Sequence[float | None]) -> float:
    return math.fsum(part for part in parts if part is not None)
