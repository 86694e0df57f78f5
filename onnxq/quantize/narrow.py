"""Weight scales with which no sum of pairs leaves int16 on x86 processors without VNNI."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Float

from onnxq.affine import powers_of_two_above, quantize
from onnxq.pair_sums import SAFE_WEIGHT, at_risk, has_pair_sums, reduction_rows
from onnxq.qtypes import IntType

__all__ = ["narrowed_scales"]

_SAFE_SUM = 2 * SAFE_WEIGHT  # steps that two weights of one sign may have together
_TRIES = 16


def narrowed_scales(
    node: ir.Node,
    weight: Float[np.ndarray, "..."],
    scales: Float[np.ndarray, " channels"],
    axis: int | None,
    *,
    power_of_two: bool = False,
) -> Float[np.ndarray, " channels"]:
    """``scales`` of the node's int8 weight, larger where a channel could saturate.

    Such a channel gets the smallest of 17 scales with which no pair of its weights can leave int16,
    whatever the uint8 activations: where two weights of one sign add up to S, they lie between
    S / 129 and S / 127, where rounding leaves at most 128 steps; none is so large that all weights
    would lie within ±64. With one scale for the whole weight (``axis`` None) all channels decide
    together. With ``power_of_two`` each is rounded up to one. A node that does not sum in pairs
    keeps its scales.
    """
    if not has_pair_sums(node):
        return scales
    rows = reduction_rows(node, weight)
    rows = rows[np.newaxis] if axis is None else rows[:, np.newaxis]
    together = _largest_sums(rows)
    last = np.minimum(together / (_SAFE_SUM - 1), np.abs(rows).max((1, 2)) / SAFE_WEIGHT)
    first = np.minimum(together / (_SAFE_SUM + 1), last)
    found = scales.astype(np.float32)
    risky = _risky(rows, found)
    for step in range(_TRIES + 1 if risky.any() else 0):
        wider = np.maximum(first + (last - first) * (step / _TRIES), scales)
        wider = powers_of_two_above(wider) if power_of_two else wider
        found[risky] = wider[risky]
        risky[risky] = _risky(rows[risky], found[risky])
    return found


def _largest_sums(rows: Float[np.ndarray, "channels rows k"]) -> Float[np.ndarray, " channels"]:
    """Largest magnitude of two neighbouring weights of one sign together."""
    padded = np.zeros((*rows.shape[:2], rows.shape[2] + rows.shape[2] % 2))
    padded[..., : rows.shape[2]] = rows
    sides = (np.maximum(padded, 0), np.maximum(-padded, 0))
    sums = [(side[..., ::2] + side[..., 1::2]).max((1, 2)) for side in sides]
    return np.asarray(np.maximum(*sums))


def _risky(
    rows: Float[np.ndarray, "channels rows k"], scales: Float[np.ndarray, " channels"]
) -> Bool[np.ndarray, " channels"]:
    integers = quantize(rows, scales[:, np.newaxis, np.newaxis], 0, IntType.INT8)
    risky = at_risk(integers.reshape(-1, rows.shape[2]))
    return np.asarray(risky.reshape(rows.shape[:2]).any(1))
