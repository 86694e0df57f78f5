"""A histogram of float buckets as a density: the values of a bucket are spread evenly over it.

What is zero, or too small to be anything else on any grid, is on every grid and is left out.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from onnxq.calibrate.statistics import Summary

__all__ = ["SMALLEST", "Density", "density_of", "linear_bins"]

SMALLEST = 2.0**-126  # a value smaller than this counts as zero


@dataclass(frozen=True)
class Density:
    """Edges of occupied buckets in order of value, and counts; ``low == high`` is a point."""

    lows: Float64[np.ndarray, " k"]
    highs: Float64[np.ndarray, " k"]
    counts: Float64[np.ndarray, " k"]

    @property
    def points(self) -> tuple[Float64[np.ndarray, " points"], Float64[np.ndarray, " points"]]:
        """Values that are known exactly, and how often they were seen."""
        alone = self.lows == self.highs
        return self.lows[alone], self.counts[alone]

    @property
    def spread(self) -> "Density":
        """All but the points."""
        wide = self.lows < self.highs
        return Density(self.lows[wide], self.highs[wide], self.counts[wide])

    def below(self, edges: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
        """How many values lie below each edge."""
        if not len(self.counts):
            return np.zeros(len(edges))
        after = np.cumsum(self.counts)
        at = np.stack([self.lows, self.highs], axis=1).reshape(-1)
        before_and_after = np.stack([after - self.counts, after], axis=1).reshape(-1)
        return np.asarray(np.interp(edges, at, before_and_after))


def density_of(summary: Summary, unit: float = 1.0) -> Density:
    """The values of ``summary`` in units of ``unit``, without zeros. Raises EmptySummaryError."""
    lows, highs, counts = summary.distribution()
    kept = np.maximum(-lows, highs) >= SMALLEST
    return Density(lows[kept] / unit, highs[kept] / unit, counts[kept].astype(np.float64))


def linear_bins(
    summary: Summary, bins: int, *, folded: bool = False
) -> tuple[Int64[np.ndarray, " n"], int]:
    """Counts of bins of one width, and how many of them lie below zero.

    ``bins`` of them reach from zero to the farther extreme, and as many as are needed to the other
    one; with ``folded`` they are bins of magnitudes. Each value falls into one bin whole.
    """
    density = density_of(summary)
    low, high = min(summary.low, 0.0), max(summary.high, 0.0)
    width = max(-low, high) / bins
    below, above = (min(int(np.ceil(far / width)), bins) for far in (-low, high))
    cumulative = np.rint(density.below(np.arange(-below, above + 1) * width))
    cumulative[0], cumulative[-1] = 0, density.counts.sum()
    counts = np.diff(cumulative).astype(np.int64)
    if not folded:
        return counts, below
    magnitudes = np.zeros(bins, np.int64)
    magnitudes[:above] += counts[below:]
    magnitudes[:below] += counts[:below][::-1]
    return magnitudes, 0
