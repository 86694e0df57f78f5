"""Weight scales with the least squared error of the weights themselves, by search."""

import numpy as np
from jaxtyping import Float, Float64

from onnxq.qtypes import IntType

__all__ = ["least_error_scales", "rows_of", "squared_errors"]

_SMALLEST = {8: 0.5, 4: 0.3}  # of what holds the largest weight, by bits
_CANDIDATES, _FINER = 65, 16
_REFITS = 3


def least_error_scales(
    rows: Float[np.ndarray, "channels k"],
    scales: Float[np.ndarray, " channels"],
    type_: IntType = IntType.INT8,
    *,
    power_of_two: bool = False,
) -> Float[np.ndarray, " channels"]:
    """For each channel the scale s with the least Σ (w − s·clip(round(w/s), −qmax, qmax))².

    Of 65 scales from half of ``scales`` (0.3 of them for int4) to ``scales`` the best; of 32 around
    it the best; then fitted to its own integers q = clip(round(w/s)) in closed form,
    s = Σ w·q / Σ q², as long as that helps. Never worse than ``scales``. With ``power_of_two`` it
    is ``scales`` or half of it.
    """
    smallest = 0.5 if power_of_two else _SMALLEST[type_.bits]
    shares = (1.0, smallest) if power_of_two else np.linspace(1.0, smallest, _CANDIDATES)
    best, least = scales.astype(np.float32), squared_errors(rows, scales, type_)
    for share in shares:
        best, least = _better(rows, best, least, scales * np.float32(share), type_)
    if power_of_two:
        return best
    first, step = best, (1 - smallest) / (_CANDIDATES - 1) / _FINER
    for offset in (*range(-_FINER, 0), *range(1, _FINER + 1)):
        tried = np.clip(first + scales * (offset * step), scales * smallest, scales)
        best, least = _better(rows, best, least, tried, type_)
    for _ in range(_REFITS):
        steps = _steps(rows, best, type_)
        squares = np.square(steps).sum(1)
        fitted = np.where(squares > 0, (rows * steps).sum(1) / np.maximum(squares, 1), best)
        fitted = np.clip(fitted, scales * smallest, scales)
        best, least = _better(rows, best, least, fitted, type_)
    return best


def squared_errors(
    rows: Float[np.ndarray, "channels k"], scales: Float[np.ndarray, " channels"], type_: IntType
) -> Float64[np.ndarray, " channels"]:
    """For each channel Σ (w − s·q)² of the integers q that ``type_`` has with that scale."""
    lost = _steps(rows, scales, type_)
    lost *= scales[:, np.newaxis]
    lost -= rows
    return np.asarray(np.einsum("ck,ck->c", lost, lost, dtype=np.float64))


def rows_of(weight: Float[np.ndarray, "..."], axis: int | None) -> Float[np.ndarray, "channels k"]:
    """A weight with its channels in front; all of it as one where it has one scale (None)."""
    if axis is None:
        return weight.reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _better(
    rows: Float[np.ndarray, "channels k"],
    best: Float[np.ndarray, " channels"],
    least: Float[np.ndarray, " channels"],
    tried: Float[np.ndarray, " channels"],
    type_: IntType,
) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    tried = tried.astype(np.float32)
    errors = squared_errors(rows, tried, type_)
    wins = errors < least
    return np.where(wins, tried, best), np.where(wins, errors, least)


def _steps(
    rows: Float[np.ndarray, "channels k"], scales: Float[np.ndarray, " channels"], type_: IntType
) -> Float[np.ndarray, "channels k"]:
    steps = rows / scales.astype(np.float32)[:, np.newaxis]
    np.rint(steps, out=steps)
    return np.asarray(np.clip(steps, -type_.qmax, type_.qmax, out=steps))
