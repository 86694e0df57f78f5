"""The calibration passport: what ranges are worth on samples that calibration has not seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from onnxq.affine import parameters_of_range
from onnxq.artifacts import (
    CellCount,
    CellCoverage,
    Finding,
    InputRow,
    OutsideRow,
    Passport,
    SampleChoice,
    StabilityRow,
    Sufficiency,
    TensorRange,
)
from onnxq.calibrate.estimators import EstimatorOptions, Method
from onnxq.calibrate.facets import Facet, Kind, facets_of, plural, some, word_of
from onnxq.calibrate.preprocessing import Moments, compare_inputs
from onnxq.calibrate.stability import stability_of, sufficiency
from onnxq.calibrate.statistics import Statistics, TensorStatistics
from onnxq.qtypes import IntType
from onnxq.samples import Samples

__all__ = ["MOST_EVALUATED", "Calibrated", "Evaluated", "passport"]

MOST_EVALUATED = 64  # evaluation samples that are run: more tell little more and cost time
_MOST_OUTSIDE = 1e-3  # share of values beyond what the method leaves out: ten times percentile's
_MOST_RUNS = 0.05  # that saturate an output; by minmax of 200 samples about 1 % of others do
_MOST_BEYOND = 0.05  # share of labels; of 200 drawn at random about 1 % of others lie beyond
_KINDS: tuple[Kind, ...] = ("label", "timestep", "group")


@dataclass(frozen=True)
class Calibrated:
    """A finished calibration; ``inputs`` are the moments of its samples' inputs."""

    statistics: Statistics
    ranges: Mapping[str, TensorRange]
    choice: SampleChoice
    method: Method
    options: EstimatorOptions
    inputs: Mapping[str, Moments]


@dataclass(frozen=True)
class Evaluated:
    """The other side: ``statistics``, with histograms, are of the same tensors on some of the
    evaluation ``samples``, and so are the moments of ``inputs``."""

    statistics: Statistics
    samples: Samples
    inputs: Mapping[str, Moments]


def passport(
    calibrated: Calibrated, outputs: Sequence[str] = (), evaluated: Evaluated | None = None
) -> Passport:
    """Everything that can be said of a calibration; without ``evaluated`` its stability alone.

    ``outputs`` are the graph's. That no sample is on both sides is not looked at here: it is an
    error before (``refuse_overlap``), and by what it was checked is recorded.
    """
    choice = calibrated.choice
    rows = stability_of(
        calibrated.statistics,
        calibrated.ranges,
        calibrated.method,
        calibrated.options,
        choice.seed,
    )
    seen = sufficiency(rows, len(choice.indices))
    if evaluated is None:
        coverage = _coverage(choice, None)
        findings = _of_stability(rows, seen)
        return Passport(
            evaluated=0, coverage=coverage, stability=rows, sufficiency=seen, findings=findings
        )
    outside = _outside(calibrated, evaluated.statistics, outputs)
    coverage = _coverage(choice, evaluated.samples)
    inputs = compare_inputs(calibrated.inputs, evaluated.inputs)
    return Passport(
        evaluated=evaluated.statistics.runs,
        overlap_checked=_checks(choice, evaluated.samples),
        outside=outside,
        coverage=coverage,
        stability=rows,
        sufficiency=seen,
        inputs=inputs,
        findings=(
            *_of_inputs(inputs, evaluated.samples),
            *_of_coverage(coverage, evaluated.samples),
            *_of_outside(outside),
            *_of_stability(rows, seen),
        ),
    )


# --- values outside the ranges ------------------------------------------------------------------


def _outside(
    calibrated: Calibrated, evaluation: Statistics, outputs: Sequence[str]
) -> tuple[OutsideRow, ...]:
    """Every tensor, those with the largest share outside first."""
    rows = []
    for name in evaluation.tensors:
        seen, known = evaluation.of(name), calibrated.ranges[name]
        if seen.is_empty or seen.summary is None:
            continue
        summary = seen.summary
        beyond = summary.values_below(known.low) + summary.values_above(known.high)
        excess = max(known.low - seen.low, seen.high - known.high, 0.0)
        grid = parameters_of_range(
            known.range, IntType.INT8, symmetric=calibrated.options.symmetric
        )
        rows.append(
            OutsideRow(
                tensor=name,
                is_output=name in outputs,
                runs=_runs_outside(seen, known),
                share=beyond / summary.finite,
                calibration_share=known.outside_fraction,
                excess=excess,
                steps=excess / grid.scale,
            )
        )
    return tuple(sorted(rows, key=lambda row: (-row.share, -row.steps, row.tensor)))


def _runs_outside(seen: TensorStatistics, known: TensorRange) -> float:
    lows, highs = seen.lows.astype(np.float64), seen.highs.astype(np.float64)
    return float(np.mean((lows < known.low) | (highs > known.high)))


def _is_too_much(row: OutsideRow) -> bool:
    return row.share > (row.calibration_share or 0.0) + _MOST_OUTSIDE


def _of_outside(rows: Sequence[OutsideRow]) -> tuple[Finding, ...]:
    found = [
        Finding(
            where=row.tensor,
            what=f"the output saturates in {_percent(row.runs)} of the runs of evaluation, by up "
            f"to {row.excess:.4g} ({row.steps:.3g} steps of its grid)",
            do="calibrate on samples that reach as far, or declare its domain",
        )
        for row in rows
        if row.is_output and row.runs > _MOST_RUNS and row.steps > 1
    ]
    inside = [row for row in rows if not row.is_output and _is_too_much(row)]
    if inside:
        worst = inside[0]
        found.append(
            Finding(
                where=worst.tensor,
                what=f"{_percent(worst.share)} of its values in evaluation lie outside the "
                f"calibrated range, by up to {worst.steps:.3g} steps of the grid; "
                f"{len(inside)} of {len(rows)} tensors have more than "
                f"{_percent(_MOST_OUTSIDE)} outside",
                do="calibrate on more, or on more varied, samples",
            )
        )
    return tuple(found)


