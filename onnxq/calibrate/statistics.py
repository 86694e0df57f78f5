"""What is kept of a tensor while samples stream by: exact counts and sums, merged by adding.

The histogram's buckets are the 16 leading bits of the float32 pattern (sign, exponent, 7 bits of
mantissa), so no range is needed in advance, a bucket is 2**-7 of its value wide, and summaries
merge to the same bits in whatever order. Sums are integers in units of the smallest float32, so
that they too are exact and merge by addition.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt16

from onnxq.errors import EmptySummaryError

__all__ = [
    "BUCKETS",
    "Builder",
    "Channels",
    "Statistics",
    "Summary",
    "TensorStatistics",
    "in_order_of_value",
    "joined",
    "merged",
    "merged_channels",
]

BUCKETS = 1 << 16
UNIT = Fraction(1, 2**149)  # the smallest positive float32; every float32 is a multiple of it
_SIGN = BUCKETS // 2
_FIRST_NOT_FINITE = 0x7F80  # buckets from here on, of either sign, hold infinities and NaN


@cache
def _edges() -> tuple[Float64[np.ndarray, " buckets"], Float64[np.ndarray, " buckets"]]:
    """Lowest and highest value of every bucket, by the bucket's number."""
    near = (np.arange(BUCKETS, dtype=np.uint32) << 16).view(np.float32)
    far = ((np.arange(BUCKETS, dtype=np.uint32) << 16) | 0xFFFF).view(np.float32)
    with np.errstate(invalid="ignore"):
        both = near.astype(np.float64), far.astype(np.float64)
        return np.minimum(*both), np.maximum(*both)


