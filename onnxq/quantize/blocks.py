"""Blocks of 4-bit weights: a step for each, that is a whole multiple of the step of its channel.

ONNX Runtime leaves an operator float whose weight is dequantized with scales for blocks. Multiples
1…15 of one step are integers again: 4-bit integers times their block's multiplier lie within ±105,
are int8 when a file is loaded, and run as any int8 weight does, while the file holds 4 bits a
weight and 4 a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, UInt8

from onnxq.affine import SMALLEST_SCALE, symmetric_weight_scales
from onnxq.qtypes import IntType
from onnxq.quantize.least_error import least_error_scales

__all__ = ["LEAST_BLOCK", "Blocks", "block_view", "channel_scales", "multiplied"]

LEAST_BLOCK = 8  # below it the multipliers weigh more than they bring
_MOST, _MOST_NARROW = 15, 9  # 4 bits; two weights of ±63 times 255 fit into int16
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the step with which 15 times it is the widest block's
_GRID = IntType.INT4.qmax


@dataclass(frozen=True)
class Blocks:
    """``multipliers`` broadcast to ``view``, the shape that a weight has with its blocks apart."""

    view: tuple[int, ...]
    multipliers: UInt8[np.ndarray, "..."]

    @property
    def size(self) -> int:
        """Weights in a block."""
        return self.view[next(dim for dim in (1, 2) if self.multipliers.shape[dim] == 1)]

    def spread(self, shape: Sequence[int]) -> UInt8[np.ndarray, "..."]:
        """The multiplier of each weight."""
        return np.broadcast_to(self.multipliers, self.view).reshape(shape)


def block_view(shape: Sequence[int], axis: int | None, size: int) -> tuple[int, ...] | None:
    """``(channels, blocks, block)``, or ``(blocks, block, channels)`` where the channels are the
    last of two axes; None for a weight that cannot be cut so.

    A block is a run of what one output channel sums up, as it lies in memory: of input channels,
    for a kernel of more than one pixel of channels and pixels. It is as long as the largest divisor
    of that sum's length within ``size``, and never shorter than 8.
    """
    if axis is None or (axis != 0 and (axis, len(shape)) != (1, 2)):
        return None
    summed = int(np.prod(shape, dtype=np.int64)) // shape[axis]
    fits = [each for each in range(LEAST_BLOCK, min(size, summed - 1) + 1) if summed % each == 0]
    if not fits:
        return None
    block = fits[-1]
    if axis == 0:
        return (shape[0], summed // block, block)
    return (summed // block, block, shape[1])


def channel_scales(
    weight: Float[np.ndarray, "..."], axis: int, view: tuple[int, ...], *, narrow: bool = False
) -> Float[np.ndarray, " channels"]:
    """For each channel, of five steps the one whose best multiples lose least, squared.

    The largest is a 15th (a 9th if ``narrow``) of the step of least error of the channel's widest
    block. A channel that is all zero gets 1.
    """
    apart = _apart(weight, axis, view)
    rows = apart.reshape(-1, apart.shape[2])
    plain = symmetric_weight_scales(rows, 0, IntType.INT4)
    found = least_error_scales(rows, plain, IntType.INT4)
    found = np.where(np.abs(rows).max(1) > 0, found, 0).reshape(apart.shape[:2])
    most = _MOST_NARROW if narrow else _MOST
    widest = np.maximum(found.max(1) / most, SMALLEST_SCALE).astype(np.float32)
    best, least = widest, np.full(len(widest), np.inf)
    for share in _SHARES:
        tried = np.maximum(widest * np.float32(share), np.float32(SMALLEST_SCALE))
        errors = _best(apart, tried, most)[1].sum(1)
        best, least = np.where(errors < least, tried, best), np.minimum(errors, least)
    return np.where(found.max(1) > 0, best, 1).astype(np.float32)


def multiplied(
    weight: Float[np.ndarray, "..."],
    axis: int,
    view: tuple[int, ...],
    scales: Float[np.ndarray, " channels"],
    *,
    narrow: bool = False,
) -> Blocks:
    """The multiplier of each block, 1…15 (1…9 if ``narrow``), that loses least, squared."""
    found, _ = _best(_apart(weight, axis, view), scales, _MOST_NARROW if narrow else _MOST)
    return Blocks(view, found[:, :, np.newaxis] if axis == 0 else found.T[:, np.newaxis, :])


def _apart(
    weight: Float[np.ndarray, "..."], axis: int, view: tuple[int, ...]
) -> Float[np.ndarray, "channels blocks block"]:
    cut = weight.reshape(view)
    return np.ascontiguousarray(cut if axis == 0 else np.moveaxis(cut, 2, 0))


def _best(
    apart: Float[np.ndarray, "channels blocks block"],
    scales: Float[np.ndarray, " channels"],
    most: int,
) -> tuple[UInt8[np.ndarray, "channels blocks"], Float64[np.ndarray, "channels blocks"]]:
    """For each block the multiplier that loses least, and what it loses."""
    best = np.ones(apart.shape[:2], np.uint8)
    least = np.full(apart.shape[:2], np.inf)
    for multiplier in range(1, most + 1):
        steps = (scales * np.float32(multiplier))[:, np.newaxis, np.newaxis]
        lost = np.clip(np.rint(apart / steps), -_GRID, _GRID) * steps - apart
        errors = np.einsum("cbk,cbk->cb", lost, lost, dtype=np.float64)
        best = np.where(errors < least, np.uint8(multiplier), best)
        least = np.minimum(errors, least)
    return best, least