# --- what is not covered ------------------------------------------------------------------------


def _coverage(choice: SampleChoice, evaluation: Samples | None) -> tuple[CellCoverage, ...]:
    """Counts on both sides by label, timestep and group, where calibration knows them."""
    facets = {} if evaluation is None else {f.kind: f for f in facets_of(evaluation, choice.edges)}
    found = []
    for kind in _KINDS:
        drawn = {
            key.removeprefix(f"{kind} "): number
            for key, number in choice.bins.items()
            if key.startswith(f"{kind} ")
        }
        if drawn:
            is_number = kind == "label" and kind in choice.edges
            beyond = _beyond(choice, evaluation) if is_number else 0
            word = word_of(kind, has_edges=kind in choice.edges)
            cells = _cells(drawn, facets.get(kind))
            found.append(
                CellCoverage(
                    kind=kind, word=word, cells=cells, missing=_missing(kind, cells), beyond=beyond
                )
            )
    return tuple(found)


def _cells(drawn: Mapping[str, int], facet: Facet | None) -> tuple[CellCount, ...]:
    """Cells of either side, those of calibration first; evaluation's are None if not known."""
    counts = {} if facet is None else dict(zip(facet.names, facet.held.tolist(), strict=True))
    return tuple(
        CellCount(
            cell=cell,
            calibration=drawn.get(cell, 0),
            evaluation=None if facet is None else counts.get(cell, 0),
        )
        for cell in dict.fromkeys([*drawn, *counts])
    )


def _missing(kind: Kind, cells: Sequence[CellCount]) -> tuple[str, ...]:
    apart = not any(cell.calibration and cell.evaluation for cell in cells)
    if kind == "group" and apart:
        return ()
    return tuple(cell.cell for cell in cells if cell.evaluation and not cell.calibration)


def _beyond(choice: SampleChoice, evaluation: Samples | None) -> int:
    """How many evaluation labels lie below the lowest or above the highest of calibration."""
    labels = None if evaluation is None else evaluation.labels
    if labels is None or choice.label_low is None or choice.label_high is None:
        return 0
    if not np.issubdtype(labels.dtype, np.number):
        return 0
    return int(np.count_nonzero((labels < choice.label_low) | (labels > choice.label_high)))


def _checks(choice: SampleChoice, evaluation: Samples) -> tuple[Literal["content", "group"], ...]:
    """By what ``refuse_overlap`` has made sure that the sides share nothing."""
    if choice.made_up or choice.overlap_waived:
        return ()
    return ("content", "group") if choice.groups and evaluation.groups is not None else ("content",)


def _of_coverage(coverage: Sequence[CellCoverage], evaluation: Samples) -> tuple[Finding, ...]:
    found = []
    for seen in coverage:
        if seen.is_covered is False:
            held = sum(1 for cell in seen.cells if cell.evaluation)
            samples = sum(c.evaluation or 0 for c in seen.cells if c.cell in set(seen.missing))
            found.append(
                Finding(
                    where=evaluation.name,
                    what=f"calibration has no sample of {len(seen.missing)} of the {held} "
                    f"{plural(seen.word, held)} in evaluation: {some(seen.missing)} "
                    f"({samples} of {len(evaluation)} samples)",
                    do=f"calibrate on samples of every {seen.word} (`calibrate: stratify:`)",
                )
            )
        if seen.beyond > _MOST_BEYOND * len(evaluation):
            found.append(
                Finding(
                    where=evaluation.name,
                    what=f"{seen.beyond} of {len(evaluation)} labels in evaluation lie outside "
                    "those of calibration",
                    do="calibrate on samples whose labels reach as far",
                )
            )
    return tuple(found)


# --- preprocessing and stability ----------------------------------------------------------------


def _of_inputs(rows: Sequence[InputRow], evaluation: Samples) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            where=f"{evaluation.name}, input `{row.input}`",
            what=f"has mean {row.evaluation_mean:.4g} and standard deviation "
            f"{row.evaluation_std:.4g} in evaluation, {row.calibration_mean:.4g} and "
            f"{row.calibration_std:.4g} in calibration",
            do="preprocess both in the same way: scaling, mean and deviation removed, layout",
        )
        for row in rows
        if row.differs
    )


def _of_stability(rows: Sequence[StabilityRow], seen: Sufficiency | None) -> tuple[Finding, ...]:
    if seen is None:
        return ()
    found = []
    if seen.spread > seen.spread_allowed:
        loose = sum(1 for row in rows if row.spread > seen.spread_allowed)
        found.append(
            Finding(
                where=rows[0].tensor,
                what=f"other samples would move the width of its range by ± {rows[0].spread:.0%}; "
                f"{loose} of {seen.tensors} ranges move by more than {seen.spread_allowed:.0%}",
                do=f"calibrate on more than {seen.samples} samples, or with a method that looks "
                "past single values (percentile, mse)",
            )
        )
    if seen.change is not None and seen.enough != seen.samples:
        enough = f"about {seen.enough}" if seen.enough else "how many"
        said = "are estimated to do" if seen.enough else "would do cannot be said"
        found.append(
            Finding(
                where="number of samples",
                what=f"ranges still changed by {seen.change:.0%} when the samples were doubled to "
                f"{seen.samples}; {enough} {said}",
                do="calibrate on more samples",
            )
        )
    return tuple(found)


def _percent(share: float) -> str:
    return f"{share:.1%}"
