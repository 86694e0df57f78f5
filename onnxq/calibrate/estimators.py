"""Tensor summary → the range it is quantized with. One pure function a method."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Le
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict

from onnxq.calibrate.statistics import Summary
from onnxq.qtypes import Range

__all__ = ["EstimatorOptions", "Method", "estimate", "minmax", "mse", "percentile"]

Method = Literal["minmax", "percentile", "mse"]


class EstimatorOptions(BaseModel):
    """Options of the methods; each method reads its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: Annotated[float, Gt(0), Le(1)] = 0.9999  # share of values kept inside (percentile)
    steps: int = 255  # steps of the grid that the error is computed on (mse)


def minmax(summary: Summary, _: EstimatorOptions) -> Range:
    """From the smallest to the largest value seen, zero included.

    Raises EmptySummaryError if nothing was counted.
    """
    lows, highs, _counts = summary.distribution()
    return Range.including_zero(lows[0], highs[-1])


def percentile(summary: Summary, options: EstimatorOptions) -> Range:
    """Narrowest range [low, high] ∋ 0 whose outside holds at most 1 − coverage of the values,
    half on each side.

    Exact to one bucket of the summary's histogram (relative width 2**-7).
    Raises EmptySummaryError if nothing was counted.
    Source: Wu et al. 2020, arXiv 2004.09602, section 3.2 (percentile calibration).
    """
    lows, highs, counts = summary.distribution()
    tail = (1 - options.coverage) / 2 * summary.count
    below, above = np.cumsum(counts), np.cumsum(counts[::-1])
    low = lows[np.searchsorted(below, tail, side="right").clip(max=len(counts) - 1)]
    high = highs[::-1][np.searchsorted(above, tail, side="right").clip(max=len(counts) - 1)]
    return Range.including_zero(low, high)


def mse(summary: Summary, options: EstimatorOptions) -> Range:
    """The range whose affine grid has the least mean squared error on the histogram.

    Both ends are searched in turn over 64 fractions of the extreme, twice; a bucket counts with its
    middle. Raises EmptySummaryError if nothing was counted.
    Source: Banner et al. 2019, arXiv 1810.05723, section 3.1 (clipping against rounding error).
    """
    lows, highs, counts = summary.distribution()
    middles = (lows + highs) / 2
    best = Range.including_zero(lows[0], highs[-1])
    widest = best
    for _ in range(2):
        for end in ("high", "low"):
            best = min(
                (_with_end(best, widest, end, share) for share in np.linspace(1, 1 / 64, 64)),
                key=lambda trial: _squared_error(middles, counts, trial, options.steps),
            )
    return best


def _with_end(current: Range, widest: Range, end: str, share: float) -> Range:
    if end == "high":
        return Range(current.low, widest.high * share)
    return Range(widest.low * share, current.high)


def _squared_error(
    values: Float[np.ndarray, " k"], counts: np.ndarray, trial: Range, steps: int
) -> float:
    if not trial.width:
        return float(np.sum(counts * values**2))
    scale = trial.width / steps
    zero = np.rint(-trial.low / scale)
    grid = (np.clip(np.rint(values / scale) + zero, 0, steps) - zero) * scale
    return float(np.sum(counts * (values - grid) ** 2))


_METHODS: dict[Method, Callable[[Summary, EstimatorOptions], Range]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
}


def estimate(summary: Summary, method: Method, options: EstimatorOptions) -> Range:
    """The range by ``method``. Raises EmptySummaryError if nothing was counted."""
    return _METHODS[method](summary, options)
