"""Tasks for people who arrive with a plain ``.onnx``: classification and regression."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from onnxq.errors import DataError, UsageError, nearest
from onnxq.samples import Samples
from onnxq.verify.metrics import Metric, Task

__all__ = ["Classification", "Regression", "check_labels", "task_for_metric"]

Predictions = Float[np.ndarray, "n *output"]
Labels = Shaped[np.ndarray, " n"]
Outputs = dict[str, Float[np.ndarray, "n ..."]]


def _only(outputs: Outputs) -> Predictions:
    if len(outputs) != 1:
        raise DataError(
            f"the model has {len(outputs)} outputs ({', '.join(outputs)})",
            where="verify",
            do="write a task of your own that says which is judged: module:function in a recipe",
        )
    return next(iter(outputs.values()))


@dataclass(frozen=True)
class Regression:
    """One number per sample, judged by MAE (headline), RMSE, R² and Pearson's r."""

    unit: str = "units"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """MAE first."""
        return (
            Metric("mae", self.unit, "lower", _mae, _absolute_error),
            Metric("rmse", self.unit, "lower", _rmse),
            Metric("r2", "", "higher", _r2),
            Metric("pearson", "", "higher", _pearson),
        )

    def predictions(self, outputs: Outputs) -> Predictions:
        """The only output, one number per sample. Raises DataError for any other shape."""
        values = _only(outputs)
        if values[0].size != 1:
            raise DataError(
                f"the output has {values[0].size} numbers per sample, a regression needs one",
                where="verify",
                do="choose a metric of classification (top1), or write a task of your own",
            )
        return np.asarray(values.reshape(len(values)))

    def as_labels(self, predictions: Predictions) -> Labels:
        """Predictions are labels already."""
        return predictions

    def baseline(self, labels: Labels) -> Predictions:
        """The mean of the labels for every sample."""
        return np.full(len(labels), np.mean(labels, dtype=np.float64), np.float32)


@dataclass(frozen=True)
class Classification:
    """Scores per class, judged by top-1 accuracy (headline), mean class accuracy, and top-5."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Top-1 first."""
        return (
            Metric("top1", "share", "higher", _mean_of(_right_at(1)), _right_at(1)),
            Metric("mean_class", "share", "higher", _mean_class_accuracy),
            Metric("top5", "share", "higher", _mean_of(_right_at(5)), _right_at(5)),
        )

    def predictions(self, outputs: Outputs) -> Predictions:
        """The only output, ``(n, classes)``. Raises DataError for any other shape."""
        values = _only(outputs)
        if values.ndim != 2 or values.shape[1] < 2:
            raise DataError(
                f"the output has shape {list(values.shape)}, a classifier gives (n, classes)",
                where="verify",
                do="choose a metric of regression (mae), or write a task of your own",
            )
        return values

    def as_labels(self, predictions: Predictions) -> Labels:
        """Class of the highest score."""
        return np.asarray(predictions.argmax(axis=1))

    def baseline(self, labels: Labels) -> Predictions:
        """The commonest class for every sample, the others in order."""
        kinds, counts = np.unique(labels.astype(np.int64), return_counts=True)
        classes = int(kinds.max()) + 1
        scores = -np.arange(classes, dtype=np.float32) / classes
        scores[kinds[counts.argmax()]] = 1
        return np.tile(scores, (len(labels), 1))


_BY_METRIC: Mapping[str, type[Regression] | type[Classification]] = {
    "mae": Regression,
    "rmse": Regression,
    "r2": Regression,
    "pearson": Regression,
    "top1": Classification,
    "mean_class": Classification,
    "top5": Classification,
}


def task_for_metric(name: str) -> Task:
    """The task whose metric is called ``name``. Raises UsageError with the nearest name."""
    if name not in _BY_METRIC:
        raise UsageError(f"no metric `{name}`; {nearest(name, _BY_METRIC)}", where="--metric")
    return _BY_METRIC[name]()


