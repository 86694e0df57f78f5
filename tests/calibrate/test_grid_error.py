"""The error on a grid, judged by quantizing each value with the arithmetic of the product."""

import numpy as np
import pytest

from onnxq.affine import dequantize, parameters_of_range, quantize
from onnxq.calibrate.counting import Accumulator
from onnxq.calibrate.grid_error import Grid, GridError
from onnxq.qtypes import IntType, Range

RANDOM = np.random.default_rng(0)
SHAPES = {
    "normal": RANDOM.normal(0, 1, 50_000),
    "heavy tails": RANDOM.standard_t(3, 50_000),
    "behind a Relu": np.maximum(RANDOM.normal(0, 1, 50_000), 0),
    "bimodal": np.append(RANDOM.normal(-3, 0.2, 25_000), RANDOM.normal(5, 0.5, 25_000)),
    "clipped at 6": np.clip(RANDOM.normal(2, 4, 50_000), 0, 6),
    "negative": -RANDOM.exponential(2, 50_000),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power", [1.0, 2.0, 2.4])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.6, 0.2, 0.05])
def test_the_error_is_that_of_quantizing_every_value(shape, power, symmetric, share):
    values = SHAPES[shape].astype(np.float32)
    accumulator = Accumulator()
    accumulator.add(values)
    found = GridError(accumulator.drain(), Grid(255, symmetric), power, 1 / 64)
    reach = float(np.abs(values).max())
    low, high = min(float(values.min()), 0) * share, max(float(values.max()), 0) * share
    parameters = parameters_of_range(Range(low, high), IntType.INT8, symmetric=symmetric)
    integers = quantize(values, parameters.scale, parameters.zero_point, IntType.INT8)
    back = dequantize(integers, parameters.scale, parameters.zero_point)
    expected = np.sum(np.abs(back.astype(float) - values) ** power) / reach**power
    assert found(low / reach, high / reach) == pytest.approx(expected, rel=0.02)
