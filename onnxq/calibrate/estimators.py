"""Statistics of a tensor → the range it is quantized with. One pure function a method."""

from collections.abc import Callable
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le
from jaxtyping import Float64, Int64
from pydantic import BaseModel, ConfigDict

from onnxq.calibrate.density import SMALLEST, linear_bins
from onnxq.calibrate.divergence import divergences, smooth_part
from onnxq.calibrate.grid_error import Grid, GridError
from onnxq.calibrate.statistics import Summary, TensorStatistics
from onnxq.errors import UsageError
from onnxq.qtypes import Range
from onnxq.recipe import NEEDS_HISTOGRAM, Method

__all__ = [
    "NEEDS_HISTOGRAM",
    "EstimatorOptions",
    "Method",
    "ema",
    "entropy",
    "estimate",
    "meanstd",
    "minmax",
    "mse",
    "percentile",
]

_NARROWEST = 1 / 64  # share of an extreme below which mse does not look
_RUNGS = 13  # shares that mse begins with, a factor of sqrt(2) apart
_REFINEMENTS = 3  # each tries 9 shares around the best, 4 times as dense as before
_WINDOWS = 256  # ranges that entropy compares


class EstimatorOptions(BaseModel):
    """Options of the methods; each method reads its own.

    ``symmetric`` and ``steps`` describe the grid that the range is for: whether its zero is in its
    middle, and how many steps lie between its ends. ``percentile``, ``mse`` and ``entropy`` read
    the first, ``mse`` and ``entropy`` the second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    coverage: Annotated[float, Gt(0), Le(1)] = 0.9999  # share of values kept inside (percentile)
    momentum: Annotated[float, Gt(0), Le(1)] = 0.05  # weight of the newest run (ema)
    power: Annotated[float, Gt(0)] = 2.0  # of the error that is summed (mse)
    bins: Annotated[int, Ge(2048)] = 2048  # from zero to the farther extreme (entropy)
    sigmas: Annotated[float, Gt(0)] = 12.0  # standard deviations each side of the mean (meanstd)
    symmetric: bool = False
    steps: Annotated[int, Ge(2)] = 255


def estimate(statistics: TensorStatistics, method: Method, options: EstimatorOptions) -> Range:
    """The range by ``method``: it holds zero, and beyond that nothing that was not seen.

    Raises EmptySummaryError if nothing was counted, UsageError if ``method`` needs a histogram and
    extremes alone were collected.
    """
    return _METHODS[method](statistics, options)


# --- of extremes alone --------------------------------------------------------------------------


def minmax(statistics: TensorStatistics, _: EstimatorOptions) -> Range:
    """From the smallest to the largest value seen, and zero."""
    return Range.including_zero(statistics.low, statistics.high)


def ema(statistics: TensorStatistics, options: EstimatorOptions) -> Range:
    """Exponential moving averages of the lowest and of the highest value of each run.

    ``low[1] = l[1]``, ``low[t] = (1 - momentum) · low[t-1] + momentum · l[t]``, ``high`` likewise;
    runs in which the tensor was empty are left out. **The order of the samples matters**: with the
    default momentum the newest 59 runs have 95 % of the weight.
    Source: Jacob et al. 2018, arXiv 1712.05877, section 3.1. The default is that of Q-Diffusion (Li
    et al. 2023, arXiv 2302.04304; its code weighs the old 0.95): the 0.01 that is usual in training
    would leave the first of 128 runs with 28 % of the weight.
    """
    widest = minmax(statistics, options)
    seen = ~np.isnan(statistics.lows)
    ages = np.arange(np.count_nonzero(seen))[::-1]
    weights = options.momentum * (1 - options.momentum) ** ages
    weights[0] /= options.momentum
    low, high = (
        float(weights @ runs[seen].astype(np.float64))
        for runs in (statistics.lows, statistics.highs)
    )
    return Range.including_zero(low, high).clamped(widest.low, widest.high)


# --- of moments and ranks -----------------------------------------------------------------------


def meanstd(statistics: TensorStatistics, options: EstimatorOptions) -> Range:
    """Mean ± ``sigmas`` standard deviations, as far as values were seen.

    With 8 bits the least squared error of a normal distribution lies at 3.9 standard deviations,
    of a Laplace distribution at 7.0, of Student's t with 5 degrees of freedom at 12. The default is
    the last: activations mix channels of different spread, and so have heavy tails. A range that is
    too wide by a factor of 2 costs 6 dB, one that is too narrow far more.
    Source: Banner et al. 2019, arXiv 1810.05723 (clipping by a distribution's width).
    """
    summary = _summary(statistics)
    reach = options.sigmas * summary.std
    inside = Range.including_zero(summary.mean - reach, summary.mean + reach)
    return inside.clamped(summary.low, summary.high)


def percentile(statistics: TensorStatistics, options: EstimatorOptions) -> Range:
    """Narrowest range [low, high] ∋ 0 whose outside holds at most 1 − coverage of the values, half
    on each side; on a symmetric grid the narrowest [−high, high].

    Exact to one bucket of the summary's histogram (relative width 2**-7), of which it takes the far
    edge. Source: Wu et al. 2020, arXiv 2004.09602 (percentile calibration, tried with shares from
    0.999 to 0.999999).
    """
    summary = _summary(statistics)
    lows, highs, counts = summary.distribution()
    outside = (1 - options.coverage) * summary.finite
    if options.symmetric:
        magnitudes = np.maximum(-lows, highs)
        order = np.argsort(magnitudes, kind="stable")
        high = _far_edge(magnitudes[order], counts[order], outside)
        low = -high
    else:
        low = -_far_edge(-lows[::-1], counts[::-1], outside / 2)
        high = _far_edge(highs, counts, outside / 2)
    return Range.including_zero(low, high).clamped(summary.low, summary.high)


def _far_edge(
    edges: Float64[np.ndarray, " k"], counts: Int64[np.ndarray, " k"], outside: float
) -> float:
    """The lowest of the rising ``edges`` beyond which at most ``outside`` values lie."""
    beyond = np.cumsum(counts[::-1])[::-1] - counts
    return float(edges[np.argmax(beyond <= outside)])


# --- of what is lost on the grid ----------------------------------------------------------------


def mse(statistics: TensorStatistics, options: EstimatorOptions) -> Range:
    """The range on whose grid the values have the least mean ``|error| ** power``.

    Both ends are searched, on a symmetric grid their common magnitude: first over shares of the
    extremes from 1 to 1/64, then ever closer around the best, down to 1 %. Values count as spread
    evenly over their bucket of the histogram, as at the top of the range one is two steps wide.
    Source: Banner et al. 2019, arXiv 1810.05723 (rounding against clipping, power 2);
    Nagel et al. 2021, arXiv 2106.08295, section 3.1 (a search of both ends). The default is what
    SQNR measures; 2.4, as in the code of BRECQ and Q-Diffusion, clips less.
    """
    summary = _summary(statistics)
    widest = minmax(statistics, options)
    reach = max(-widest.low, widest.high)
    if reach < SMALLEST:
        return widest
    low, high = widest.low / reach, widest.high / reach
    if options.symmetric:
        directions = np.array([[-1.0, 1.0]])
    elif low and high:
        directions = np.array([[low, 0.0], [0.0, high]])
    else:
        directions = np.array([[low, high]])
    grid = Grid(options.steps, options.symmetric)
    error = GridError(summary, grid, options.power, _NARROWEST)
    shares = _least(lambda tried: error(*(tried @ directions).tolist()), len(directions))
    low, high = (shares @ directions * reach).tolist()
    return Range(low, high).clamped(widest.low, widest.high)


def _least(
    error: Callable[[Float64[np.ndarray, " axes"]], float], axes: int
) -> Float64[np.ndarray, " axes"]:
    """Shares in (0, 1] of least error: all pairs of a coarse ladder, then each axis in turn."""
    ladder = np.geomspace(1, _NARROWEST, _RUNGS)
    best = min(np.stack(np.meshgrid(*[ladder] * axes), axis=-1).reshape(-1, axes), key=error)
    ratio = ladder[0] / ladder[1]
    for _ in range(_REFINEMENTS):
        for axis in range(axes):
            tried = np.tile(best, (9, 1))
            tried[:, axis] = np.minimum(best[axis] * ratio ** np.linspace(1, -1, 9), 1)
            best = min(tried, key=error)
        ratio **= 1 / 4
    return best


def entropy(statistics: TensorStatistics, options: EstimatorOptions) -> Range:
    """The range that, quantized, differs least from what was seen, by Kullback and Leibler.

    The summary becomes ``bins`` linear bins from zero to the farther extreme, and as wide ones on
    the other side. 256 windows [−t, t], as far as values were seen, are each compared with their
    quantized form (``divergences``). On an affine grid a window has ``steps`` + 1 levels; on a
    symmetric one the magnitudes have half as many. Two kinds of values would make every wide window
    look bad though quantization does them no harm, and are kept out of the comparison:

    - those that the widest grid rounds to zero, as most of what a Relu gives. (NVIDIA's
      pytorch-quantization overwrites the first bin; MXNet and onnxruntime count it.)
    - those that are all alike, as constant channels and what a Clip cut off: whatever a bin holds
      beyond the median of the 9 occupied bins around it. Clipped, they count like all others.

    Source: Migacz 2017, "8-bit inference with TensorRT", GTC talk S7310.
    """
    summary = _summary(statistics)
    widest = minmax(statistics, options)
    reach = max(-widest.low, widest.high)
    if reach < SMALLEST:
        return widest
    counts, below = linear_bins(summary, options.bins, folded=options.symmetric)
    above = len(counts) - below
    near = int(len(counts) / options.steps / 2) * (2 if options.symmetric else 1)
    counts[max(below - near, 0) : below + near] = 0
    levels = (options.steps + 1) // (2 if options.symmetric else 1)
    reaches = np.arange(options.bins, 0, -(options.bins // _WINDOWS))
    starts = below - np.minimum(reaches, below)
    sizes = np.minimum(reaches, below) + np.minimum(reaches, above)
    compared = (sizes >= levels) | (reaches == options.bins)
    smooth = smooth_part(counts)
    windows = (starts[compared], sizes[compared])
    lost = divergences(smooth, counts - smooth, windows, levels)
    high = float(reaches[np.argmin(lost)] / options.bins * reach)
    return Range(-high, high).clamped(widest.low, widest.high)


def _summary(statistics: TensorStatistics) -> Summary:
    if statistics.summary is None:
        raise UsageError(
            "only the extremes of each run were collected, and this method needs a histogram",
            where="calibrate: method",
            do=f"calibrate again with one of {', '.join(sorted(NEEDS_HISTOGRAM))}",
        )
    return statistics.summary


_METHODS: dict[Method, Callable[[TensorStatistics, EstimatorOptions], Range]] = {
    "minmax": minmax,
    "ema": ema,
    "percentile": percentile,
    "mse": mse,
    "entropy": entropy,
    "meanstd": meanstd,
}
