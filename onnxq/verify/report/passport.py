"""The calibration passport: what the ranges are worth on samples that calibration has not seen."""

from collections.abc import Sequence

from onnxq.artifacts import CellCoverage, Passport, VerificationReport
from onnxq.verify.report.formatting import MISSING, integer, number, percent
from onnxq.verify.report.tables import (
    Section,
    Table,
    code_columns,
    make_table,
    number_columns,
    text_columns,
)

__all__ = ["passport"]

_MOST_ROWS = 10
_MOST_NAMES = 12
_YES_NO = {True: "yes", False: "no", None: "cannot be said"}
_CHECKED = {
    "content": "the SHA-256 of every sample's inputs",
    "group": "the names of the groups",
}


def passport(report: VerificationReport) -> Section:
    """Verdict, findings, and the figures behind them."""
    seen = report.passport
    if seen is None:
        return Section("passport", "Calibration passport")
    tables = (
        _answers(seen),
        _findings(seen),
        _coverage(seen),
        _inputs(seen),
        _outside(seen),
        _stability(seen),
    )
    return Section(
        "passport",
        "Calibration passport",
        _verdict(seen),
        tuple(table for table in tables if table.rows),
    )


def _verdict(seen: Passport) -> str:
    """One sentence: stable, covered, same preprocessing?"""
    said = (
        {
            True: "The ranges are stable",
            False: "The ranges are not stable: other samples would have given others",
            None: "Whether the ranges are stable cannot be said of so few samples",
        }[seen.is_stable],
        {
            True: "calibration covers what occurs in evaluation",
            False: "calibration does not cover all that occurs in evaluation",
            None: "whether calibration covers evaluation is not known",
        }[seen.is_covered],
        {
            True: "both are preprocessed alike",
            False: "and their inputs are not preprocessed alike",
            None: "and no evaluation was at hand to compare inputs with",
        }[seen.same_preprocessing],
    )
    compared = f" Compared on {integer(seen.evaluated)} evaluation samples." * bool(seen.evaluated)
    return f"{'; '.join(said)}.{compared}"


def _answers(seen: Passport) -> Table:
    rows = [
        ("Are the ranges stable?", seen.is_stable, _of_spread(seen)),
        ("Are there enough samples?", _is_enough(seen), _of_number(seen)),
        ("Is evaluation covered?", seen.is_covered, _of_coverage(seen.coverage)),
        ("Same preprocessing?", seen.same_preprocessing, _of_inputs(seen)),
        ("Kept apart from evaluation?", bool(seen.overlap_checked) or None, _of_overlap(seen)),
    ]
    return make_table(
        text_columns("Question", "Answer", "What was seen"),
        rows if seen.evaluated else rows[:2],
        lambda row: (row[0], _YES_NO[row[1]], row[2]),
        lambda row: row[1] is False,
    )


def _of_spread(seen: Passport) -> str:
    by = seen.sufficiency
    if by is None:
        return "too few samples, or no range was estimated"
    return (
        f"95 % of {integer(by.tensors)} ranges would move by at most ± {percent(by.spread)} % of "
        f"their width with other samples; stable is up to ± {percent(by.spread_allowed)} %"
    )


def _is_enough(seen: Passport) -> bool | None:
    by = seen.sufficiency
    return None if by is None or by.enough is None else by.enough <= by.samples


def _of_number(seen: Passport) -> str:
    by = seen.sufficiency
    if by is None or by.change is None:
        return "too few samples to divide"
    grown = (
        f"the last doubling, to {integer(by.samples)} samples, changed 95 % of the widths by at "
        f"most {percent(by.change)} %, the one before by {percent(by.change_before)} %"
    )
    if by.enough is None:
        return f"{grown}; how many would do cannot be said"
    about = f"about {integer(by.enough)} samples" if by.enough > by.samples else "they"
    return (
        f"{grown}; {about} are estimated to do: the next doubling changes them by less than "
        f"{percent(by.tolerance)} %"
    )


