"""How far ranges depend on which samples were drawn, and how many would do; no run is made again.

Methods that look at the extremes of runs are asked again on runs drawn with replacement (bootstrap;
Efron 1979, Annals of Statistics 7). The others are asked again on each block of runs alone: the
spread of those ranges over the root of the number of blocks is the standard error of the whole
(random groups; Wolter 2007, "Introduction to Variance Estimation", chapter 2). Summaries of other
shares of a block are not kept, and a search as that of mse, of 9 ms, cannot be made a hundred times
a tensor. Whether widths still grow is seen from halves and quarters.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import stdtrit

from onnxq.artifacts import StabilityRow, Sufficiency, TensorRange
from onnxq.calibrate.estimators import NEEDS_HISTOGRAM, EstimatorOptions, Method, estimate
from onnxq.calibrate.statistics import Statistics, Summary, TensorStatistics, merged

__all__ = ["SPREAD_ALLOWED", "TOLERANCE", "stability_of", "sufficiency"]

SPREAD_ALLOWED = 0.1  # of the width: a range too wide by it costs 0.8 dB of SQNR
TOLERANCE = 0.05  # change of the width on doubling the samples that is no longer worth it: 0.4 dB
_RESAMPLES = 100
_SUBSETS = 16  # halves and quarters of the runs that are averaged
_WORST = 95  # percentile over tensors that stands for the worst ones
_FARTHEST = 64  # times the samples: beyond it nothing is extrapolated
_MOST_TENSORS: Mapping[Method, int] = {
    "minmax": 200, "ema": 200, "percentile": 200, "meanstd": 200, "entropy": 32, "mse": 12,
}  # fmt: skip  # that are asked again, so that it takes about 2 s


def stability_of(
    statistics: Statistics,
    ranges: Mapping[str, TensorRange],
    method: Method,
    options: EstimatorOptions,
    seed: int,
) -> tuple[StabilityRow, ...]:
    """Spread and growth of ranges, the least stable first; empty if there are too few runs.

    Left out are tensors that are pinned, empty or always zero. If there are very many, those are
    looked at whose extremes differ most between runs: 200 of them, 32 for entropy and 12 for mse.
    Of minmax the spread is what the runs at hand show: a resample sees no value that was not seen,
    so that growth tells more. With histograms, the order of the blocks does not matter.
    """
    rows = []
    for name in _most_varied(statistics, ranges, _MOST_TENSORS[method]):
        seen = statistics.of(name)
        again = _by_blocks if method in NEEDS_HISTOGRAM else _by_runs
        row = again(name, seen, ranges[name].range.width, (method, options, seed))
        if row is not None:
            rows.append(row)
    return tuple(sorted(rows, key=lambda row: (-row.spread, row.tensor)))


Asked = tuple[Method, EstimatorOptions, int]


def _most_varied(
    statistics: Statistics, ranges: Mapping[str, TensorRange], most: int
) -> Sequence[str]:
    places = [
        (place, name)
        for place, name in enumerate(statistics.tensors)
        if ranges[name].pinned is None
        and ranges[name].range.width > 0
        and not np.isnan(statistics.lows[:, place]).all()
    ]
    if len(places) <= most:
        return [name for _, name in places]
    columns = [place for place, _ in places]
    lows, highs = (e[:, columns].astype(np.float64) for e in (statistics.lows, statistics.highs))
    widths = np.array([ranges[name].range.width for _, name in places])
    varied = (np.nanstd(lows, axis=0) + np.nanstd(highs, axis=0)) / widths
    return [places[index][1] for index in np.argsort(-varied, kind="stable")[:most]]


# --- runs ---------------------------------------------------------------------------------------


def _by_runs(name: str, seen: TensorStatistics, width: float, asked: Asked) -> StabilityRow | None:
    kept = np.flatnonzero(~np.isnan(seen.lows))
    if len(kept) < 2:
        return None
    method, options, seed = asked
    random = np.random.default_rng(seed)

    def width_of(runs: Int64[np.ndarray, " m"]) -> float:
        part = TensorStatistics(seen.lows[runs], seen.highs[runs])
        return estimate(part, method, options).width

    drawn = [width_of(random.choice(kept, len(kept))) for _ in range(_RESAMPLES)]
    low, high = np.quantile(drawn, (0.025, 0.975))

    def share(size: int) -> float | None:
        if size == 0:
            return None
        subsets = (random.permutation(kept)[:size] for _ in range(_SUBSETS))
        return float(np.mean([width_of(np.sort(runs)) for runs in subsets])) / width

    return StabilityRow(
        tensor=name,
        spread=float(high - low) / 2 / width,
        quarter=share(len(kept) // 4),
        half=share(len(kept) // 2) if len(kept) >= 4 else None,
    )


# --- blocks -------------------------------------------------------------------------------------


def _by_blocks(
    name: str, seen: TensorStatistics, width: float, asked: Asked
) -> StabilityRow | None:
    parts = sorted((part for part in seen.parts if part.finite), key=_key)
    if len(parts) < 2:
        return None
    method, options, _ = asked

    def width_of(blocks: Sequence[Summary]) -> float:
        whole = blocks[0] if len(blocks) == 1 else merged(blocks)
        ends = np.array([whole.low], np.float32), np.array([whole.high], np.float32)
        return estimate(TensorStatistics(*ends, (whole,)), method, options).width

    alone = np.array([width_of([part]) for part in parts])
    error = float(alone.std(ddof=1)) / np.sqrt(len(parts))
    half, quarter = len(parts) // 2, len(parts) // 4
    return StabilityRow(
        tensor=name,
        spread=float(stdtrit(len(parts) - 1, 0.975)) * float(error) / width,
        quarter=_mean(width_of(some) for some in _split(parts, quarter)) / width
        if quarter
        else None,
        half=_mean(width_of(some) for some in _split(parts, half)) / width if quarter else None,
    )


def _split(parts: Sequence[Summary], size: int) -> Iterator[Sequence[Summary]]:
    """``parts`` in disjoint pieces of ``size``; what fills none is left over."""
    return (parts[start : start + size] for start in range(0, len(parts) - size + 1, size))


def _mean(values: Iterator[float]) -> float:
    return float(np.mean(list(values)))


def _key(part: Summary) -> bytes:
    """By which blocks are put in an order that has to do neither with time nor with value."""
    return hashlib.sha256(part.buckets.tobytes() + part.counts.tobytes()).digest()


# --- how many suffice ---------------------------------------------------------------------------


def sufficiency(rows: Sequence[StabilityRow], samples: int) -> Sufficiency | None:
    """How many samples suffice, from ``stability_of`` ``samples`` of them; None without a row.

    If widths change on average by c on the last doubling and by b on the one before, the k-th from
    here is taken to change the worst of them by as much as the last times (c/b)**k, but to shrink
    no faster than a sampling error does, by the root of a half. That is an estimate: it is not made
    where changes do not shrink, nor beyond 64 times the samples there are.
    """
    if not rows:
        return None
    change = before = enough = None
    pairs = [(row.quarter, row.half) for row in rows if row.quarter and row.half]
    if pairs:
        quarters, halves = np.array(pairs).T
        last, previous = np.abs(1 - halves), np.abs(halves - quarters)
        change, before = _worst(last), _worst(previous)
        rate = float(last.mean() / previous.mean()) if previous.any() else 1.0
        enough = _enough(samples, change, max(rate, math.sqrt(0.5)))
    return Sufficiency(
        samples=samples,
        tensors=len(rows),
        spread=_worst(np.array([row.spread for row in rows])),
        spread_allowed=SPREAD_ALLOWED,
        tolerance=TOLERANCE,
        change=change,
        change_before=before,
        enough=enough,
    )


def _worst(values: Float64[np.ndarray, " n"]) -> float:
    return float(np.percentile(values, _WORST))


def _enough(samples: int, change: float, rate: float) -> int | None:
    """From which number on doubling changes less than the tolerance."""
    times = 1
    while change > TOLERANCE:
        if rate >= 1 or times > _FARTHEST // 2:
            return None
        change *= rate
        times *= 2
    return samples * max(times // 2, 1)
