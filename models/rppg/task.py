"""How heart rates are judged: errors in BPM, beside what the mean heart rate would score."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from onnxq.errors import DataError
from onnxq.verify.metrics import Metric

__all__ = ["OUTPUT", "HeartRate", "heart_rate"]

OUTPUT = "output"
Rates = Float[np.ndarray, "n *output"]
Labels = Shaped[np.ndarray, " n"]


def absolute_error_bpm(predictions: Rates, labels: Labels) -> Float[np.ndarray, " n"]:
    """|prediction − label| of every sample, BPM."""
    return np.asarray(np.abs(predictions - labels))


def absolute_percentage_error(predictions: Rates, labels: Labels) -> Float[np.ndarray, " n"]:
    """100 |prediction − label| / label of every sample, %. Raises DataError for a label of 0."""
    if (labels == 0).any():
        raise DataError("a label is 0, which is no heart rate", where="MAPE", do="check the labels")
    return np.asarray(100 * np.abs((predictions - labels) / labels))


def mae_bpm(predictions: Rates, labels: Labels) -> float:
    """Mean absolute error, BPM."""
    return float(absolute_error_bpm(predictions, labels).mean())


def rmse_bpm(predictions: Rates, labels: Labels) -> float:
    """Root of the mean squared error, BPM."""
    return float(np.sqrt(((predictions - labels) ** 2).mean()))


def mape(predictions: Rates, labels: Labels) -> float:
    """Mean absolute percentage error, %."""
    return float(absolute_percentage_error(predictions, labels).mean())


def r2(predictions: Rates, labels: Labels) -> float:
    """Coefficient of determination; NaN if all labels are equal."""
    around_mean = ((labels - labels.mean()) ** 2).sum()
    if around_mean == 0:
        return float("nan")
    return float(1 - ((predictions - labels) ** 2).sum() / around_mean)


def pearson(predictions: Rates, labels: Labels) -> float:
    """Correlation of predictions and labels; NaN if either is constant."""
    if np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return float("nan")
    a, b = predictions - predictions.mean(), labels - labels.mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size)


def _lowest(predictions: Rates, labels: Labels) -> float:
    return float(predictions.min())


def _highest(predictions: Rates, labels: Labels) -> float:
    return float(predictions.max())


METRICS = (
    Metric("mae", "BPM", "lower", mae_bpm, absolute_error_bpm),
    Metric("rmse", "BPM", "lower", rmse_bpm),
    Metric("mape", "%", "lower", mape, absolute_percentage_error),
    Metric("r2", "", "higher", r2),
    Metric("pearson", "", "higher", pearson),
    Metric("predicted_low", "BPM", "neither", _lowest),
    Metric("predicted_high", "BPM", "neither", _highest),
)


@dataclass(frozen=True)
class HeartRate:
    """Regression of one heart rate a window, BPM."""

    metrics: tuple[Metric, ...] = METRICS

    def predictions(self, outputs: dict[str, Float[np.ndarray, "n ..."]]) -> Rates:
        """Heart rates (n,) in BPM, float64, from the network's output (n, 1).

        Raises DataError for another output.
        """
        if OUTPUT not in outputs:
            raise DataError(f"has the outputs {', '.join(outputs)}, not `{OUTPUT}`", where="rPPG")
        rates = outputs[OUTPUT]
        if rates.shape != (len(rates), 1):
            raise DataError(f"has shape {rates.shape} instead of (n, 1)", where=OUTPUT)
        return rates[:, 0].astype(np.float64)

    def as_labels(self, predictions: Rates) -> Labels:
        """Predicted rates as if they were the truth."""
        return predictions

    def baseline(self, labels: Labels) -> Rates:
        """The mean of the labels for every window: a network that sees nothing."""
        return np.full(len(labels), np.mean(labels, dtype=np.float64))


def heart_rate() -> HeartRate:
    """The task of this system, as a recipe names it."""
    return HeartRate()
