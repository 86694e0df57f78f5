"""What is kept of a tensor while samples stream by: one summary, flat in memory, merged by adding.

The histogram's buckets are the 16 leading bits of the float32 pattern (sign, exponent, 7 bits of
mantissa), so no range is needed in advance, a bucket is 2**-7 of its value wide, and two summaries
merge to the same bits in whatever order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped

from onnxq.errors import EmptySummaryError

__all__ = ["BUCKETS", "Summary"]

BUCKETS = 1 << 16
_SIGN = BUCKETS // 2
_BY_VALUE = np.concatenate([np.arange(BUCKETS - 1, _SIGN - 1, -1), np.arange(_SIGN)])


def _edges() -> tuple[Float[np.ndarray, " buckets"], Float[np.ndarray, " buckets"]]:
    """Lowest and highest value of every bucket, in order of value; float64, finite buckets only."""
    pattern = (_BY_VALUE.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    far = ((_BY_VALUE.astype(np.uint32) << 16) | 0xFFFF).view(np.float32).astype(np.float64)
    return np.minimum(pattern, far), np.maximum(pattern, far)


@dataclass
class Summary:
    """Exact extremes and counts of one tensor, and the histogram of its values."""

    low: float
    high: float
    zeros: int
    histogram: Int[np.ndarray, " buckets"]

    @classmethod
    def empty(cls) -> "Summary":
        """Nothing counted yet."""
        return cls(np.inf, -np.inf, 0, np.zeros(BUCKETS, np.int64))

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self.histogram.sum())

    def add(self, values: Float[np.ndarray, "..."]) -> None:
        """Count finite values; whether they are finite is the caller's to check."""
        if values.size == 0:
            return
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        self.zeros += int(flat.size - np.count_nonzero(flat))
        self.histogram += np.bincount(flat.view(np.uint16)[_HIGH_HALF::2], minlength=BUCKETS)

    def merged(self, other: "Summary") -> "Summary":
        """The summary of both sets of values."""
        return Summary(
            min(self.low, other.low),
            max(self.high, other.high),
            self.zeros + other.zeros,
            self.histogram + other.histogram,
        )

    def distribution(
        self,
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        """Occupied buckets in order of value: their low edges, high edges and counts.

        The outermost edges are the exact extremes. Raises EmptySummaryError.
        """
        if not self.count:
            raise EmptySummaryError(
                "no value was counted", do="check that the samples are not empty"
            )
        counts = self.histogram[_BY_VALUE]
        occupied: Shaped[np.ndarray, " k"] = np.flatnonzero(counts)
        with np.errstate(invalid="ignore"):
            lows, highs = (edge[occupied] for edge in _edges())
        return np.maximum(lows, self.low), np.minimum(highs, self.high), counts[occupied]

    def values_below(self, low: float) -> int:
        """How many values lie in buckets wholly below ``low``."""
        _, highs, counts = self.distribution()
        return int(counts[highs < low].sum())

    def values_above(self, high: float) -> int:
        """How many values lie in buckets wholly above ``high``."""
        lows, _, counts = self.distribution()
        return int(counts[lows > high].sum())


_HIGH_HALF = 1 if np.little_endian else 0  # where the leading 16 bits of a float32 lie
