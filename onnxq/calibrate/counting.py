"""Counting a tensor's values: the one loop of onnxq over single numbers, compiled by numba.

Nanoseconds a value on one core, medians of ``python -m benchmarks.calibration --parts``:
numpy.bincount on the leading 16 bits takes 3.9 and gives the histogram alone; this loop takes 2.5
and gives histogram, exact sums, extremes and zeros in one reading of the memory.
"""

from typing import no_type_check

import numba
import numpy as np
from jaxtyping import Float32, Int64, UInt64
from numba import types

from onnxq.calibrate.statistics import BUCKETS, Summary, in_order_of_value, merged

__all__ = ["Accumulator"]

_REST_BITS = np.uint64(40)  # of a packed cell; the bits above count values
_REST = np.uint64(2**40 - 1)
_MOST_PACKED = 2**24  # values, of 16 trailing bits each, that a packed cell can hold
_MOST_SUMMED = 2**31  # values whose sums over one exponent fit 64 bits
_INFINITY, _NEGATIVE = 0x7F80, 0x8000  # the bucket of infinity (and of some NaN); the sign's bit


_SIGNATURE = types.void(
    types.Array(types.uint32, 1, "C", readonly=True),
    types.Array(types.float32, 1, "C", readonly=True),
    types.uint64[::1],
    types.uint64[::1],
    types.float32[::1],
    types.int64[::1],
)


@numba.njit(
    _SIGNATURE,
    nogil=True,
    cache=True,
)
@no_type_check
def _count(patterns, values, packed, squares, extremes, zeros):
    """Per bucket: values (bits 40 and up) and sum of their 16 trailing bits (bits 0 to 39) in one
    word, sum of the squares of these in another; smallest and largest value; zeros."""
    low, high, none = extremes[0], extremes[1], zeros[0]
    for index in range(patterns.size):
        pattern = patterns[index]
        bucket = pattern >> np.uint32(16)
        rest = np.uint64(pattern & np.uint32(0xFFFF))
        packed[bucket] += (np.uint64(1) << np.uint64(40)) | rest
        squares[bucket] += rest * rest
        value = values[index]
        low = value if value < low else low
        high = value if value > high else high
        none += value == 0
    extremes[0], extremes[1], zeros[0] = low, high, none