def check_labels(task: Task, samples: Samples) -> None:
    """Raise DataError, naming the sample, for labels that no figure can be computed from.

    That is: none at all, one that is not finite, and what is no number, if the task is one of the
    built-in ones.
    """
    labels = samples.labels
    if labels is None:
        raise DataError("has no labels", where=samples.name, do="put `labels` beside the inputs")
    if isinstance(task, Regression | Classification) and not np.issubdtype(labels.dtype, np.number):
        do = "give the value to be predicted, as a number"
        if isinstance(task, Classification):
            do = "give the number of each sample's class, from 0, as the model scores them"
        raise DataError(
            f"the labels are no numbers; the first is {labels[0]!s:.40}", where=samples.name, do=do
        )
    if not np.issubdtype(labels.dtype, np.inexact):
        return
    bad = np.flatnonzero(~np.isfinite(labels))
    if len(bad):
        raise DataError(
            f"the label is {labels[bad[0]]} ({len(bad)} of {len(labels)} are not finite)",
            where=f"{samples.name}, sample {samples.number(int(bad[0]))}",
            do="leave out the samples without a known label",
        )


def _flat(predictions: Predictions, labels: Labels) -> tuple[np.ndarray, np.ndarray]:
    return predictions.reshape(len(labels)).astype(np.float64), labels.astype(np.float64)


def _absolute_error(predictions: Predictions, labels: Labels) -> Float[np.ndarray, " n"]:
    predicted, true = _flat(predictions, labels)
    with np.errstate(invalid="ignore", over="ignore"):  # inf − inf is NaN, and NaN fails
        return np.asarray(np.abs(predicted - true))


def _mae(predictions: Predictions, labels: Labels) -> float:
    return float(_absolute_error(predictions, labels).mean())


def _rmse(predictions: Predictions, labels: Labels) -> float:
    return float(np.sqrt(np.mean(_absolute_error(predictions, labels) ** 2)))


def _r2(predictions: Predictions, labels: Labels) -> float:
    predicted, true = _flat(predictions, labels)
    spread = np.sum((true - true.mean()) ** 2)
    if not spread or not np.isfinite(predicted).all():
        return float("nan")
    return float(1 - np.sum((true - predicted) ** 2) / spread)


def _pearson(predictions: Predictions, labels: Labels) -> float:
    predicted, true = _flat(predictions, labels)
    if not np.isfinite(predicted).all() or np.ptp(predicted) == 0 or np.ptp(true) == 0:
        return float("nan")
    return float(np.corrcoef(predicted, true)[0, 1])


def _right_at(k: int) -> Callable[[Predictions, Labels], Float[np.ndarray, " n"]]:
    """1 where fewer than ``k`` classes score higher than the true one, or equal and come first.

    Equal scores are common in INT8, and the first is what ``argmax`` takes. NaN where a score is
    NaN: such an answer is never right. Raises DataError for labels that are no class numbers.
    """

    def right(predictions: Predictions, labels: Labels) -> Float[np.ndarray, " n"]:
        _check_classes(labels, predictions.shape[1])
        ranked = np.argsort(-predictions, axis=1, kind="stable")[:, :k]
        hits = np.asarray(np.any(ranked == labels[:, None], axis=1), np.float64)
        hits[np.isnan(predictions).any(axis=1)] = np.nan
        return hits

    return right


def _check_classes(labels: Labels, classes: int) -> None:
    if not np.issubdtype(labels.dtype, np.number) or (labels != np.floor(labels)).any():
        raise DataError(
            "the labels are no class numbers",
            where="labels",
            do="give integers from 0, or choose a metric of regression (mae)",
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"the labels run from {labels.min():g} to {labels.max():g}, "
            f"and the model scores the classes 0 to {classes - 1}",
            where="labels",
            do="number the classes as the model does",
        )


def _mean_of(
    per_sample: Callable[[Predictions, Labels], Float[np.ndarray, " n"]],
) -> Callable[[Predictions, Labels], float]:
    return lambda predictions, labels: float(per_sample(predictions, labels).mean())


def _mean_class_accuracy(predictions: Predictions, labels: Labels) -> float:
    right = _right_at(1)(predictions, labels)
    return float(np.mean([right[labels == kind].mean() for kind in np.unique(labels)]))
