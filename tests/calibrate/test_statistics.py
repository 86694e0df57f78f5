"""Summaries are exact, and merge to the same bits in whatever order."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate import counting
from onnxq.calibrate.counting import Accumulator
from onnxq.calibrate.statistics import (
    BUCKETS,
    Builder,
    Statistics,
    Summary,
    joined,
    merged,
)
from onnxq.errors import EmptySummaryError

floats = hnp.arrays(
    np.float32,
    st.integers(0, 60),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True),
)


def summary_of(*arrays: np.ndarray) -> Summary:
    accumulator = Accumulator()
    for array in arrays:
        accumulator.add(array)
    return accumulator.drain()


@given(floats)
def test_every_fact_of_a_summary_is_exact(values: np.ndarray) -> None:
    summary = summary_of(values)
    finite = values[np.isfinite(values)]
    assert summary.count == values.size
    assert summary.finite == finite.size == summary.counts.sum()
    assert summary.nans == np.isnan(values).sum()
    assert summary.infs == np.isinf(values).sum()
    assert summary.zeros == (values == 0).sum()
    assert summary.low == finite.min(initial=np.inf)
    assert summary.high == finite.max(initial=-np.inf)
    exact = [Fraction(float(value)) for value in finite]
    assert summary.total == sum(exact) * 2**149
    assert summary.squares == sum(value**2 for value in exact) * 2**298


@given(floats, st.randoms(use_true_random=False), st.integers(1, 9))
def test_merging_gives_the_same_bits_in_any_order_and_sharding(
    values: np.ndarray, random: object, pieces: int
) -> None:
    whole = summary_of(values)
    shuffled = np.random.default_rng(random.getrandbits(32)).permutation(values)  # type: ignore[attr-defined]
    parts = [summary_of(part) for part in np.array_split(shuffled, pieces)]
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert merged(parts) == whole
    assert merged([merged(parts[:2]), merged(parts[2:])]) == whole
    assert summary_of(*np.array_split(shuffled, pieces)) == whole


@settings(max_examples=30, deadline=None)
@given(floats, st.integers(1, 20), st.integers(1, 40))
def test_cells_that_would_overflow_are_emptied_before(
    values: np.ndarray, packed: int, summed: int
) -> None:
    whole = summary_of(values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "_MOST_PACKED", packed)
        patch.setattr(counting, "_MOST_SUMMED", max(packed, summed))
        assert summary_of(values, values) == merged([whole, whole])


def test_mean_and_spread_are_those_of_numpy_in_double_precision() -> None:
    values = np.random.default_rng(0).normal(3, 2, 10_000).astype(np.float32)
    summary = summary_of(values)
    assert summary.mean == pytest.approx(values.astype(np.float64).mean(), rel=1e-12)
    assert summary.std == pytest.approx(values.astype(np.float64).std(), rel=1e-12)


@given(floats)
def test_buckets_stand_in_order_of_value_and_hold_their_values(values: np.ndarray) -> None:
    summary = summary_of(values)
    if not summary.finite:
        with pytest.raises(EmptySummaryError):
            summary.distribution()
        return
    lows, highs, counts = summary.distribution()
    assert np.all(lows <= highs)
    assert np.all(highs[:-1] <= lows[1:])
    for value in values[np.isfinite(values)]:
        assert np.any((lows <= value) & (value <= highs))
    width = highs - lows
    normal = np.abs(lows) > np.finfo(np.float32).tiny
    assert np.all(width[normal] <= np.abs([lows, highs])[:, normal].max(axis=0) * 2**-7)
    assert counts.sum() == summary.finite


def test_values_outside_are_counted_by_whole_buckets() -> None:
    summary = summary_of(np.array([-4, -1, 0, 1, 2, 8], np.float32))
    assert summary.values_below(-2.0) == 1
    assert summary.values_above(1.5) == 2
    assert summary.values_below(-4.0) == summary.values_above(8.0) == 0


def test_what_add_returns_are_the_extremes_of_what_was_added_alone() -> None:
    accumulator = Accumulator()
    assert accumulator.add(np.array([5, -5], np.float32)) == (-5.0, 5.0, 0)
    assert accumulator.add(np.array([1, np.inf, np.nan], np.float32)) == (1.0, 1.0, 2)
    low, high, bad = accumulator.add(np.zeros(0, np.float32))
    assert np.isnan(low)
    assert np.isnan(high)
    assert bad == 0


def test_a_drained_accumulator_begins_anew() -> None:
    accumulator = Accumulator()
    accumulator.add(np.array([1, 2, np.nan], np.float32))
    accumulator.drain()
    assert accumulator.drain() == Summary.empty()


def test_memory_does_not_depend_on_how_many_values_were_counted() -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    accumulator = Accumulator()
    for _ in range(20):
        accumulator.add(values)
    summary = accumulator.drain()
    assert summary.count == 2_000_000
    assert len(summary.buckets) <= BUCKETS


def statistics_of(*runs: np.ndarray) -> Statistics:
    parts = []
    for run in runs:
        lows, highs = (np.array([[extreme]], np.float32) for extreme in (run.min(), run.max()))
        values = np.array([run.size])
        parts.append(Statistics(("x",), lows, highs, values, ((0, 1),), ((summary_of(run),),)))
    return joined(parts)


def test_joined_statistics_keep_the_order_of_runs_and_the_blocks() -> None:
    runs = [np.array([n, -n], np.float32) for n in (1, 5, 2, 4)]
    whole = statistics_of(*runs)
    seen = whole.of("x")
    assert seen.highs.tolist() == [1, 5, 2, 4]
    assert (seen.low, seen.high) == (-5, 5)
    assert whole.blocks == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert seen.summary == summary_of(*runs)


@given(st.permutations(range(6)))
def test_pieces_may_be_added_in_any_order(order: list[int]) -> None:
    runs = [np.array([n], np.float32) for n in range(1, 7)]
    builder = Builder(("x",), [(0, 2), (2, 6)])
    for start in order:
        builder.add(start, statistics_of(runs[start]))
    whole = builder.build()
    assert whole.of("x").summary == statistics_of(*runs).of("x").summary
    assert whole.of("x").highs.tolist() == [1, 2, 3, 4, 5, 6]
    assert [part.count for part in whole.of("x").parts] == [2, 4]
    assert whole.of("x").values == 6


def test_statistics_of_different_tensors_are_not_joined() -> None:
    one = statistics_of(np.ones(2, np.float32))
    other = Statistics(("y",), one.lows, one.highs, one.values, one.blocks, one.summaries)
    with pytest.raises(ValueError, match="different tensors"):
        joined([one, other])
