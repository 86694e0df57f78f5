"""Weight scales with which no sum of pairs leaves int16 on x86 processors without VNNI."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Float

from onnxq.affine import powers_of_two_above, quantize
from onnxq.pair_sums import SAFE_WEIGHT, at_risk, has_pair_sums, reduction_rows
from onnxq.qtypes import IntType

__all__ = ["narrowed_scales"]

_STEPS = 32  # between the scale as it is and the one with which weights end at ±64


def narrowed_scales(
    node: ir.Node,
    weight: Float[np.ndarray, "..."],
    scales: Float[np.ndarray, " channels"],
    axis: int | None,
    *,
    power_of_two: bool = False,
) -> Float[np.ndarray, " channels"]:
    """``scales`` of the node's int8 weight, larger where a channel could saturate.

    A channel gets the first of 32 evenly spaced scales with which no pair of its weights can leave
    int16 for any uint8 activations; the last, with weights of ±64 at most, always does. With one
    scale for the whole weight (``axis`` None) all channels decide together. A node that does not
    sum in pairs keeps its scales. With ``power_of_two`` each is rounded up to one.
    """
    if not has_pair_sums(node):
        return scales
    others = None if axis is None else tuple(d for d in range(weight.ndim) if d != axis)
    largest = np.abs(weight).max(axis=others, keepdims=axis is None).reshape(-1)
    widest = np.maximum(largest.astype(np.float64) / SAFE_WEIGHT, scales)
    found = scales.astype(np.float32)
    for step in range(1, _STEPS + 1):
        risky = _risky(node, weight, found, axis)
        if not risky.any():
            break
        wider = scales + (widest - scales) * (step / _STEPS)
        wider = powers_of_two_above(wider) if power_of_two else wider
        found = np.where(risky, wider, found).astype(np.float32)
    return found


def _risky(
    node: ir.Node,
    weight: Float[np.ndarray, "..."],
    scales: Float[np.ndarray, " channels"],
    axis: int | None,
) -> Bool[np.ndarray, " channels"]:
    shape = [1] * weight.ndim
    if axis is not None:
        shape[axis] = len(scales)
    integers = quantize(weight, scales.reshape(shape), 0, IntType.INT8)
    risky = at_risk(reduction_rows(node, integers))
    return np.asarray(risky.any(keepdims=True)) if axis is None else risky
