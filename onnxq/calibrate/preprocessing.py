"""Whether the inputs of calibration and of evaluation were made in the same way."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.artifacts import InputRow
from onnxq.samples import Column, Samples

__all__ = ["Moments", "compare_inputs", "moments_of"]

_MOST_SHIFT = 0.5
_MOST_RATIO = 1.5


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation (divided by n) of all ``count`` values of an input."""

    count: int
    mean: float
    std: float


def moments_of(samples: Samples) -> dict[str, Moments]:
    """Moments of every input over all ``samples``, in float64 and one reading.

    Source: Chan, Golub and LeVeque 1983, The American Statistician 37, equation 2.1.
    """
    return {name: _moments(column) for name, column in samples.inputs.items()}


def _moments(column: Column) -> Moments:
    count, mean, squares = 0, 0.0, 0.0
    for index in range(len(column)):
        row = np.asarray(column[index], np.float64)
        if not row.size:
            continue
        shift = float(row.mean()) - mean
        both = count + row.size
        squares += float(row.var()) * row.size + shift**2 * count * row.size / both
        mean += shift * row.size / both
        count = both
    return Moments(count, mean, math.sqrt(squares / count) if count else 0.0)


def compare_inputs(
    calibration: Mapping[str, Moments], evaluation: Mapping[str, Moments]
) -> tuple[InputRow, ...]:
    """Every input that both have values of.

    It differs if the means are more than half a standard deviation apart, or one standard deviation
    is more than 1.5 times the other. Two draws of the same data stay far within: the mean of 64
    pictures, each of which is off by half a standard deviation, is off by a sixteenth of one. Other
    preprocessing goes far beyond: dividing by 255 or not is a ratio of 255, [0, 1] against [−1, 1]
    a ratio of 2, ImageNet's mean and deviation removed or not one of 4.4, and 128 subtracted or not
    a shift of about 2.
    """
    return tuple(
        _compared(name, calibration[name], found)
        for name, found in evaluation.items()
        if name in calibration and calibration[name].count and found.count
    )


def _compared(name: str, calibration: Moments, evaluation: Moments) -> InputRow:
    apart = abs(evaluation.mean - calibration.mean)
    pooled = math.sqrt((calibration.std**2 + evaluation.std**2) / 2)
    shift = apart / pooled if pooled else (math.inf if apart else 0.0)
    if calibration.std:
        ratio = evaluation.std / calibration.std
    else:
        ratio = math.inf if evaluation.std else 1.0
    alike = shift <= _MOST_SHIFT and 1 / _MOST_RATIO <= ratio <= _MOST_RATIO
    return InputRow(
        input=name,
        calibration_mean=calibration.mean,
        calibration_std=calibration.std,
        evaluation_mean=evaluation.mean,
        evaluation_std=evaluation.std,
        shift=shift,
        ratio=ratio,
        differs=not alike,
    )
