"""The intervals, judged by simulation, by scipy, and by textbook formulas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from onnxq.artifacts import Interval
from onnxq.errors import DataError
from onnxq.paired import more_units_needed, paired_interval, paired_point


def data_set(rng, groups, effects, sizes):
    """Windows of ``groups`` subjects: a subject's effect plus noise of its windows."""
    member = np.repeat(np.arange(groups), sizes)
    return effects[member] + rng.normal(0, 2, len(member)), member


def coverage(kind, groups, data_sets):
    rng = np.random.default_rng(groups)
    hits = 0
    for _ in range(data_sets):
        sizes = np.maximum(3, rng.lognormal(3.5, 0.7, groups)).astype(int)
        effects = rng.normal(1, 1, groups) if kind == "normal" else rng.exponential(1, groups)
        interval = paired_interval(*data_set(rng, groups, effects, sizes))
        hits += interval.low <= 1 <= interval.high
    return hits / data_sets


@pytest.mark.parametrize("groups", [5, 8, 12, 20])
def test_intervals_over_groups_cover_normal_effects(groups):
    assert coverage("normal", groups, 300) >= 0.92


@pytest.mark.parametrize("groups", [5, 8, 12, 20])
def test_intervals_over_groups_nearly_cover_skewed_effects(groups):
    assert coverage("skewed", groups, 300) >= 0.87


def test_an_interval_covers_the_mean_over_samples_when_large_groups_are_hurt_more():
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(200):
        z = rng.normal(size=30)
        sizes = np.maximum(3, np.exp(3.5 + 0.7 * z)).astype(int)
        effects = 1 + 0.5 * z + rng.normal(0, 0.8, 30)
        interval = paired_interval(*data_set(rng, 30, effects, sizes))
        hits += interval.low <= 1 + 0.5 * 0.7 <= interval.high  # E[e·size] / E[size]
    assert hits / 200 >= 0.92


@pytest.mark.parametrize("pairs", [100, 400, 2000])
def test_agresti_min_covers_the_difference_of_paired_proportions(pairs):
    rng = np.random.default_rng(pairs)
    draws = rng.choice([1.0, -1.0, 0.0], p=[0.04, 0.02, 0.94], size=(500, pairs))
    intervals = [paired_interval(row, None, proportions=True) for row in draws]
    assert np.mean([i.low <= 0.02 <= i.high for i in intervals]) >= 0.92


def test_agresti_min_is_walds_interval_with_half_a_pair_in_each_cell():
    cells = {(1, 1): 60, (1, 0): 12, (0, 1): 5, (0, 0): 23}  # FP32 right, INT8 right
    differences = np.array([float(fp32 - int8) for fp32, int8 in cells])
    weights = np.array(list(cells.values())) + 0.5
    mean = np.average(differences, weights=weights)
    error = math.sqrt(np.average((differences - mean) ** 2, weights=weights) / weights.sum())
    worse_by = np.repeat(differences, list(cells.values()))
    interval = paired_interval(worse_by, None, proportions=True)
    assert interval.method == "Agresti–Min"
    expected = stats.norm.interval(0.95, mean, error)
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_few_samples_without_groups_hold_scipys_t_and_bca_intervals():
    worse_by = np.random.default_rng(0).exponential(1, 40)
    interval = paired_interval(worse_by, None)
    t = stats.ttest_1samp(worse_by, 0).confidence_interval()
    bca = stats.bootstrap((worse_by,), np.mean, rng=np.random.default_rng(9)).confidence_interval
    assert interval.low == pytest.approx(min(t.low, bca.low), abs=0.02)
    assert interval.high == pytest.approx(max(t.high, bca.high), abs=0.02)
    assert (interval.units, interval.count) == ("samples", 40)


def test_many_samples_without_groups_give_students_interval():
    worse_by = np.random.default_rng(0).exponential(1, 600)
    interval = paired_interval(worse_by, None)
    t = stats.ttest_1samp(worse_by, 0).confidence_interval()
    assert (interval.low, interval.high) == pytest.approx((t.low, t.high))
    assert interval.method == "t"


def test_groups_and_not_samples_are_counted():
    rng = np.random.default_rng(0)
    worse_by, member = data_set(rng, 6, rng.normal(1, 3, 6), np.full(6, 100))
    grouped = paired_interval(worse_by, member)
    naive = paired_interval(worse_by, None)
    assert (grouped.units, grouped.count) == ("groups", 6)
    assert grouped.high - grouped.low > 3 * (naive.high - naive.low)


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(0)
    worse_by, member = data_set(rng, 9, rng.normal(1, 1, 9), rng.integers(5, 60, 9))
    order = rng.permutation(len(worse_by))
    one = paired_interval(worse_by, member)
    other = paired_interval(worse_by[order], member[order])
    assert (one.low, one.high) == (other.low, other.high)


def test_one_unit_gives_no_interval():
    assert paired_interval(np.array([0.1, 0.2, 0.3]), np.array(["s1"] * 3)) is None
    assert paired_interval(np.array([0.1]), None) is None


def test_a_value_that_is_not_finite_gives_no_interval():
    assert paired_interval(np.array([0.1, math.nan, 0.3]), None) is None
    assert paired_interval(np.array([0.1, math.inf, 0.3]), np.array([1, 2, 3])) is None


def test_no_samples_are_refused():
    with pytest.raises(DataError, match="no sample"):
        paired_interval(np.array([]), None)


def test_equal_differences_give_an_interval_of_width_zero():
    interval = paired_interval(np.full(12, 0.25), np.repeat([1, 2, 3], 4))
    assert (interval.low, interval.high) == (0.25, 0.25)


def test_one_differing_group_among_equal_ones_still_gives_an_interval():
    interval = paired_interval(np.array([0.0, 0.0, 0.0, 3.0]), np.array([1, 2, 3, 4]))
    assert interval.low < 0.75 < interval.high


def test_right_and_wrong_without_a_change_still_leave_doubt_in_groups():
    interval = paired_interval(np.zeros(60), np.repeat([1, 2, 3], 20), proportions=True)
    assert interval.high > 0.01


@given(
    arrays(np.float64, st.integers(2, 30), elements=st.floats(-50, 50, width=32)),
    st.integers(1, 5),
)
def test_the_mean_over_samples_always_lies_in_its_interval(worse_by, groups):
    member = np.arange(len(worse_by)) % groups
    interval = paired_interval(worse_by, member)
    assert interval is None or interval.low <= paired_point(worse_by) <= interval.high


def test_that_many_more_samples_do_settle_a_gate():
    sample = stats.zscore(np.random.default_rng(0).normal(size=12), ddof=1)
    interval = Interval(
        low=-stats.t.ppf(0.975, 11) / math.sqrt(12),
        high=stats.t.ppf(0.975, 11) / math.sqrt(12),
        method="t",
        units="samples",
        count=12,
    )
    total = 12 + more_units_needed(interval, float(sample.mean()), 0.5)
    upper_end = stats.t.ppf(0.975, [total - 2, total - 1]) / np.sqrt([total - 1, total])
    assert upper_end[1] <= 0.5 < upper_end[0]


def test_no_number_is_named_where_none_would_do():
    interval = Interval(low=-1, high=3, method="t", units="groups", count=8)
    assert more_units_needed(interval, 1.0, 1.0) is None
    assert more_units_needed(interval, 1.0, 1.0 + 1e-6) is None
