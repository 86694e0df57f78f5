"""Predictions beside labels: pairs of a regression, a classifier's agreement by class."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from onnxq.samples import Samples

__all__ = ["ClassAgreement", "Limits", "Pairs", "agreement", "limits_of_agreement", "pairs"]

Predictions = Mapping[str, Float[np.ndarray, "n ..."]]
Numbers = Float[np.ndarray, " m"]


@dataclass(frozen=True)
class Pairs:
    """Label and predictions of the same samples; ``left_out`` more were not finite."""

    label: Numbers
    fp32: Numbers
    int8: Numbers
    left_out: int = 0


@dataclass(frozen=True)
class Limits:
    """Bias of INT8 − FP32 and the limits between which 95 % of such differences lie."""

    bias: float
    low: float
    high: float


@dataclass(frozen=True)
class ClassAgreement:
    """One class: how many samples carry it, how many each model gets right, how many answers are
    the same under both."""

    label: str
    samples: int
    fp32_right: int
    int8_right: int
    same: int


def pairs(predictions: Predictions, samples: Samples) -> Pairs | None:
    """The pairs, where each prediction is one number and the labels are floats; otherwise None."""
    labels = samples.labels
    fp32, int8 = _one_number(predictions["fp32"]), _one_number(predictions["int8"])
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.floating):
        return None
    if fp32 is None or int8 is None:
        return None
    finite: Bool[np.ndarray, " n"] = np.isfinite(labels) & np.isfinite(fp32) & np.isfinite(int8)
    if finite.sum() < 2:
        return None
    label = labels[finite].astype(np.float64)
    return Pairs(label, fp32[finite], int8[finite], left_out=int((~finite).sum()))


def limits_of_agreement(pair: Pairs) -> Limits:
    """``bias ± 1.96 · sd`` of INT8 − FP32, the sd with n − 1.

    Source: Bland and Altman, "Statistical methods for assessing agreement between two methods of
    clinical measurement", Lancet 327 (1986) 307–310.
    """
    difference = pair.int8 - pair.fp32
    bias, spread = float(difference.mean()), 1.96 * float(difference.std(ddof=1))
    return Limits(bias, bias - spread, bias + spread)


def agreement(predictions: Predictions, samples: Samples) -> tuple[ClassAgreement, ...]:
    """Agreement by class, where labels are integers and predictions are scores or class numbers;
    otherwise nothing."""
    labels = samples.labels
    if labels is None or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        return ()
    fp32, int8 = _classes(predictions["fp32"]), _classes(predictions["int8"])
    if fp32 is None or int8 is None:
        return ()
    return tuple(
        _class(str(label), labels == label, (fp32, int8, labels)) for label in _present(labels)
    )


def _present(labels: Shaped[np.ndarray, " n"]) -> list[int]:
    return [int(label) for label in np.unique(labels)]


def _class(
    name: str, here: Bool[np.ndarray, " n"], answers: tuple[Shaped[np.ndarray, " n"], ...]
) -> ClassAgreement:
    fp32, int8, labels = (values[here] for values in answers)
    return ClassAgreement(
        label=name,
        samples=int(here.sum()),
        fp32_right=int((fp32 == labels).sum()),
        int8_right=int((int8 == labels).sum()),
        same=int((fp32 == int8).sum()),
    )


def _one_number(predicted: Float[np.ndarray, "n ..."]) -> Float[np.ndarray, " n"] | None:
    """Predictions as ``(n,)`` float64, from ``(n,)`` or ``(n, 1)``."""
    if predicted.shape not in {(len(predicted),), (len(predicted), 1)}:
        return None
    return predicted.reshape(-1).astype(np.float64)


def _classes(predicted: Float[np.ndarray, "n ..."]) -> Shaped[np.ndarray, " n"] | None:
    """Class numbers: the highest of ``(n, classes)`` scores, or whole numbers as they are."""
    if predicted.ndim == 2 and predicted.shape[1] > 1:
        return np.asarray(predicted.argmax(axis=1))
    single = _one_number(predicted)
    if single is None or not np.all(np.isfinite(single)) or np.any(single != np.round(single)):
        return None
    return single.astype(np.int64)
