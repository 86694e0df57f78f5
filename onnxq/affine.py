"""The arithmetic of quantization, once. ONNX's QuantizeLinear is the law: round half to even."""

import numpy as np
from jaxtyping import Float, Integer

from onnxq.qtypes import AffineParameters, IntType, Range

__all__ = [
    "dequantize",
    "parameters_of_range",
    "quantize",
    "symmetric_weight_scales",
]

SMALLEST_SCALE = float(
    np.finfo(np.float32).tiny
)  # below it a scale is subnormal and may flush to 0
DEAD_WIDTH = 1e-4  # width given to a tensor that was always zero: it keeps what may yet come


def parameters_of_range(range_: Range, type_: IntType, *, symmetric: bool) -> AffineParameters:
    """Scale and zero point that put ``range_`` on the grid of ``type_``, zero exactly on a step.

    Affine: ``scale = (high - low) / (qmax - qmin)``, ``zero_point = round(qmin - low / scale)``.
    Symmetric: ``scale = max(|low|, |high|) / qmax`` with zero point 0 (128 for uint8).
    A range of width zero is widened to 1e-4, so that nothing is divided by zero.
    Source: ONNX operator specification, QuantizeLinear and DynamicQuantizeLinear.
    """
    low, high = (range_.low, range_.high) if range_.width else (0.0, DEAD_WIDTH)
    if symmetric:
        middle = 128 if type_ is IntType.UINT8 else 0
        scale = _as_float32(max(-low, high) / (type_.qmax - middle))
        return AffineParameters(scale, middle, type_)
    scale = _as_float32((high - low) / (type_.qmax - type_.qmin))
    zero_point = int(np.rint(type_.qmin - low / scale))
    return AffineParameters(scale, min(max(zero_point, type_.qmin), type_.qmax), type_)


def quantize(
    values: Float[np.ndarray, "*shape"],
    scale: Float[np.ndarray, "*#shape"] | float,
    zero_point: Integer[np.ndarray, "*#shape"] | int,
    type_: IntType,
) -> Integer[np.ndarray, "*shape"]:
    """``saturate(round_half_even(values / scale) + zero_point)``, in float32 as ONNX does it."""
    steps = np.rint(np.asarray(values, np.float32) / np.asarray(scale, np.float32))
    shifted = steps.astype(np.float64) + zero_point
    return np.clip(shifted, type_.qmin, type_.qmax).astype(type_.value)


def dequantize(
    integers: Integer[np.ndarray, "*shape"],
    scale: Float[np.ndarray, "*#shape"] | float,
    zero_point: Integer[np.ndarray, "*#shape"] | int,
) -> Float[np.ndarray, "*shape"]:
    """``(integers - zero_point) * scale`` in float32."""
    centred = integers.astype(np.int64) - zero_point
    return np.asarray(centred.astype(np.float32) * np.asarray(scale, np.float32))


def symmetric_weight_scales(
    weights: Float[np.ndarray, "..."], axis: int, type_: IntType = IntType.INT8
) -> Float[np.ndarray, " channels"]:
    """One scale per channel of ``axis``, ``max|w| / qmax``; −qmax − 1 is never used.

    A channel that is all zero gets scale 1, as its integers are zero whatever the scale.
    """
    others = tuple(dim for dim in range(weights.ndim) if dim != axis % weights.ndim)
    largest = np.abs(weights).max(axis=others)
    scales = np.maximum(largest / type_.qmax, SMALLEST_SCALE)
    return np.where(largest > 0, scales, 1.0).astype(np.float32)


def _as_float32(scale: float) -> float:
    return float(np.float32(max(scale, SMALLEST_SCALE)))
