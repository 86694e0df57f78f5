"""The divergence of Migacz's method, judged by hand and by the method as its slides tell it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import entropy as kullback_leibler

from onnxq.calibrate.divergence import divergences, smooth_part

SLIDES = np.array([1, 0, 2, 3, 5, 3, 1, 7])  # the example of the slides: 8 bins, 2 levels
NONE = np.zeros(8, np.int64)


def divergence(counts, start, size, levels, *, atoms=None, smoothing=0.0) -> float:
    atoms = np.zeros_like(counts) if atoms is None else atoms
    window = np.array([start]), np.array([size])
    return float(divergences(counts, atoms, window, levels, smoothing)[0])


def as_told(counts, start, size, levels, smoothing) -> float:
    """One window, bin by bin: merge, spread over the bins that are not empty, compare."""
    inside = [int(count) for count in counts[start : start + size]]
    p = list(inside)
    p[0] += int(sum(counts[:start]))
    p[-1] += int(sum(counts[start + size :]))
    q = [0.0] * size
    for level in range(levels):
        group = range(level * size // levels, (level + 1) * size // levels)
        kept = [index for index in group if p[index] > 0]
        for index in kept:
            q[index] = sum(inside[i] for i in group) / len(kept)
    q = [(1 - smoothing) * value / sum(q) + smoothing / size for value in q]
    return float(kullback_leibler(p, q))


def test_the_whole_window_of_the_slides_by_hand():
    # 2 levels hold 6 and 16; spread over bins that are not empty: 2 0 2 2 | 4 4 4 4
    # 22 · KL = 1 ln(1/2) + 2 ln(2/2) + 3 ln(3/2) + 5 ln(5/4) + 3 ln(3/4) + 1 ln(1/4) + 7 ln(7/4)
    #         = -0.6931   + 0          + 1.2164    + 1.1157    - 0.8630    - 1.3863    + 3.9173
    assert divergence(SLIDES, 0, 8, 2) == pytest.approx(3.3070 / 22, abs=1e-5)


def test_what_a_window_cuts_off_counts_in_its_last_bin_by_hand():
    # P: 1 0 2 3+16, of 22; Q: 1 0 | 2.5 2.5, of 6
    # KL = 1/22 ln(1/22 · 6/1) + 2/22 ln(2/22 · 6/2.5) + 19/22 ln(19/22 · 6/2.5)
    #    = -0.05906             - 0.13842              + 0.62949
    assert divergence(SLIDES, 0, 4, 2) == pytest.approx(0.43201, abs=1e-5)


def test_with_a_level_for_every_bin_nothing_is_lost():
    assert divergence(SLIDES, 0, 8, 8) == pytest.approx(0, abs=1e-12)


def test_atoms_inside_a_window_are_a_bin_of_their_own_by_hand():
    # 11 values that are all alike join the 22: KL is that of the 22, on two thirds of the whole
    atoms = np.array([0, 0, 0, 0, 0, 11, 0, 0])
    assert divergence(SLIDES, 0, 8, 2, atoms=atoms) == pytest.approx(3.3070 / 33, abs=1e-5)


def test_atoms_outside_a_window_are_cut_off_like_all_other_values():
    atoms, moved = np.array([0, 0, 0, 0, 0, 0, 0, 9]), SLIDES + np.array([0, 0, 0, 0, 0, 0, 0, 9])
    assert divergence(SLIDES, 0, 4, 2, atoms=atoms) == pytest.approx(divergence(moved, 0, 4, 2))


histograms = hnp.arrays(np.int64, st.integers(8, 60), elements=st.integers(0, 50))


@settings(max_examples=200)
@given(st.data(), histograms, st.integers(2, 8))
def test_every_window_loses_what_the_method_as_told_says(data, counts, levels):
    size = data.draw(st.integers(levels, len(counts)))
    start = data.draw(st.integers(0, len(counts) - size))
    if not counts[start : start + size].sum():
        return
    expected = as_told(counts, start, size, levels, 1e-4)
    found = divergence(counts, start, size, levels, smoothing=1e-4)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_window_that_holds_nothing_is_worse_than_one_that_holds_all():
    counts = np.array([0, 0, 0, 0, 5, 6, 7, 8])
    assert divergence(counts, 0, 4, 2, smoothing=1e-4) > divergence(counts, 0, 8, 2, smoothing=1e-4)


def test_many_windows_at_once_are_each_as_if_alone():
    counts = np.random.default_rng(0).poisson(20, 400)
    starts, sizes = np.array([0, 10, 0, 333]), np.array([400, 300, 16, 67])
    together = divergences(counts, np.zeros(400, np.int64), (starts, sizes), 16)
    alone = [
        divergence(counts, a, n, 16, smoothing=1e-4) for a, n in zip(starts, sizes, strict=True)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


def test_a_spike_is_cut_to_what_is_around_it_and_a_slope_is_left():
    slope = np.arange(1, 41) * 10
    spiked = slope.copy()
    spiked[[15, 16]] += 5000
    assert smooth_part(spiked)[[15, 16]].max() <= 220
    assert (smooth_part(slope) == slope)[5:].all()


def test_bins_that_are_empty_by_turns_are_not_smoothed_away():
    comb = np.tile([30, 0, 0], 50)
    np.testing.assert_array_equal(smooth_part(comb), comb)
