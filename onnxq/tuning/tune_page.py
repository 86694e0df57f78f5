"""A search as tables and plots, for Markdown, HTML and the terminal."""

from markupsafe import Markup

from onnxq.artifacts import PlanTrial, Tuning
from onnxq.tuning.tune import RECORD
from onnxq.verify.report.charts import Dot, dots
from onnxq.verify.report.formatting import MISSING, byte_unit, integer, interval, number, percent
from onnxq.verify.report.page import Figure, Page
from onnxq.verify.report.tables import (
    Section,
    Table,
    code_columns,
    make_table,
    number_columns,
    text_columns,
)

__all__ = ["plans_table", "tuning_page"]


def tuning_page(found: Tuning) -> Page:
    """The advice, the front, every trial, the lines to paste."""
    truth = (
        "the labels" if found.truth == "labels" else "FP32's own answers, as there are no labels"
    )
    limits = [
        f"{name.replace('_', '-')} {value:g}"
        for name, value in found.budgets.model_dump().items()
        if value is not None
    ]
    within = f" Budgets: {', '.join(limits)}." if limits else ""
    sections = [
        Section(
            "front",
            "Size against accuracy",
            f"Every plan as the file that it makes, held against {truth}: at most "
            f"{number(found.limit, 3, trim=True)}{found.unit and ' '}{found.unit} worse in "
            f"{found.metric}, judged by the {found.judge}.{within} Plans of the Pareto front stand "
            "out: no other is both smaller and nearer to FP32.",
            (plans_table(found),),
        )
    ]
    if found.refused:
        rows = make_table(
            (*code_columns("Bits"), *text_columns("Why not")),
            found.refused.items(),
            lambda item: item,
        )
        sections.append(Section("refused", "What the target has no place for", "", (rows,)))
    if found.chosen is not None:
        lead = "Paste these lines into the recipe in place of its section `quantize`."
        sections.append(Section("chosen", found.chosen, lead))
    return Page(
        title=f"Precision of {found.name} for {found.target}",
        lead=found.advice,
        sections=tuple(sections),
        provenance=found.provenance,
        record=RECORD,
        notes=found.notes,
        figures={"front": (_plot(found),)},
        listings={"chosen": found.lines},
    )


def plans_table(found: Tuning) -> Table:
    """One row a plan, the smallest first."""
    unit, factor = byte_unit(found.fp32_bytes)

    def cells(trial: PlanTrial) -> tuple[str, ...]:
        known = trial.increase is not None
        seen = trial.interval
        used = f"{integer(trial.samples)} of {integer(trial.of_samples)}" if known else MISSING
        verdict = trial.verdict + (
            f", but breaks {', '.join(trial.broken)}" if trial.broken else ""
        )
        return (
            trial.name,
            verdict,
            number(trial.size_bytes / factor, 4) if known else MISSING,
            f"{number(trial.size_ratio, 3)}×" if known else MISSING,
            number(trial.increase, 3),
            interval(seen.low, seen.high, 3) if seen else MISSING,
            used,
            percent(trial.hardware_macs),
            MISSING if trial.latency_ratio is None else f"{number(trial.latency_ratio, 3)}×",
            ", ".join(trial.steps) or trial.reason or MISSING,
        )

    return make_table(
        (
            *text_columns("Plan", "Verdict"),
            *number_columns(f"Size ({unit})", "of FP32's", "Worse by", "95 %", "Samples"),
            *number_columns("Integer MACs (%)", "Latency"),
            *text_columns("Steps"),
        ),
        sorted(found.trials, key=lambda trial: trial.size_bytes),
        cells,
        lambda trial: trial.name in found.front,
    )


def _plot(found: Tuning) -> Figure:
    unit, factor = byte_unit(found.fp32_bytes)
    points = [
        Dot(trial.name, trial.size_bytes / factor, trial.increase, trial.name in found.front)
        for trial in found.trials
        if trial.increase is not None
    ]
    named = f"{found.metric} worse by" + (f" ({found.unit})" if found.unit else "")
    return Figure(
        Markup(dots(points, (f"size ({unit})", named), found.limit)),
        "Joined: the Pareto front. Dashed: what is allowed.",
        (("int8", "on the front"), ("fp32", "others")),
    )
