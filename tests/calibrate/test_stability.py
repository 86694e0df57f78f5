"""How far ranges move with the samples, judged by drawing other samples and asking numpy."""

from dataclasses import replace

import numpy as np
import pytest

from onnxq.artifacts import StabilityRow
from onnxq.calibrate.estimators import EstimatorOptions
from onnxq.calibrate.stability import SPREAD_ALLOWED, TOLERANCE, stability_of, sufficiency

from .seen import ranges_of, statistics_of

METHODS = ("minmax", "ema", "percentile", "mse", "entropy", "meanstd")
P99 = EstimatorOptions(coverage=0.99)


def heavy_tailed(runs, seed, tensors=10, values=2000):
    random = np.random.default_rng(seed)
    return {f"t{place}": random.standard_t(3, (runs, values)) for place in range(tensors)}


def rows_of(tensors, method, options=P99, seed=0):
    statistics = statistics_of(tensors)
    ranges = ranges_of(statistics, method, options)
    return stability_of(statistics, ranges, method, options, seed)


def width_of_99_percent(values: np.ndarray) -> float:
    low, high = np.quantile(values, (0.005, 0.995))
    return high - low


# --- spread -------------------------------------------------------------------------------------


def test_the_spread_by_blocks_is_that_of_other_samples():
    rows = rows_of(heavy_tailed(64, 0, tensors=40, values=200), "percentile")
    others = [
        width_of_99_percent(np.random.default_rng(n).standard_t(3, 64 * 200)) for n in range(400)
    ]
    true = 1.96 * np.std(others) / np.mean(others)
    found = np.mean([row.spread for row in rows])
    assert 0.8 * true < found < 1.6 * true  # by Student's t of 7, the interval is 1.2 times as wide


def test_the_spread_of_minmax_is_that_of_resampled_raw_runs():
    tensors = heavy_tailed(40, 1, tensors=3)
    found = {row.tensor: row.spread for row in rows_of(tensors, "minmax")}
    random = np.random.default_rng(9)
    for name, raw in tensors.items():
        widths = [np.ptp(raw[random.integers(0, 40, 40)]) for _ in range(1000)]
        low, high = np.quantile(widths, (0.025, 0.975))
        assert found[name] == pytest.approx((high - low) / 2 / np.ptp(raw), rel=0.35)


@pytest.mark.parametrize("method", METHODS)
def test_runs_that_are_all_alike_have_no_spread(method):
    tensors = {"x": np.tile(np.random.default_rng(0).normal(size=2000), (16, 1))}
    (row,) = rows_of(tensors, method)
    assert row.spread == pytest.approx(0, abs=1e-12)
    assert (row.quarter, row.half) == (pytest.approx(1), pytest.approx(1))


@pytest.mark.parametrize(
    ("method", "tail"),
    [
        ("percentile", lambda random, shape: random.standard_t(3, shape)),
        ("mse", lambda random, shape: random.laplace(size=shape)),
    ],
)
def test_heavy_tails_are_unstable_with_4_samples_and_stable_with_400(method, tail):
    options = EstimatorOptions(coverage=0.999)

    def seen(runs):
        raw = tail(np.random.default_rng(2), (runs, 1000))
        return sufficiency(rows_of({"x": raw}, method, options), runs)

    few, many = seen(4), seen(400)
    assert few is not None
    assert many is not None
    assert few.spread > SPREAD_ALLOWED
    assert many.spread < SPREAD_ALLOWED
    assert many.enough == 400


@pytest.mark.parametrize("method", ["percentile", "mse", "meanstd"])
def test_the_order_of_blocks_does_not_matter(method):
    statistics = statistics_of(heavy_tailed(16, 3, tensors=1, values=100))
    ranges = ranges_of(statistics, method, P99)
    turned = replace(statistics, summaries=statistics.summaries[::-1])
    assert stability_of(turned, ranges, method, P99, 0) == stability_of(
        statistics, ranges, method, P99, 0
    )


def test_the_seed_decides_on_resamples():
    tensors = heavy_tailed(16, 4, tensors=1)
    assert rows_of(tensors, "minmax") == rows_of(tensors, "minmax")
    assert rows_of(tensors, "minmax") != rows_of(tensors, "minmax", seed=1)