@dataclass(frozen=True, eq=False)
class Summary:
    """Exact facts of one tensor's values.

    ``low`` and ``high`` are the extremes of the finite values (inf and -inf where there is none);
    ``count`` includes ``zeros``, ``nans`` and ``infs``. ``total`` is the sum of the finite values
    in units of 2**-149, ``squares`` that of their squares in units of 2**-298. ``buckets`` are the
    occupied buckets of finite values, in order of value, and ``counts`` what lies in each.
    """

    low: float
    high: float
    count: int
    zeros: int
    nans: int
    infs: int
    total: int
    squares: int
    buckets: UInt16[np.ndarray, " k"]
    counts: Int64[np.ndarray, " k"]

    @classmethod
    def empty(cls) -> "Summary":
        """Nothing counted."""
        nothing = np.zeros(0, np.uint16), np.zeros(0, np.int64)
        return cls(math.inf, -math.inf, 0, 0, 0, 0, 0, 0, *nothing)

    def __eq__(self, other: object) -> bool:
        """Equal to the last bit."""
        return isinstance(other, Summary) and self._facts == other._facts

    def __hash__(self) -> int:
        return hash(self._facts)

    @property
    def _facts(self) -> tuple[object, ...]:
        numbers = (self.low, self.high, self.count, self.zeros, self.nans, self.infs)
        sums = (self.total, self.squares)
        return (*numbers, *sums, self.buckets.tobytes(), self.counts.tobytes())

    @property
    def finite(self) -> int:
        """Number of finite values."""
        return self.count - self.nans - self.infs

    @property
    def mean(self) -> float:
        """Mean of the finite values, rounded once. Raises EmptySummaryError."""
        self._refuse_empty()
        return float(self.total * UNIT / self.finite)

    @property
    def std(self) -> float:
        """Standard deviation of the finite values (divided by n). Raises EmptySummaryError."""
        self._refuse_empty()
        mean = self.total * UNIT / self.finite
        return math.sqrt(self.squares * UNIT**2 / self.finite - mean**2)

    def distribution(
        self,
    ) -> tuple[Float64[np.ndarray, " k"], Float64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
        """Occupied buckets in order of value: their low edges, high edges and counts.

        The outermost edges are the exact extremes. Raises EmptySummaryError.
        """
        self._refuse_empty()
        lows, highs = (edge[self.buckets] for edge in _edges())
        return np.maximum(lows, self.low), np.minimum(highs, self.high), self.counts

    def values_below(self, low: float) -> int:
        """How many values lie in buckets wholly below ``low``."""
        _, highs, counts = self.distribution()
        return int(counts[highs < low].sum())

    def values_above(self, high: float) -> int:
        """How many values lie in buckets wholly above ``high``."""
        lows, _, counts = self.distribution()
        return int(counts[lows > high].sum())

    def _refuse_empty(self) -> None:
        if not self.finite:
            do = "check that the samples are not empty"
            raise EmptySummaryError("no value was counted", do=do)


def merged(summaries: Iterable[Summary]) -> Summary:
    """The summary of all values of all ``summaries``; the same bits in whatever order."""
    parts = [part for part in summaries if part.count]
    if len(parts) < 2:
        return parts[0] if parts else Summary.empty()
    dense = np.zeros(BUCKETS, np.int64)
    for part in parts:
        dense[part.buckets] += part.counts  # no bucket stands twice in a part
    occupied = np.flatnonzero(dense)
    buckets, counts = in_order_of_value(occupied, dense[occupied])
    return Summary(
        low=min(part.low for part in parts),
        high=max(part.high for part in parts),
        count=sum(part.count for part in parts),
        zeros=sum(part.zeros for part in parts),
        nans=sum(part.nans for part in parts),
        infs=sum(part.infs for part in parts),
        total=sum(part.total for part in parts),
        squares=sum(part.squares for part in parts),
        buckets=buckets,
        counts=counts,
    )


def in_order_of_value(
    buckets: Int64[np.ndarray, " m"], counts: Int64[np.ndarray, " m"]
) -> tuple[UInt16[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """The finite ones of ``buckets``, which rise by number, lowest value first; their counts."""
    first_negative = int(np.searchsorted(buckets, _SIGN))
    first_infinite = int(np.searchsorted(buckets, _FIRST_NOT_FINITE))
    end = int(np.searchsorted(buckets, _SIGN + _FIRST_NOT_FINITE))
    negative, positive = slice(first_negative, end), slice(0, first_infinite)
    return (
        np.concatenate([buckets[negative][::-1], buckets[positive]]).astype(np.uint16),
        np.concatenate([counts[negative][::-1], counts[positive]]),
    )


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What was seen of one tensor.

    ``lows`` and ``highs`` are the extremes of every run, in the order of the runs; NaN where the
    tensor was empty. ``parts`` are summaries of successive blocks of runs, empty where extremes
    alone were collected. ``values`` is the number of elements, over all runs.
    """

    lows: Float32[np.ndarray, " runs"]
    highs: Float32[np.ndarray, " runs"]
    parts: tuple[Summary, ...] = ()
    values: int = 0

    @property
    def low(self) -> float:
        """Smallest value seen. Raises EmptySummaryError."""
        return float(np.nanmin(self._seen(self.lows)))

    @property
    def high(self) -> float:
        """Largest value seen. Raises EmptySummaryError."""
        return float(np.nanmax(self._seen(self.highs)))

    @property
    def is_empty(self) -> bool:
        """Whether no run gave the tensor an element."""
        return bool(np.isnan(self.lows).all())

    @cached_property
    def summary(self) -> Summary | None:
        """All parts merged; None where extremes alone were collected."""
        return merged(self.parts) if self.parts else None

    def _seen(self, values: Float32[np.ndarray, " runs"]) -> Float32[np.ndarray, " runs"]:
        if self.is_empty:
            do = "check that the samples are not empty"
            raise EmptySummaryError("no value was counted", do=do)
        return values


@dataclass(frozen=True, eq=False)
class Channels:
    """Extremes of every channel of a tensor over all runs; ``axis`` may count from the end."""

    axis: int
    lows: Float32[np.ndarray, " channels"]
    highs: Float32[np.ndarray, " channels"]

    @property
    def imbalance(self) -> float:
        """Width of the whole tensor's range over that of the median channel; inf if that is 0."""
        widths = np.maximum(self.highs, 0).astype(np.float64) - np.minimum(self.lows, 0)
        whole = max(float(self.highs.max()), 0.0) - min(float(self.lows.min()), 0.0)
        median = float(np.median(widths))
        return whole / median if median else math.inf

    def merged(self, other: "Channels") -> "Channels":
        """Of the runs of both."""
        lows, highs = np.fmin(self.lows, other.lows), np.fmax(self.highs, other.highs)
        return Channels(self.axis, lows, highs)


def merged_channels(parts: Iterable[Mapping[str, Channels]]) -> dict[str, Channels]:
    """Channels of all ``parts``, tensor by tensor."""
    found: dict[str, Channels] = {}
    for part in parts:
        for name, channels in part.items():
            found[name] = found[name].merged(channels) if name in found else channels
    return found


@dataclass(frozen=True, eq=False)
class Statistics:
    """What was seen of every tensor, over runs in a given order.

    ``lows`` and ``highs`` hold a row for every run and a column for every tensor, NaN where it was
    empty; ``values`` the number of elements of each tensor over all runs. ``blocks`` are intervals
    [start, stop) of runs in order, and ``summaries`` holds one summary a tensor for each of them;
    it is empty where extremes alone were collected. ``channels`` are extremes by channel, of those
    tensors where they were asked for.
    """

    tensors: tuple[str, ...]
    lows: Float32[np.ndarray, "runs tensors"]
    highs: Float32[np.ndarray, "runs tensors"]
    values: Int64[np.ndarray, " tensors"]
    blocks: tuple[tuple[int, int], ...]
    summaries: tuple[tuple[Summary, ...], ...] = ()
    channels: Mapping[str, Channels] = field(default_factory=dict)

    @property
    def runs(self) -> int:
        """Number of runs; a run is one sample, or one batch of a model with a fixed batch."""
        return len(self.lows)

    @property
    def has_histograms(self) -> bool:
        """Whether more than extremes was collected."""
        return bool(self.summaries)

    def of(self, tensor: str) -> TensorStatistics:
        """What was seen of one tensor. Raises ValueError for one that was not collected."""
        column = self.tensors.index(tensor)
        parts = tuple(summaries[column] for summaries in self.summaries)
        return TensorStatistics(
            self.lows[:, column], self.highs[:, column], parts, int(self.values[column])
        )


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of successive runs as one; a block of each part stays a block.

    All parts hold the same tensors, and either all of them histograms or none.
    """
    first = parts[0]
    if any(part.tensors != first.tensors for part in parts):
        raise ValueError("statistics of different tensors cannot be joined")
    if any(part.has_histograms != first.has_histograms for part in parts):
        raise ValueError("statistics with and without histograms cannot be joined")
    starts = np.cumsum([0, *(part.runs for part in parts)])
    return Statistics(
        tensors=first.tensors,
        lows=np.concatenate([part.lows for part in parts]),
        highs=np.concatenate([part.highs for part in parts]),
        values=np.stack([part.values for part in parts]).sum(axis=0),
        blocks=tuple(
            (int(start) + a, int(start) + b)
            for start, part in zip(starts[:-1], parts, strict=True)
            for a, b in part.blocks
        ),
        summaries=tuple(summaries for part in parts for summaries in part.summaries),
        channels=merged_channels(part.channels for part in parts),
    )


class Builder:
    """Statistics of all runs from those of pieces, which may come in any order.

    ``blocks`` are what the result keeps apart; a piece lies inside one of them. What is held is one
    summary a tensor and block, whatever the number of pieces.
    """

    def __init__(self, tensors: Sequence[str], blocks: Sequence[tuple[int, int]]) -> None:
        self._tensors, self._blocks = tuple(tensors), tuple(blocks)
        runs = blocks[-1][1] if blocks else 0
        self._lows = np.full((runs, len(tensors)), np.nan, np.float32)
        self._highs = self._lows.copy()
        self._values = np.zeros(len(tensors), np.int64)
        self._summaries: dict[int, tuple[Summary, ...]] = {}
        self._channels: dict[str, Channels] = {}

    def add(self, start: int, piece: Statistics) -> None:
        """Add the runs from ``start`` on."""
        stop = start + piece.runs
        block = next(n for n, (a, b) in enumerate(self._blocks) if a <= start and stop <= b)
        self._lows[start:stop], self._highs[start:stop] = piece.lows, piece.highs
        self._values += piece.values
        self._channels = merged_channels([self._channels, piece.channels])
        for summaries in piece.summaries:
            known = self._summaries.get(block)
            self._summaries[block] = (
                tuple(map(merged, zip(known, summaries, strict=True))) if known else summaries
            )

    def build(self) -> Statistics:
        """The whole, once every piece is in."""
        summaries = tuple(self._summaries[block] for block in sorted(self._summaries))
        return Statistics(
            tensors=self._tensors,
            lows=self._lows,
            highs=self._highs,
            values=self._values,
            blocks=self._blocks,
            summaries=summaries,
            channels={name: self._channels[name] for name in sorted(self._channels)},
        )
