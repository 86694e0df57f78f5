"""A comparison as tables and plots, for Markdown, HTML and the terminal."""

from dataclasses import replace

from markupsafe import Markup

from onnxq.artifacts import CandidateFacts, Interval, MetricOfModel, PairedRow, SideBySide
from onnxq.verify.report.charts import Bar, Span, bars, spans
from onnxq.verify.report.formatting import MISSING, byte_unit, integer, interval, number
from onnxq.verify.report.page import Figure, Page
from onnxq.verify.report.tables import (
    Section,
    Table,
    code_columns,
    make_table,
    number_columns,
    only_columns,
    text_columns,
)

__all__ = ["RECORD", "brief_table", "comparison_page", "models_table", "pairs_table"]

RECORD = "comparison.json"


def comparison_page(found: SideBySide) -> Page:
    """The whole comparison: the advice first, then every figure."""
    grouped = f" in {integer(found.groups)} groups" if found.groups else ""
    sections = (
        Section(
            "models",
            "Side by side",
            f"On {integer(found.samples)} samples{grouped} of {found.data}, which all models were "
            "given. Intervals are paired with FP32, 95 %; worse is positive.",
            (models_table(found),),
        ),
        Section("pairs", "Against one another", _about_pairs(found), (pairs_table(found),)),
        Section("metrics", "Every metric", "", (_metrics_table(found),)),
        Section("made", "How they were made", "", (_making(found),)),
    )
    return Page(
        title=f"{len(found.models) - 1} candidates beside FP32",
        lead=found.advice,
        sections=tuple(section for section in sections if section.tables[0].rows),
        provenance=found.provenance,
        record=RECORD,
        notes=found.notes,
        figures={"models": _figures(found)},
    )


def models_table(found: SideBySide) -> Table:
    """One row a model: the headline metric, SQNR, bytes and latency."""
    rows = {row.model: row for row in found.metrics if row.metric == found.headline}
    first = rows[found.models[0].name]
    unit, factor = byte_unit(found.models[0].size_bytes)
    named = f"{first.metric} ({first.unit})" if first.unit else first.metric
    columns = (
        *text_columns("Model"),
        *number_columns(named, "Worse by", "95 %", "SQNR (dB)", f"Size ({unit})", "of FP32's"),
        *number_columns("Latency (ms)", "Quartiles", "of FP32's"),
    )
    if found.limit is not None:
        columns += text_columns(f"Within {number(found.limit, 3, trim=True)}")

    def cells(model: CandidateFacts) -> tuple[str, ...]:
        row, time = rows[model.name], model.latency
        shown = (
            model.name,
            *(number(row.value, 4), number(row.increase, 3), _interval(row.interval)),
            MISSING if model.sqnr_db is None else f"{model.sqnr_db:.1f}",
            *(number(model.size_bytes / factor, 3), f"{number(model.size_ratio, 3)}×"),
            *(
                (
                    number(time.median_ms, 3),
                    f"{number(time.low_quartile_ms, 3)}–{number(time.high_quartile_ms, 3)}",
                    f"{number(time.ratio, 3)}×",
                )
                if time
                else (MISSING,) * 3
            ),
        )
        return shown if found.limit is None else (*shown, _judgement(found, model))

    return make_table(columns, found.models, cells, lambda model: model.name in found.beyond)


def brief_table(found: SideBySide) -> Table:
    """``models_table`` for a narrow terminal."""
    whole = models_table(found)
    kept = [index for index in (0, 1, 2, 3, 4, 6, 9, 10) if index < len(whole.columns)]
    titles = {6: "Bytes", 9: "Latency"}
    brief = only_columns(whole, kept)
    columns = (
        replace(column, title=titles.get(index, column.title))
        for index, column in zip(kept, brief.columns, strict=True)
    )
    return replace(brief, columns=tuple(columns))