class Accumulator:
    """Counts the values of one tensor until it is drained into a Summary.

    Holds 2.5 MB of address space, of which only the pages of occupied buckets take memory.
    """

    def __init__(self) -> None:
        self._packed: UInt64[np.ndarray, " buckets"] = np.zeros(BUCKETS, np.uint64)
        self._squares: UInt64[np.ndarray, " buckets"] = np.zeros(BUCKETS, np.uint64)
        self._cells: UInt64[np.ndarray, "3 buckets"] = np.zeros((3, BUCKETS), np.uint64)
        self._in_packed = self._in_cells = 0
        self._low, self._high, self._zeros, self._nans = np.inf, -np.inf, 0, 0
        self._done = Summary.empty()

    def add(self, values: Float32[np.ndarray, "..."]) -> tuple[float, float, int]:
        """Count all values: their lowest and highest finite one, and how many are not finite.

        The extremes are NaN where no value is finite.
        """
        flat = np.ascontiguousarray(values).reshape(-1)
        extremes = np.array([np.inf, -np.inf], np.float32)
        zeros: Int64[np.ndarray, " 1"] = np.zeros(1, np.int64)
        before = self._not_finite()
        for start in range(0, flat.size, _MOST_PACKED):
            part = flat[start : start + _MOST_PACKED]
            if self._in_packed + part.size > _MOST_PACKED:
                before -= self._not_finite()
                self._unpack()
            _count(part.view(np.uint32), part, self._packed, self._squares, extremes, zeros)
            self._in_packed += part.size
        bad = self._not_finite() - before
        if bad:
            finite = flat[np.isfinite(flat)]
            self._nans += int(np.isnan(flat).sum())
            extremes[:] = finite.min(initial=np.inf), finite.max(initial=-np.inf)
        low, high = (float(extreme) + 0.0 for extreme in extremes)  # -0 and 0 are one value
        self._low, self._high = min(self._low, low), max(self._high, high)
        self._zeros += int(zeros[0])
        return (low, high, bad) if low <= high else (np.nan, np.nan, bad)

    def drain(self) -> Summary:
        """The summary of all that was counted; counting begins anew."""
        if self._in_cells:
            self._unpack()
            self._fold()
        elif self._in_packed:  # the usual case, without the way through the cells
            self._done = merged([self._done, self._summary(*self._emptied(), self._in_packed)])
            self._in_packed = 0
        found, self._done = self._done, Summary.empty()
        return found

    def _not_finite(self) -> int:
        """How many of the packed values are infinite or NaN."""
        ends = (slice(_INFINITY, _NEGATIVE), slice(_NEGATIVE + _INFINITY, BUCKETS))
        return sum(int((self._packed[end] >> _REST_BITS).sum()) for end in ends)

    def _unpack(self) -> None:
        if self._in_cells + self._in_packed > _MOST_SUMMED:
            self._fold()
        used, cells = self._emptied()
        self._cells[:, used] += cells
        self._in_cells, self._in_packed = self._in_cells + self._in_packed, 0

    def _emptied(self) -> tuple[Int64[np.ndarray, " k"], UInt64[np.ndarray, "3 k"]]:
        """The occupied packed buckets with what they hold, which is set to zero.

        The pages of the others stay unwritten, and so take no memory.
        """
        used = np.flatnonzero(self._packed)
        packed = self._packed[used]
        cells = np.stack([packed >> _REST_BITS, packed & _REST, self._squares[used]])
        self._packed[used] = self._squares[used] = 0
        return used, cells

    def _fold(self) -> None:
        """Move what the cells hold to integers that cannot overflow."""
        used = np.flatnonzero(self._cells[0])
        pending = self._summary(used, self._cells[:, used], self._in_cells)
        self._done = merged([self._done, pending])
        self._cells[:, used] = 0
        self._in_cells = 0

    def _summary(
        self, used: Int64[np.ndarray, " k"], cells: UInt64[np.ndarray, "3 k"], count: int
    ) -> Summary:
        """Of ``count`` values that lie in ``cells``; extremes and zeros begin anew."""
        buckets, counts = in_order_of_value(used, cells[0].astype(np.int64))
        total, squares = _exact_sums(used, cells)
        found = Summary(
            low=self._low,
            high=self._high,
            count=count,
            zeros=self._zeros,
            nans=self._nans,
            infs=count - int(counts.sum()) - self._nans,
            total=total,
            squares=squares,
            buckets=buckets,
            counts=counts,
        )
        self._low, self._high, self._zeros, self._nans = np.inf, -np.inf, 0, 0
        return found


def _exact_sums(
    buckets: Int64[np.ndarray, " k"], cells: UInt64[np.ndarray, "3 k"]
) -> tuple[int, int]:
    """Sum of the values in units of 2**-149, and of their squares in units of 2**-298.

    ``buckets`` rise. A value of exponent e ≥ 1 is (128 + m)·2**16 + rest units of 2**(e − 150),
    where m are the 7 bits of mantissa in its bucket's number; with e = 0 the 128 is missing and the
    unit is that of e = 1 (IEEE 754, 3.4).
    """
    finite = (buckets & _INFINITY) != _INFINITY
    buckets, (count, rest, rest_squared) = buckets[finite], cells[:, finite]
    if not len(buckets):
        return 0, 0
    exponents = (buckets >> 7) & 0xFF
    lead = ((buckets & 0x7F) + 128 * (exponents > 0)).astype(np.uint64)
    starts = np.flatnonzero(np.diff(buckets >> 7, prepend=-1))  # where sign or exponent change
    parts = (count * lead, rest, count * lead * lead, rest * lead, rest_squared)
    sums = zip(*(np.add.reduceat(part, starts).tolist() for part in parts), strict=True)
    total = squares = 0
    for place, (a, b, aa, ab, bb) in zip(starts, sums, strict=True):
        shift = max(int(exponents[place]), 1) - 1
        sign = -1 if buckets[place] & _NEGATIVE else 1
        total += sign * ((a << 16) + b) << shift
        squares += ((aa << 32) + (ab << 17) + bb) << (2 * shift)
    return total, squares
