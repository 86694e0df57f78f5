"""The models side by side."""

import numpy as np
import pytest
from sklearn import metrics

from onnxq.samples import Samples
from onnxq.target import load_target
from onnxq.verify.comparison import compare_models
from onnxq.verify.tasks import Classification, Regression

RNG = np.random.default_rng(0)
SIZES = [5, 40, 20, 10, 25]
GROUPS = np.repeat(["e", "d", "c", "b", "a"], SIZES)
TRUTH = RNG.normal(80, 15, 100)
FP32 = TRUTH + RNG.normal(0, 3, 100)
REWRITTEN = FP32 + 1e-5
INT8 = FP32 + np.where(GROUPS == "c", 9.0, RNG.normal(0, 0.5, 100))


@pytest.fixture
def comparison():
    samples = Samples("windows", {"x": np.zeros((100, 1))}, TRUTH, GROUPS)
    predictions = {"fp32": FP32, "rewritten": REWRITTEN, "int8": INT8, "int8_other": INT8 + 0.5}
    return compare_models(Regression("BPM"), predictions, samples, load_target("stm32n6"))


def test_every_variant_has_its_figure(comparison):
    row = comparison.metrics[0]
    for variant, predicted in {"fp32": FP32, "rewritten": REWRITTEN, "int8": INT8}.items():
        expected = metrics.mean_absolute_error(TRUTH, predicted)
        assert getattr(row, variant) == pytest.approx(expected)
    assert row.baseline == pytest.approx(np.abs(TRUTH - TRUTH.mean()).mean(), rel=1e-5)


def test_the_increase_lies_in_its_interval_over_groups(comparison):
    row = comparison.metrics[0]
    assert row.interval.low <= row.increase <= row.interval.high
    assert (row.interval.units, row.interval.count) == ("groups", 5)


def test_metrics_that_are_no_mean_over_samples_have_no_interval(comparison):
    assert {row.metric: row.interval is None for row in comparison.metrics} == {
        "mae": False,
        "rmse": True,
        "r2": True,
        "pearson": True,
    }


def test_the_sign_is_turned_so_that_positive_is_worse(comparison):
    rows = {row.metric: row for row in comparison.metrics}
    assert rows["r2"].increase == pytest.approx(rows["r2"].fp32 - rows["r2"].int8)
    assert all(row.increase > 0 for row in comparison.metrics)


def test_the_worst_group_is_named_and_groups_add_up(comparison):
    assert comparison.worst_group == "c"
    rows = comparison.by_group
    assert [row.samples for row in rows] == [25, 10, 20, 40, 5]
    total = sum(row.samples * row.increase for row in rows) / 100
    assert total == pytest.approx(comparison.metrics[0].increase)


def test_a_group_whose_predictions_are_no_numbers_is_the_worst():
    samples = Samples("windows", {"x": np.zeros((100, 1))}, TRUTH, GROUPS)
    broken = np.where(GROUPS == "b", np.nan, INT8)
    predictions = {"fp32": FP32, "rewritten": FP32, "int8": broken, "int8_other": broken}
    comparison = compare_models(Regression(), predictions, samples, load_target("ort-x86"))
    assert comparison.worst_group == "b"
    assert comparison.metrics[0].interval is None


def test_right_and_wrong_without_groups_are_compared_as_paired_proportions():
    labels = RNG.integers(0, 6, 100)
    scores = np.eye(6)[labels] + RNG.normal(0, 0.4, (100, 6))
    samples = Samples("pictures", {"x": np.zeros((100, 1))}, labels)
    noisy = scores + RNG.normal(0, 0.3, (100, 6))
    predictions = {"fp32": scores, "rewritten": scores, "int8": noisy, "int8_other": noisy}
    comparison = compare_models(Classification(), predictions, samples, load_target("ort-x86"))
    assert comparison.metrics[0].interval.method == "Agresti–Min"
    assert (comparison.groups, comparison.worst_group) == (0, None)