def _of_coverage(coverage: Sequence[CellCoverage]) -> str:
    said = [
        f"{c.word}: {integer(len(c.missing))} of {integer(_occupied(c)[1])} have no calibration "
        "sample"
        for c in coverage
        if c.is_covered is False
    ]
    said += [
        f"{c.word}: {integer(_occupied(c)[1])} in evaluation, more than calibration has samples"
        for c in coverage
        if c.missing and c.is_covered is None
    ]
    known = ", ".join(c.word for c in coverage) or "nothing"
    return "; ".join(said) or f"known of the samples: {known}"


def _of_inputs(seen: Passport) -> str:
    differing = [row.input for row in seen.inputs if row.differs]
    limits = "means within half a standard deviation, deviations within a factor of 1.5"
    return f"differ: {', '.join(differing)}" if differing else limits


def _of_overlap(seen: Passport) -> str:
    checked = " and by ".join(_CHECKED[way] for way in seen.overlap_checked)
    return f"checked by {checked}" if checked else "not checked: calibrated on random numbers"


def _findings(seen: Passport) -> Table:
    return make_table(
        text_columns("Where", "What", "What to do"),
        seen.findings,
        lambda found: (found.where, found.what, found.do or MISSING),
        title="What to mend",
    )


def _occupied(coverage: CellCoverage) -> tuple[int, int | None]:
    """Cells with samples: in calibration, and in evaluation, if that is known."""
    cells = coverage.cells
    known = any(c.evaluation is not None for c in cells)
    evaluation = sum(1 for c in cells if c.evaluation) if known else None
    return sum(1 for c in cells if c.calibration), evaluation


def _coverage(seen: Passport) -> Table:
    return make_table(
        (
            *text_columns("Known of samples"),
            *number_columns("In calibration", "In evaluation"),
            *text_columns("In evaluation only"),
        ),
        seen.coverage,
        lambda c: (c.word, *map(integer, _occupied(c)), _listed(c.missing) or MISSING),
        lambda c: c.is_covered is False,
        title="Coverage",
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _inputs(seen: Passport) -> Table:
    return make_table(
        (
            *code_columns("Input"),
            *number_columns("Mean, calibration", "Mean, evaluation"),
            *number_columns("Std, calibration", "Std, evaluation"),
            *number_columns("Means apart (std)", "Std ratio"),
        ),
        seen.inputs,
        lambda row: (
            row.input,
            *map(number, (row.calibration_mean, row.evaluation_mean)),
            *map(number, (row.calibration_std, row.evaluation_std)),
            *(number(value, 3) for value in (row.shift, row.ratio)),
        ),
        lambda row: row.differs,
        title="Inputs on both sides",
    )


def _outside(seen: Passport) -> Table:
    """The outputs, and the tensors with most outside."""
    outputs = [row for row in seen.outside if row.is_output]
    others = [row for row in seen.outside if not row.is_output and row.excess > 0]
    return make_table(
        (
            *code_columns("Tensor"),
            *text_columns("Kind"),
            *number_columns("Runs with any outside (%)"),
            *number_columns("Values outside (%)", "Left out in calibration (%)"),
            *number_columns("Largest excess", "Excess (steps)"),
        ),
        [*outputs, *others[:_MOST_ROWS]],
        lambda row: (
            row.tensor,
            "output" if row.is_output else "activation",
            percent(row.runs),
            percent(row.share),
            percent(row.calibration_share),
            number(row.excess),
            number(row.steps, 3),
        ),
        title="Values outside the calibrated ranges",
    )


def _stability(seen: Passport) -> Table:
    return make_table(
        (
            *code_columns("Tensor"),
            *number_columns("Moves by ± (%)", "Width from a quarter (%)", "Width from half (%)"),
        ),
        seen.stability[:_MOST_ROWS],
        lambda row: (
            row.tensor,
            percent(row.spread),
            percent(row.quarter),
            percent(row.half),
        ),
        title="Ranges that depend most on the samples drawn",
    )
