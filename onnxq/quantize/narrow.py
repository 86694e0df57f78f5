"""Weight scales with which no sum of pairs leaves int16 on x86 processors without VNNI."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Float

from onnxq.affine import powers_of_two_above, quantize
from onnxq.pair_sums import SAFE_WEIGHT, at_risk, has_pair_sums, reduction_rows
from onnxq.qtypes import IntType

__all__ = ["narrowed_scales"]

_SAFE_SUM = 2 * SAFE_WEIGHT  # steps that two weights of one sign may have together
_TRIES, _FURTHEST = 24, 9 / 8


def narrowed_scales(
    node: ir.Node,
    weight: Float[np.ndarray, "..."],
    scales: Float[np.ndarray, " channels"],
    axis: int | None,
    *,
    power_of_two: bool = False,
) -> Float[np.ndarray, " channels"]:
    """``scales`` of the node's int8 weight, larger where a channel could saturate.

    Such a channel gets, of 25 scales, that with the smallest squared error among those with which
    no pair of its weights can leave int16, whatever the uint8 activations. Where two neighbours of
    one sign add up to S, they lie between S / 129 and 9/8 · S / 127 (from S / 127 on, rounding
    leaves at most 128 steps), and end where all weights lie within ±64. With one scale for the
    whole weight (``axis`` None) all channels decide together. With ``power_of_two`` each is rounded
    up to one. A node that does not sum in pairs keeps its scales.
    """
    if not has_pair_sums(node):
        return scales
    rows = reduction_rows(node, weight)
    rows = rows[np.newaxis] if axis is None else rows[:, np.newaxis]
    found = scales.astype(np.float32)
    risky = _evaluated(rows, found)[0]
    rows, least = rows[risky], scales[risky]
    together = _largest_sums(rows)
    last = np.minimum(_FURTHEST * together / (_SAFE_SUM - 1), _largest(rows) / SAFE_WEIGHT)
    first = np.minimum(together / (_SAFE_SUM + 1), last)
    best, smallest = np.zeros(len(rows), np.float32), np.full(len(rows), np.inf)
    for step in range(_TRIES + 1 if len(rows) else 0):
        wider = np.maximum(first + (last - first) * (step / _TRIES), least)
        wider = (powers_of_two_above(wider) if power_of_two else wider).astype(np.float32)
        leaves, errors = _evaluated(rows, wider)
        better = ~leaves & (errors < smallest)
        best[better], smallest[better] = wider[better], errors[better]
    found[risky] = best
    return found


def _largest(rows: Float[np.ndarray, "channels rows k"]) -> Float[np.ndarray, " channels"]:
    return np.asarray(np.abs(rows).max((1, 2), initial=0))


def _largest_sums(rows: Float[np.ndarray, "channels rows k"]) -> Float[np.ndarray, " channels"]:
    """Largest magnitude of two neighbouring weights of one sign together."""
    padded = np.zeros((*rows.shape[:2], rows.shape[2] + rows.shape[2] % 2))
    padded[..., : rows.shape[2]] = rows
    sides = (np.maximum(padded, 0), np.maximum(-padded, 0))
    sums = [(side[..., ::2] + side[..., 1::2]).max((1, 2), initial=0) for side in sides]
    return np.asarray(np.maximum(*sums))


def _evaluated(
    rows: Float[np.ndarray, "channels rows k"], scales: Float[np.ndarray, " channels"]
) -> tuple[Bool[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    """For each channel: whether it can saturate with this scale, and its squared error."""
    spread = scales[:, np.newaxis, np.newaxis]
    integers = quantize(rows, spread, 0, IntType.INT8)
    risky = at_risk(integers.reshape(-1, rows.shape[2])).reshape(rows.shape[:2]).any(1)
    return np.asarray(risky), np.square(integers * spread - rows).sum((1, 2))
