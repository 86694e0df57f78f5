"""Integers for a row of weights, chosen together: coordinate descent on a quadratic error."""

import numpy as np
from jaxtyping import Float64, Int64

from onnxq.pair_sums import SAFE_WEIGHT

__all__ = ["least_error_rounding", "plain_rounding"]

_PAIR_STEPS = 2 * SAFE_WEIGHT  # that two weights of one sign may have together
_WORTH = 1e-9  # of what a step costs by itself: less is noise of the arithmetic


def least_error_rounding(
    rows: Float64[np.ndarray, "channels k"],
    scales: Float64[np.ndarray, "channels #k"],
    weighing: Float64[np.ndarray, "k k"],
    most: int,
    partners: Int64[np.ndarray, " k"] | None = None,
) -> Float64[np.ndarray, "channels k"]:
    """Integers q of −most…most with a small (s·q − w)ᵀ H (s·q − w) in every row; s is the step of
    the row, or of each weight.

    From plain rounding on, the one integer whose change by one step helps a row most is changed
    until none helps: coordinate descent, which ends in a minimum that no single step leaves. Never
    worse than where it starts. H is symmetric and positive definite. With ``partners`` (for each of
    k the one that it is summed with in 16 bits, −1 for none) two of one sign have 128 together.
    """
    integers = plain_rounding(rows, scales, most, partners)
    diagonal = np.diag(weighing).copy()
    scales = np.broadcast_to(scales, rows.shape)
    slopes = (integers * scales - rows) @ weighing
    active = np.arange(len(rows))
    while len(active):
        s = scales[active]
        now, slope = integers[active], slopes[active]
        # a step of d = ±1 changes the loss by s·(2·d·slope + s·diagonal)
        direction = np.where(slope > 0, -1.0, 1.0)
        gains = s * (2 * np.abs(slope) - s * diagonal)
        moved = now + direction
        gains[np.abs(moved) > np.minimum(most, _room(now, moved, partners))] = -np.inf
        best = gains.argmax(1)
        places = np.arange(len(active))
        helps = gains[places, best] > _WORTH * s[places, best] ** 2 * diagonal[best]
        active, best = active[helps], best[helps]
        change = direction[places[helps], best]
        integers[active, best] += change
        slopes[active] += (change * scales[active, best])[:, np.newaxis] * weighing[best]
    return integers


def _room(
    now: Float64[np.ndarray, "channels k"],
    moved: Float64[np.ndarray, "channels k"],
    partners: Int64[np.ndarray, " k"] | None,
) -> Float64[np.ndarray, "channels k"] | float:
    """How large each of ``moved`` may be beside its partner of ``now``."""
    if partners is None:
        return np.inf
    beside = np.where(partners >= 0, now[:, partners], 0.0)
    return np.where(moved * beside > 0, _PAIR_STEPS - np.abs(beside), np.inf)


def plain_rounding(
    rows: Float64[np.ndarray, "channels k"],
    scales: Float64[np.ndarray, "channels #k"],
    most: int,
    partners: Int64[np.ndarray, " k"] | None = None,
) -> Float64[np.ndarray, "channels k"]:
    """Rounded half to even; pairs of one sign that have too many steps give up half of them."""
    steps = np.asarray(np.clip(np.rint(rows / scales), -most, most))
    if partners is None:
        return steps
    first = np.flatnonzero(partners > np.arange(len(partners)))
    one, two = steps[:, first], steps[:, partners[first]]
    excess = np.where(one * two > 0, np.maximum(np.abs(one + two) - _PAIR_STEPS, 0), 0)
    steps[:, first] -= np.sign(one) * np.floor(excess / 2)
    steps[:, partners[first]] -= np.sign(two) * np.ceil(excess / 2)
    return steps
