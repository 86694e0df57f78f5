"""Resize: every axis by itself, by picking (nearest) or by a matrix of weights (linear, cubic).

Source: the ONNX operator specification, Resize 13, 18 and 19; antialiasing as described there, by
stretching the filter where an axis shrinks.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, integers, operator

_TRANSFORMATIONS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)
_NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
_POLICIES = ("stretch", "not_larger", "not_smaller")


@dataclass(frozen=True)
class _Axis:
    """One axis: its size, the new one, the scale between them, and the part that is looked at."""

    size: int
    new: int
    scale: float
    start: float
    end: float


@operator("Resize")
def _resize(
    call: Call,
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
) -> Tensor:
    mode = call.only("mode", "nearest", ("nearest", "linear", "cubic"))
    outside = torch.zeros((), dtype=torch.bool, device=x.device)
    for number, axis in _axes(call, x, (roi, scales, sizes)).items():
        places = _coordinates(call, axis)
        if call.get("coordinate_transformation_mode") == "tf_crop_and_resize":
            beyond = torch.from_numpy((places < 0) | (places > axis.size - 1)).to(x.device)
            outside = outside | beyond.reshape([-1] + [1] * (x.dim() - 1 - number))
        if mode == "nearest":
            chosen = torch.from_numpy(_nearest(call, places, axis.size)).to(x.device)
            x = torch.index_select(x, number, chosen)
        elif axis.size != axis.new or not np.array_equal(places, np.arange(axis.new)):
            weights = torch.from_numpy(_weights(call, mode, axis, places)).to(x.device, x.dtype)
            x = torch.movedim(torch.movedim(x, number, -1) @ weights.T, -1, number)
    if bool(outside.any()):
        x = torch.where(outside, call.get("extrapolation_value", 0.0), x)
    return x


def _axes(
    call: Call, x: Tensor, given: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> dict[int, _Axis]:
    """The axes that are resized; the others keep their size."""
    roi, scales, sizes = given
    numbers = [n % x.dim() for n in call.get("axes") or range(x.dim())]
    olds = [x.shape[n] for n in numbers]
    if sizes is not None and sizes.numel():
        news = integers(sizes)
        factors = [new / old for new, old in zip(news, olds, strict=True)]
        policy = call.only("keep_aspect_ratio_policy", "stretch", _POLICIES)
        if policy != "stretch":
            factor = min(factors) if policy == "not_larger" else max(factors)
            factors = [factor] * len(factors)
            news = [int(np.floor(factor * old + 0.5)) for old in olds]
    elif scales is not None and scales.numel():
        factors = [float(s) for s in scales.tolist()]
        news = [int(np.floor(old * s)) for old, s in zip(olds, factors, strict=True)]
    else:
        raise call.refused("Resize without scales and without sizes")
    parts = [0.0] * len(numbers) + [1.0] * len(numbers)
    if call.get("coordinate_transformation_mode") == "tf_crop_and_resize" and roi is not None:
        parts = [float(r) for r in roi.tolist()]
    ends = parts[len(numbers) :]
    return {
        n: _Axis(olds[i], news[i], factors[i], parts[i], ends[i]) for i, n in enumerate(numbers)
    }


def _coordinates(call: Call, axis: _Axis) -> Float[np.ndarray, " new"]:
    """Where in the input each element of the output lies."""
    mode = call.only("coordinate_transformation_mode", "half_pixel", _TRANSFORMATIONS)
    x = np.arange(axis.new, dtype=np.float64)
    length = axis.scale * axis.size  # before it is rounded to a whole number
    if mode == "asymmetric":
        return x / axis.scale
    if mode == "align_corners":
        return x * 0 if length == 1 else x * (axis.size - 1) / (length - 1)
    if mode == "tf_crop_and_resize":
        last, part = axis.size - 1, axis.end - axis.start
        if length == 1:
            return x * 0 + 0.5 * (axis.start + axis.end) * last
        return axis.start * last + x * part * last / (length - 1)
    if mode == "pytorch_half_pixel" and axis.new == 1:
        return x * 0
    places = (x + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        places = places + axis.size / 2 * (1 - axis.new / length)
    return places


def _nearest(call: Call, places: Float[np.ndarray, " new"], size: int) -> np.ndarray:
    mode = call.only("nearest_mode", "round_prefer_floor", _NEAREST)
    if mode == "round_prefer_floor":
        chosen = np.ceil(places - 0.5)
    elif mode == "round_prefer_ceil":
        chosen = np.floor(places + 0.5)
    else:
        chosen = np.floor(places) if mode == "floor" else np.ceil(places)
    return np.clip(chosen, 0, size - 1).astype(np.int64)


def _weights(
    call: Call, mode: str, axis: _Axis, places: Float[np.ndarray, " new"]
) -> Float[np.ndarray, "new size"]:
    """What each element of the input counts in each of the output; elements beyond its ends are
    the last ones, or with exclude_outside do not count.
    """
    stretch = min(axis.scale, 1.0) if call.get("antialias", 0) else 1.0
    reach = int(np.ceil((1 if mode == "linear" else 2) / stretch))
    near = np.floor(places)[:, None].astype(np.int64) + np.arange(-reach, reach + 2)
    distance = np.abs(near - places[:, None]) * stretch
    if mode == "linear":
        counts = np.maximum(1 - distance, 0)
    else:
        counts = _cubic(distance, call.get("cubic_coeff_a", -0.75))
    if call.get("exclude_outside", 0):
        counts = np.where((near < 0) | (near >= axis.size), 0, counts)
    counts = counts / counts.sum(1, keepdims=True)
    weights = np.zeros((axis.new, axis.size))
    rows = np.repeat(np.arange(axis.new), near.shape[1])
    np.add.at(weights, (rows, np.clip(near, 0, axis.size - 1).ravel()), counts.ravel())
    return weights


def _cubic(distance: Float[np.ndarray, "new near"], a: float) -> Float[np.ndarray, "new near"]:
    """Keys 1981, "Cubic convolution interpolation", equation 15, with ``a`` for -1/2."""
    inner = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    outer = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, inner, np.where(distance < 2, outer, 0))
