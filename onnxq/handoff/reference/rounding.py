"""From reals that are known as integers to the integers of the next tensor: the declared rounding.

``nearest_even`` is ONNX's own: the real multiplier ``scale / output scale`` in float64, and half to
even. The others are fixed-point arithmetic as microcontroller kernels do it, where the multiplier
is ``m * 2**shift`` with a 31-bit ``m`` (Jacob et al. 2018, arXiv 1712.05877, section 2.2):

- ``gemmlowp``: the high half of the doubled product, half up, then a right shift, half away from
  zero (gemmlowp, fixedpoint.h; TensorFlow Lite, MultiplyByQuantizedMultiplier; CMSIS-NN,
  arm_nn_requantize)
- ``cmsis_nn_single``: one shift of the 64-bit product, half up (CMSIS-NN's, built with
  CMSIS_NN_USE_SINGLE_ROUNDING)

With those a sum of terms of different scales (Add, Sub) is taken as the kernels of TensorFlow Lite
and CMSIS-NN do: every term shifted left by 20 bits and brought to twice the largest scale first.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64, Int64, Integer

from onnxq.affine import quantize
from onnxq.handoff.reference.values import Array, Steps, Value, real
from onnxq.qtypes import AffineParameters

__all__ = ["ROUNDINGS", "Rounding", "position", "rounded"]

Rounding = Literal["nearest_even", "gemmlowp", "cmsis_nn_single"]
ROUNDINGS: tuple[Rounding, ...] = get_args(Rounding)
LEFT_SHIFT = 20  # of the terms of a sum


def position(value: Value, grid: AffineParameters) -> Float64[np.ndarray, "..."]:
    """Where the value lies on the grid, in steps from integer 0: exact to float64, before rounding
    and before saturation."""
    place = real(value).astype(np.float64) / np.float64(np.float32(grid.scale))
    return np.asarray(place + grid.zero_point)


def rounded(
    value: Value, grid: AffineParameters, rounding: Rounding = "nearest_even"
) -> Integer[np.ndarray, "..."]:
    """The integers that ``value`` becomes on ``grid``, saturated to its type.

    A float32 array (an input of the graph) is quantized in float32 as ONNX says, whatever the
    rounding; float64 (from an operator that is computed there) half to even.
    """
    if not isinstance(value, Steps):
        if value.dtype == np.float32:
            return quantize(value, grid.scale, grid.zero_point, grid.type)
        return _saturated(np.rint(value / np.float64(np.float32(grid.scale))), grid)
    if rounding == "nearest_even":
        return _saturated(np.rint(real(value) / np.float64(np.float32(grid.scale))), grid)
    steps = _saturated(_fixed_point(value, np.float32(grid.scale), rounding), grid)
    if not value.is_cut:
        return steps
    low, high = np.rint(np.array([value.low, value.high]) / np.float64(np.float32(grid.scale)))
    ends = np.clip(np.array([low, high]) + grid.zero_point, grid.type.qmin, grid.type.qmax)
    return np.asarray(np.clip(steps, *ends).astype(steps.dtype))


def _saturated(steps: Array, grid: AffineParameters) -> Integer[np.ndarray, "..."]:
    shifted = np.clip(steps + grid.zero_point, grid.type.qmin, grid.type.qmax)
    return np.asarray(shifted.astype(grid.type.value))


def _fixed_point(value: Steps, scale: np.float32, rounding: Rounding) -> Int64[np.ndarray, "..."]:
    if len(value.terms) == 1:
        (term,) = value.terms
        return _scaled(term.numbers, term.scale / np.float64(scale), rounding)
    common = 2 * np.maximum.reduce([term.scale.max() for term in value.terms])
    total = np.zeros(value.shape, np.int64)
    for term in value.terms:
        total = total + _scaled(term.numbers << LEFT_SHIFT, term.scale / common, rounding)
    multiplier = np.asarray(common / np.float64(scale) / 2.0**LEFT_SHIFT)
    return _scaled(total, multiplier, rounding)


def _scaled(
    numbers: Int64[np.ndarray, "..."], multiplier: Float64[np.ndarray, "..."], rounding: Rounding
) -> Int64[np.ndarray, "..."]:
    """``numbers * multiplier`` by a 31-bit multiplier and shifts."""
    fraction, exponent = np.frexp(multiplier)
    mantissa = np.rint(fraction * 2.0**31).astype(np.int64)
    full = mantissa == 2**31
    mantissa = np.where(full, mantissa // 2, mantissa)
    exponent = exponent.astype(np.int64) + full
    if rounding == "cmsis_nn_single":
        shift = np.minimum(31 - exponent, 62)
        return np.asarray(((numbers * mantissa >> (shift - 1)) + 1) >> 1)
    product = (numbers << np.maximum(exponent, 0)) * mantissa
    high = (product + (1 << 30)) >> 31
    right = np.clip(-exponent, 0, 62)
    mask = (np.int64(1) << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return np.asarray((high >> right) + ((high & mask) > threshold))
