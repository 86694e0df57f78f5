"""Summaries, judged by numpy over all values at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate.statistics import BUCKETS, Summary
from onnxq.errors import EmptySummaryError

finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
values = hnp.arrays(np.float32, st.integers(1, 40), elements=finite)


def summary_of(*parts: np.ndarray) -> Summary:
    summary = Summary.empty()
    for part in parts:
        summary.add(part)
    return summary


def bits(summary: Summary) -> tuple[object, ...]:
    return summary.low, summary.high, summary.zeros, summary.histogram.tobytes()


@given(values)
def test_extremes_counts_and_zeros_are_exact(array):
    summary = summary_of(array)
    assert (summary.low, summary.high) == (array.min(), array.max())
    assert summary.count == array.size
    assert summary.zeros == np.count_nonzero(array == 0)


@settings(max_examples=60)
@given(st.lists(values, min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_any_split_in_any_order_gives_the_same_bits(parts, random):
    whole = summary_of(np.concatenate(parts))
    random.shuffle(parts)
    cut = random.randint(0, len(parts))
    merged = summary_of(*parts[:cut]).merged(summary_of(*parts[cut:]))
    assert bits(merged) == bits(whole) == bits(summary_of(*parts))


@given(values)
def test_the_distribution_is_sorted_counts_all_and_holds_every_value(array):
    lows, highs, counts = summary_of(array).distribution()
    assert counts.sum() == array.size
    assert (np.diff(lows) >= 0).all()
    assert (lows <= highs).all()
    assert (lows[0], highs[-1]) == (array.min(), array.max())
    inside = (lows[:, None] <= array) & (array <= highs[:, None])
    assert inside.any(axis=0).all()


@given(values)
def test_a_bucket_is_at_most_2_to_the_minus_7_of_its_value_wide(array):
    lows, highs, _ = summary_of(array).distribution()
    size = np.maximum(np.abs(lows), np.abs(highs))
    subnormal = 2.0**-126
    assert (highs - lows <= np.maximum(size, subnormal) * 2**-7).all()


@given(values, finite)
def test_values_beyond_a_bound_are_counted_to_one_bucket(array, bound):
    summary = summary_of(array)
    slack = max(abs(bound) * 2**-7, 2.0**-133)
    assert summary.values_below(bound) <= np.count_nonzero(array < bound)
    assert summary.values_below(bound) >= np.count_nonzero(array.astype(float) < bound - slack)
    assert summary.values_above(bound) <= np.count_nonzero(array > bound)
    assert summary.values_above(bound) >= np.count_nonzero(array.astype(float) > bound + slack)


def test_memory_does_not_grow_with_the_number_of_values():
    summary = summary_of(np.ones(3, np.float32))
    before = summary.histogram.nbytes
    summary.add(np.linspace(-1, 1, 1_000_000, dtype=np.float32))
    assert summary.histogram.nbytes == before == 8 * BUCKETS


def test_strided_and_scalar_arrays_count_like_any_other():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert bits(summary_of(array.T[::2])) == bits(summary_of(array.T[::2].copy()))
    assert summary_of(np.array(3.0, np.float32)).count == 1


def test_nothing_counted_is_an_error_of_its_own():
    summary = summary_of(np.zeros(0, np.float32))
    assert summary.count == 0
    with pytest.raises(EmptySummaryError, match="no value was counted"):
        summary.distribution()
