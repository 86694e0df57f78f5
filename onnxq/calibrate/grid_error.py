"""What values lose on a grid of integers, integrated over a histogram."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from onnxq.calibrate.density import density_of
from onnxq.calibrate.statistics import Summary

__all__ = ["Grid", "GridError"]


@dataclass(frozen=True)
class Grid:
    """``steps`` + 1 values, evenly spaced, zero among them: in the middle, or anywhere."""

    steps: int
    symmetric: bool

    def over(self, low: float, high: float) -> tuple[float, float]:
        """Width of a step and number of the value that is zero, as ``affine`` has them."""
        if self.symmetric:
            return max(-low, high) / (self.steps // 2), float((self.steps + 1) // 2)
        scale = (high - low) / self.steps
        return scale, float(np.rint(-low / scale))


class GridError:
    """Sum of ``|value - nearest value of the grid| ** power`` for grids over any [low, high].

    Values count as spread evenly over their buckets, so that the sum is a weighted sum of the
    error's antiderivative at the buckets' edges. With n the value of the grid, in steps, nearest
    to x, and d = x - n, that is ``(n · 0.5**power + d · |d|**power) / (power + 1)``, inside the
    grid and beyond its ends. All is in units of the farther extreme; near zero, where buckets are
    finer than a step of a grid over ``narrowest`` of the range, they are joined.
    """

    def __init__(self, summary: Summary, grid: Grid, power: float, narrowest: float) -> None:
        self._grid, self._power = grid, power
        reach = max(-summary.low, summary.high)
        low, high = min(summary.low / reach, 0.0), max(summary.high / reach, 0.0)
        density = density_of(summary, reach)
        self._points, self._masses = density.points
        self._edges = _edges(low, high, reach, narrowest * (high - low) / grid.steps)
        heights = np.diff(density.spread.below(self._edges)) / np.diff(self._edges)
        self._weights = -np.diff(heights, prepend=0.0, append=0.0)

    def __call__(self, low: float, high: float) -> float:
        """The error on the grid over [low, high], which holds zero and is wider than zero."""
        power = self._power
        scale, zero = self._grid.over(low, high)
        nearest, off = self._rounded(self._edges / scale, zero)
        nearest *= 0.5**power
        off *= np.abs(off) ** power
        error = float((nearest + off) @ self._weights) / (power + 1) * scale ** (power + 1)
        if len(self._points):
            _, off = self._rounded(self._points / scale, zero)
            error += float(np.abs(off) ** power @ self._masses) * scale**power
        return float(error)

    def _rounded(
        self, values: Float64[np.ndarray, " k"], zero: float
    ) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"]]:
        """The nearest values of the grid, in steps from zero, and how far from them all are."""
        nearest = np.rint(values)
        np.minimum(np.maximum(nearest, -zero, out=nearest), self._grid.steps - zero, out=nearest)
        return nearest, values - nearest


def _edges(low: float, high: float, reach: float, finest: float) -> Float64[np.ndarray, " k"]:
    """Edges of the buckets in [low, high], but ``finest`` apart where those are closer."""
    first, last = (
        int(np.float32(magnitude * reach).view(np.uint32)) >> 16
        for magnitude in (128 * finest, 1.0)
    )
    patterns = np.arange(first, last + 1, dtype=np.uint32) << 16
    coarse = patterns.view(np.float32).astype(np.float64) / reach
    fine = np.linspace(0, coarse[0], 128, endpoint=False)
    positive = np.concatenate([fine, coarse, [1.0]])
    return np.unique(np.clip(np.concatenate([-positive, positive]), low, high))
