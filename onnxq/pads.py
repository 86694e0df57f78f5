"""What a Conv or pool finds beside its data: pads as they are given, or as ``auto_pad`` says."""

import math
from collections.abc import Sequence

__all__ = ["pads_of"]

Pads = tuple[tuple[int, ...], tuple[int, ...]]


def pads_of(
    auto_pad: str,
    given: Sequence[int],
    sizes: Sequence[int],
    reach: Sequence[int],
    strides: Sequence[int],
) -> Pads:
    """Pads before and behind each spatial axis.

    ``given`` is the attribute ``pads``, all before and then all behind, empty for none; ``sizes``
    are those of the data, of which SAME_UPPER and SAME_LOWER alone ask; ``reach`` is how many
    elements a window spans. Source: ONNX operator specification, Conv, MaxPool and AveragePool.
    """
    axes = len(reach)
    if auto_pad not in {"SAME_UPPER", "SAME_LOWER"}:
        pads = (0,) * (2 * axes) if auto_pad == "VALID" or not given else tuple(given)
        return pads[:axes], pads[axes:]
    total = [
        max((math.ceil(size / stride) - 1) * stride + length - size, 0)
        for size, stride, length in zip(sizes, strides, reach, strict=True)
    ]
    small = tuple(pad // 2 for pad in total)
    large = tuple(pad - half for pad, half in zip(total, small, strict=True))
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
