"""The arithmetic of quantization, once. ONNX's QuantizeLinear is the law: round half to even."""

import math

import numpy as np
from jaxtyping import Float, Integer

from onnxq.qtypes import AffineParameters, IntType, Range

__all__ = [
    "dequantize",
    "parameters_of_range",
    "powers_of_two_above",
    "quantize",
    "symmetric_weight_scales",
]

SMALLEST_SCALE = float(
    np.finfo(np.float32).tiny
)  # below it a scale is subnormal and may flush to 0
DEAD_WIDTH = 1e-4  # width given to a tensor that was always zero: it keeps what may yet come


def parameters_of_range(
    range_: Range, type_: IntType, *, symmetric: bool, power_of_two: bool = False
) -> AffineParameters:
    """Scale and zero point that put ``range_`` on the grid of ``type_``, zero exactly on a step.

    Affine: ``scale = (high - low) / (qmax - qmin)``, ``zero_point = round(qmin - low / scale)``.
    Symmetric: ``scale = max(|low|, |high|) / qmax`` with the zero point in the middle (0 for int8,
    128 for uint8).
    With ``power_of_two`` the scale is the smallest 2**k whose grid holds both ends of the range,
    and an affine zero point is the smallest that leaves neither outside: no value moves by more
    than half a step. A range of width zero is widened to 1e-4, so that nothing is divided by zero.
    Source: ONNX operator specification, QuantizeLinear and DynamicQuantizeLinear.
    """
    low, high = (range_.low, range_.high) if range_.width else (0.0, DEAD_WIDTH)
    middle = type_.middle
    if power_of_two:
        return _with_power_of_two(Range(low, high), type_, middle if symmetric else None)
    if symmetric:
        scale = _as_float32(max(-low, high) / (type_.qmax - middle))
        return AffineParameters(scale, middle, type_)
    scale = _as_float32((high - low) / (type_.qmax - type_.qmin))
    zero_point = int(np.rint(type_.qmin - low / scale))
    return AffineParameters(scale, min(max(zero_point, type_.qmin), type_.qmax), type_)


def _with_power_of_two(range_: Range, type_: IntType, middle: int | None) -> AffineParameters:
    """The finest grid with a scale of 2**k and zero at ``middle`` (None: anywhere) over ``range_``.

    k grows from the largest 2**k <= (high - low) / (qmax - qmin) until both ends are inside.
    """
    _, exponent = math.frexp(range_.width / (type_.qmax - type_.qmin))
    scale = max(math.ldexp(0.5, exponent), SMALLEST_SCALE)
    while True:
        below, above = math.ceil(-range_.low / scale), math.ceil(range_.high / scale)
        zero_point = type_.qmin + below if middle is None else middle
        if type_.qmin + below <= zero_point <= type_.qmax - above:
            return AffineParameters(scale, zero_point, type_)
        scale *= 2


def quantize(
    values: Float[np.ndarray, "*shape"],
    scale: Float[np.ndarray, "*#shape"] | float,
    zero_point: Integer[np.ndarray, "*#shape"] | int,
    type_: IntType,
) -> Integer[np.ndarray, "*shape"]:
    """``saturate(round_half_even(values / scale) + zero_point)``, in float32 as ONNX does it.

    int4 integers are held in int8.
    """
    steps = np.rint(np.asarray(values, np.float32) / np.asarray(scale, np.float32))
    shifted = steps.astype(np.float64) + zero_point
    return np.clip(shifted, type_.qmin, type_.qmax).astype(type_.holder)


def dequantize(
    integers: Integer[np.ndarray, "*shape"],
    scale: Float[np.ndarray, "*#shape"] | float,
    zero_point: Integer[np.ndarray, "*#shape"] | int,
) -> Float[np.ndarray, "*shape"]:
    """``(integers - zero_point) * scale`` in float32."""
    centred = integers.astype(np.int64) - zero_point
    return np.asarray(centred.astype(np.float32) * np.asarray(scale, np.float32))


def symmetric_weight_scales(
    weights: Float[np.ndarray, "..."],
    axis: int,
    type_: IntType = IntType.INT8,
    *,
    power_of_two: bool = False,
) -> Float[np.ndarray, " channels"]:
    """One scale per channel of ``axis``, ``max|w| / qmax``; −qmax − 1 is never used.

    With ``power_of_two`` each is the smallest 2**k that is not below it. A channel that is all zero
    gets scale 1, as its integers are zero whatever the scale.
    """
    others = tuple(dim for dim in range(weights.ndim) if dim != axis % weights.ndim)
    largest = np.abs(weights).max(axis=others)
    scales = np.maximum(largest.astype(np.float64) / type_.qmax, SMALLEST_SCALE)
    if power_of_two:
        scales = powers_of_two_above(scales)
    return np.where(largest > 0, scales, 1.0).astype(np.float32)


def powers_of_two_above(scales: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """For each scale the smallest 2**k that is not below it, never a subnormal float32."""
    fractions, exponents = np.frexp(np.maximum(scales, SMALLEST_SCALE))
    return np.asarray(np.ldexp(1.0, exponents - (fractions == 0.5)))


def _as_float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))
