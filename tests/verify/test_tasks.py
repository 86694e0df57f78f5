"""The built-in metrics against scikit-learn, scipy and torchmetrics."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import dummy, metrics

from onnxq.errors import DataError, UsageError
from onnxq.verify.tasks import Classification, Regression, task_for_metric

RNG = np.random.default_rng(0)
LABELS = RNG.normal(80, 15, 200).astype(np.float32)
PREDICTED = (LABELS + RNG.normal(1, 5, 200)).astype(np.float32)
CLASSES = RNG.integers(0, 12, 300)
SCORES = (RNG.normal(size=(300, 12)) + 1.5 * np.eye(12)[CLASSES]).astype(np.float32)


def figure(task, name, predictions, labels):
    metric = next(metric for metric in task.metrics if metric.name == name)
    return metric.compute(predictions, labels)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("mae", metrics.mean_absolute_error),
        ("rmse", metrics.root_mean_squared_error),
        ("r2", metrics.r2_score),
        ("pearson", lambda true, predicted: stats.pearsonr(true, predicted).statistic),
    ],
)
def test_regression_metrics_are_those_of_scikit_learn_and_scipy(name, oracle):
    expected = oracle(LABELS.astype(float), PREDICTED.astype(float))
    assert figure(Regression("BPM"), name, PREDICTED, LABELS) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "oracle"),
    [
        ("top1", lambda true, scores: metrics.accuracy_score(true, scores.argmax(1))),
        (
            "mean_class",
            lambda true, scores: metrics.balanced_accuracy_score(true, scores.argmax(1)),
        ),
        ("top5", lambda true, scores: metrics.top_k_accuracy_score(true, scores, k=5)),
    ],
)
def test_classification_metrics_are_those_of_scikit_learn(name, oracle):
    assert figure(Classification(), name, SCORES, CLASSES) == pytest.approx(oracle(CLASSES, SCORES))


def test_accuracies_are_those_of_torchmetrics():
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functional = pytest.importorskip("torchmetrics.functional.classification")
    for name, options in {
        "top1": {"average": "micro"},
        "mean_class": {"average": "macro"},
        "top5": {"average": "micro", "top_k": 5},
    }.items():
        expected = functional.multiclass_accuracy(
            torch.from_numpy(SCORES), torch.from_numpy(CLASSES), num_classes=12, **options
        )
        assert figure(Classification(), name, SCORES, CLASSES) == pytest.approx(float(expected))


@pytest.mark.parametrize("task", [Regression(), Classification()])
def test_the_mean_of_the_contributions_is_the_figure(task):
    data = (PREDICTED, LABELS) if isinstance(task, Regression) else (SCORES, CLASSES)
    for metric in task.metrics:
        if metric.per_sample is not None:
            assert metric.per_sample(*data).mean() == pytest.approx(metric.compute(*data))


def test_equal_scores_are_ranked_as_argmax_ranks_them():
    scores = np.array([[1, 1, 0], [1, 1, 0]], np.float32)
    assert figure(Classification(), "top1", scores, np.array([0, 1])) == 0.5


def test_a_nan_score_is_never_right():
    scores = np.array([[np.nan, 0, 0], [0, 1, 0]], np.float32)
    assert np.isnan(figure(Classification(), "top1", scores, np.array([0, 1])))


def test_predictions_that_are_not_finite_give_no_figure_and_no_warning():
    predicted = np.array([np.inf, np.nan, 1.0])
    labels = np.array([1.0, 2.0, 3.0])
    task = Regression()
    assert not any(np.isfinite(metric.compute(predicted, labels)) for metric in task.metrics)


@pytest.mark.parametrize("labels", [[0.5, 1.0], [-1, 0], [0, 3]])
def test_labels_that_are_no_class_of_the_model_are_refused(labels):
    with pytest.raises(DataError, match="labels"):
        figure(Classification(), "top1", np.eye(3, dtype=np.float32)[:2], np.array(labels))


def test_baselines_are_those_of_a_dummy():
    regressor = dummy.DummyRegressor().fit(LABELS[:, None], LABELS)
    np.testing.assert_allclose(
        Regression().baseline(LABELS), regressor.predict(LABELS[:, None]), rtol=1e-6
    )
    majority = dummy.DummyClassifier(strategy="most_frequent").fit(CLASSES[:, None], CLASSES)
    guesses = Classification().baseline(CLASSES).argmax(axis=1)
    np.testing.assert_array_equal(guesses, majority.predict(CLASSES[:, None]))


def test_outputs_of_the_wrong_form_are_refused_with_the_way_out():
    with pytest.raises(DataError, match="2 outputs"):
        Regression().predictions({"a": PREDICTED, "b": PREDICTED})
    with pytest.raises(DataError, match="12 numbers per sample"):
        Regression().predictions({"scores": SCORES})
    with pytest.raises(DataError, match=r"shape \[200, 1\]"):
        Classification().predictions({"rate": PREDICTED[:, None]})


def test_a_metric_names_its_task_and_a_typo_its_neighbour():
    assert task_for_metric("mae").metrics[0].name == "mae"
    assert task_for_metric("top5").metrics[0].name == "top1"
    with pytest.raises(UsageError, match="did you mean `top1`"):
        task_for_metric("topp1")
