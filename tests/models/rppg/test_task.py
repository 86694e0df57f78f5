import numpy as np
import pytest
import torch
import torchmetrics.functional.regression as oracle
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn import metrics as sk

from models.rppg.task import heart_rate
from onnxq.errors import DataError

RATES = arrays(np.float64, 12, elements=st.floats(30, 180))
BY_NAME = {metric.name: metric for metric in heart_rate().metrics}


def compute(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    return BY_NAME[name].compute(predictions, labels)


@given(predictions=RATES, labels=RATES)
def test_errors_agree_with_scikit_learn(predictions, labels):
    for name, expected in (
        ("mae", sk.mean_absolute_error(labels, predictions)),
        ("rmse", sk.root_mean_squared_error(labels, predictions)),
        ("mape", 100 * sk.mean_absolute_percentage_error(labels, predictions)),
    ):
        assert compute(name, predictions, labels) == pytest.approx(expected)


def test_fit_agrees_with_scikit_learn_scipy_and_torchmetrics():
    rng = np.random.default_rng(0)
    labels = rng.uniform(45, 155, 200)
    predictions = labels + rng.normal(0, 10, 200)
    a, b = torch.from_numpy(predictions), torch.from_numpy(labels)
    assert compute("r2", predictions, labels) == pytest.approx(sk.r2_score(labels, predictions))
    assert compute("r2", predictions, labels) == pytest.approx(oracle.r2_score(a, b).item())
    pearson = compute("pearson", predictions, labels)
    assert pearson == pytest.approx(stats.pearsonr(predictions, labels).statistic)
    assert pearson == pytest.approx(oracle.pearson_corrcoef(a, b).item())
    mape = oracle.mean_absolute_percentage_error(a, b).item()
    assert compute("mape", predictions, labels) == pytest.approx(100 * mape)


@pytest.mark.parametrize("name", ["mae", "mape"])
def test_contributions_of_the_samples_have_the_figure_as_their_mean(name):
    rng = np.random.default_rng(1)
    predictions, labels = rng.uniform(40, 160, (2, 50))
    contributions = BY_NAME[name].per_sample(predictions, labels)
    assert contributions.shape == (50,)
    assert contributions.mean() == pytest.approx(compute(name, predictions, labels))


def test_mean_absolute_error_is_the_headline_and_range_is_neither_good_nor_bad():
    assert [metric.name for metric in heart_rate().metrics] == [
        "mae", "rmse", "mape", "r2", "pearson", "predicted_low", "predicted_high",
    ]  # fmt: skip
    assert BY_NAME["predicted_low"].better == BY_NAME["predicted_high"].better == "neither"
    rates = np.array([50.0, 90.0, 70.0])
    assert compute("predicted_low", rates, rates) == 50
    assert compute("predicted_high", rates, rates) == 90


def test_baseline_is_the_mean_of_the_labels_and_has_no_fit():
    labels = np.array([60.0, 80.0, 100.0])
    guess = heart_rate().baseline(labels)
    assert guess.tolist() == [80, 80, 80]
    assert compute("r2", guess, labels) == 0
    assert np.isnan(compute("pearson", guess, labels))


def test_predictions_are_the_column_of_the_output():
    rates = heart_rate().predictions({"output": np.array([[61.5], [90.0]], np.float32)})
    assert rates.tolist() == [61.5, 90.0]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [({"other": np.zeros((2, 1))}, "not `output`"), ({"output": np.zeros((2, 3))}, "shape")],
)
def test_other_outputs_are_refused(outputs, message):
    with pytest.raises(DataError, match=message):
        heart_rate().predictions(outputs)


def test_label_of_zero_is_refused_by_the_percentage():
    with pytest.raises(DataError, match="label is 0"):
        compute("mape", np.ones(3), np.array([60.0, 0.0, 70.0]))