def pairs_table(found: SideBySide) -> Table:
    """Every two candidates on the same samples; without a row if there is only one."""
    return make_table(
        (
            *text_columns("Metric", "First", "Second"),
            *number_columns("Second worse by", "95 %", "Only first right", "Only second right"),
            *number_columns("McNemar p"),
        ),
        found.pairs,
        lambda row: (
            *(row.metric, row.first, row.second, number(row.increase, 3), _interval(row.interval)),
            *(integer(row.only_first), integer(row.only_second), _p_value(row)),
        ),
        _is_significant,
    )


def _metrics_table(found: SideBySide) -> Table:
    def cells(row: MetricOfModel) -> tuple[str, ...]:
        named = f"{row.metric} ({row.unit})" if row.unit else row.metric
        shown = (named, row.model, number(row.value, 5), number(row.increase, 3))
        return (*shown, _interval(row.interval))

    columns = (*text_columns("Metric", "Model"), *number_columns("Value", "Worse by", "95 %"))
    return make_table(columns, found.metrics, cells)


def _making(found: SideBySide) -> Table:
    columns = (
        *text_columns("Model"),
        *code_columns("File", "SHA-256", "Target", "Weights", "Activations"),
        *text_columns("Judged", "What was done"),
    )
    judged = {"runtime": "as ONNX Runtime executes it", "graph": "as the graph says"}
    return make_table(
        columns,
        found.models,
        lambda model: (
            *(model.name, model.file.name, model.file.sha256[:16], model.target or MISSING),
            *(model.weights or "?", model.activations or "?", judged[model.judged_as]),
            "; ".join(model.steps) or MISSING,
        ),
    )


def _figures(found: SideBySide) -> tuple[Figure, ...]:
    rows = [
        row for row in found.metrics if row.metric == found.headline and row.increase is not None
    ]
    title = f"worse than FP32: {found.headline}"
    title += f" ({rows[0].unit})" if rows and rows[0].unit else ""
    drawn = [
        Span(
            row.model,
            float(row.increase or 0.0),
            row.interval.low if row.interval else None,
            row.interval.high if row.interval else None,
        )
        for row in rows
    ]
    limit = "" if found.limit is None else " Dashed: what is allowed."
    figures = [
        Figure(
            Markup(spans(drawn, title, found.limit)),
            f"Increase over FP32 and its paired 95 % interval.{limit}",
        )
    ]
    costs = [Bar(f"{model.name}, bytes", model.size_ratio) for model in found.models[1:]]
    costs += [
        Bar(f"{model.name}, latency", model.latency.ratio, "int8")
        for model in found.models[1:]
        if model.latency is not None
    ]
    figures.append(
        Figure(
            Markup(bars(costs, "share of FP32's")),
            "Bytes and median latency over FP32's.",
            (("fp32", "bytes"), ("int8", "latency")),
        )
    )
    return tuple(figures)


def _about_pairs(found: SideBySide) -> str:
    lead = "The same samples under two candidates; rows whose whole interval is on one side stand "
    lead += "out."
    if any(row.only_first is not None for row in found.pairs):
        lead += " McNemar's test is exact and counts the samples that one of the two has right"
        lead += (
            "; it is left out, as samples of a group are not independent." if found.groups else "."
        )
    return lead


def _judgement(found: SideBySide, model: CandidateFacts) -> str:
    if model.kind == "fp32":
        return MISSING
    if model.name in found.within:
        return "yes"
    return "no" if model.name in found.beyond else "not settled"


def _interval(seen: Interval | None) -> str:
    return MISSING if seen is None else interval(seen.low, seen.high, 3)


def _p_value(row: PairedRow) -> str:
    if row.p_value is None:
        return MISSING
    return "< 0.0001" if row.p_value < 1e-4 else f"{row.p_value:.4f}"


def _is_significant(row: PairedRow) -> bool:
    return row.interval is not None and (row.interval.low > 0 or row.interval.high < 0)