def test_the_least_stable_tensor_comes_first():
    gains = np.ones((32, 1))
    gains[5] = 9
    random = np.random.default_rng(5)
    tensors = {
        "calm": random.uniform(-1, 1, (32, 500)),
        "one loud run": gains * random.uniform(-1, 1, (32, 500)),
    }
    first, second = rows_of(tensors, "minmax")
    assert (first.tensor, second.tensor) == ("one loud run", "calm")
    assert first.spread > 0.3
    assert second.spread < 0.05
    assert first.half == pytest.approx(0.55, abs=0.2)  # half of the halves hold the loud run


# --- growth -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["minmax", "meanstd"])
def test_growth_is_the_mean_width_of_halves_and_quarters(method):
    raw = heavy_tailed(64, 6, tensors=1)["t0"]
    (row,) = rows_of({"t0": raw}, method, EstimatorOptions(sigmas=3))
    random = np.random.default_rng(0)

    def width(part):
        if method == "minmax":
            return np.ptp(part)
        mean, std = part.mean(), part.std()
        return min(mean + 3 * std, part.max()) - max(mean - 3 * std, part.min())

    for share, found in ((4, row.quarter), (2, row.half)):
        parts = [width(raw[random.permutation(64)[: 64 // share]]) for _ in range(300)]
        assert found == pytest.approx(np.mean(parts) / width(raw), abs=0.08)


@pytest.mark.parametrize("method", METHODS)
def test_of_one_run_nothing_can_be_said_and_of_three_not_whether_ranges_grow(method):
    assert rows_of(heavy_tailed(1, 0, tensors=1), method) == ()
    (row,) = rows_of(heavy_tailed(3, 0, tensors=1), method)
    assert (row.quarter, row.half) == (None, None)
    seen = sufficiency((row,), 3)
    assert seen is not None
    assert seen.change is seen.enough is None
    assert sufficiency((), 1) is None


def row(quarter, half):
    return StabilityRow(tensor="t", spread=0.0, quarter=quarter, half=half)


@pytest.mark.parametrize(
    ("quarter", "half", "enough"),
    [
        (0.90, 0.96, 100),  # the last doubling changed less than is worth it
        (0.70, 0.90, 200),  # 10 %, then 7, 5, 3.5: as slowly as a sampling error, though 20 before
        (0.78, 0.94, 100),  # 6 %, then 4.2 on doubling from here
        (0.50, 0.72, None),  # 28 % after 22: it does not shrink
        (0.50, 0.755, None),  # 24.5 % after 25.5: it would take more than 64 times as many
    ],
)
def test_how_many_suffice_is_extrapolated_at_the_rate_seen(quarter, half, enough):
    seen = sufficiency([row(quarter, half)], 100)
    assert seen is not None
    assert (seen.tolerance, seen.enough) == (TOLERANCE, enough)
    assert seen.change == pytest.approx(1 - half)
    assert seen.change_before == pytest.approx(half - quarter)


# --- which tensors ------------------------------------------------------------------------------


def test_pinned_dead_and_empty_tensors_are_left_out():
    tensors = heavy_tailed(8, 0, tensors=4) | {"dead": np.zeros((8, 10))}
    statistics = statistics_of(tensors)
    statistics.lows[:, 2] = statistics.highs[:, 2] = np.nan
    ranges = ranges_of(statistics_of(tensors), "minmax")
    ranges["t0"] = ranges["t0"].model_copy(update={"pinned": "declared domain"})
    rows = stability_of(statistics, ranges, "minmax", P99, 0)
    assert {row.tensor for row in rows} == {"t1", "t3"}


def test_of_very_many_tensors_the_most_varied_are_looked_at():
    tensors = {f"t{n}": np.tile(np.linspace(-1, 1, 9), (2, 1)) for n in range(14)}
    tensors["t9"] = tensors["t9"] * np.array([[1.0], [2.0]])
    statistics = statistics_of(tensors)
    rows = stability_of(statistics, ranges_of(statistics, "minmax"), "mse", P99, 0)
    assert len(rows) == 12
    assert rows[0].tensor == "t9"
