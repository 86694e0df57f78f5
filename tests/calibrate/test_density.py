import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate.counting import Accumulator
from onnxq.calibrate.density import SMALLEST, density_of, linear_bins
from onnxq.calibrate.statistics import Summary

values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32))


def summary_of(array: np.ndarray) -> Summary:
    accumulator = Accumulator()
    accumulator.add(np.asarray(array, np.float32))
    return accumulator.drain()


@given(values)
def test_every_value_that_is_not_zero_counts_once(array):
    density = density_of(summary_of(array))
    alive = np.count_nonzero(np.abs(array) >= SMALLEST)
    assert density.counts.sum() == alive
    assert density.below(np.array([-1e4, 1e4])).tolist() == [0, alive]
    assert density.points[1].sum() + density.spread.counts.sum() == alive


@given(values, st.integers(16, 300))
def test_linear_bins_hold_every_value_and_zero_lies_between_two(array, bins):
    if np.abs(array).max() < SMALLEST:
        return
    counts, below = linear_bins(summary_of(array), bins)
    assert counts.sum() == np.count_nonzero(np.abs(array) >= SMALLEST)
    assert counts[:below].sum() == np.count_nonzero(array <= -SMALLEST)
    assert bins in (below, len(counts) - below)
    magnitudes, none = linear_bins(summary_of(array), bins, folded=True)
    assert (len(magnitudes), none, magnitudes.sum()) == (bins, 0, counts.sum())


def test_linear_bins_are_those_of_numpy_where_buckets_are_finer():
    array = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    reach = float(np.abs(array).max())
    counts, below = linear_bins(summary_of(array), 64)
    edges = np.arange(-below, len(counts) - below + 1) * reach / 64
    expected, _ = np.histogram(array, edges)
    assert np.abs(counts - expected).sum() < 0.02 * len(array)
    assert counts[below - 8 : below + 8] == pytest.approx(expected[below - 8 : below + 8], rel=0.06)
