"""Statistics, ranges and choices made of raw values, for tests of what is concluded from them."""

from collections.abc import Mapping

import numpy as np

from onnxq.artifacts import SampleChoice, TensorRange
from onnxq.calibrate.checkpoint import blocks_of
from onnxq.calibrate.counting import Accumulator
from onnxq.calibrate.estimators import EstimatorOptions, estimate
from onnxq.calibrate.statistics import Statistics, Summary


def summary_of(values: np.ndarray) -> Summary:
    accumulator = Accumulator()
    accumulator.add(values.astype(np.float32))
    return accumulator.drain()


def statistics_of(tensors: Mapping[str, np.ndarray], *, histograms: bool = True) -> Statistics:
    """``tensors`` hold a row of values for every run."""
    values = {name: array.astype(np.float32) for name, array in tensors.items()}
    blocks = tuple(blocks_of(len(next(iter(values.values())))))
    return Statistics(
        tensors=tuple(values),
        lows=np.stack([array.min(axis=1) for array in values.values()], axis=1),
        highs=np.stack([array.max(axis=1) for array in values.values()], axis=1),
        values=np.array([array.size for array in values.values()]),
        blocks=blocks,
        summaries=tuple(
            tuple(summary_of(array[start:stop]) for array in values.values())
            for start, stop in blocks
        )
        if histograms
        else (),
    )


def ranges_of(
    statistics: Statistics, method: str, options: EstimatorOptions | None = None
) -> dict[str, TensorRange]:
    found = {}
    for name in statistics.tensors:
        seen = statistics.of(name)
        estimated = estimate(seen, method, options or EstimatorOptions())
        found[name] = TensorRange(
            low=estimated.low,
            high=estimated.high,
            observed_low=seen.low,
            observed_high=seen.high,
            values=seen.values,
            zeros=None,
        )
    return found


def choice_of(count: int, **facts: object) -> SampleChoice:
    return SampleChoice(
        **{
            "source": "cal",
            "plan": "random",
            "seed": 0,
            "asked": count,
            "indices": tuple(range(count)),
            "digests": ("0" * 64,) * count,
        }
        | facts
    )
