"""Where the window of a convolution or pool lies: strides, dilations, pads, of any rank."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import onnx

from onnxq.pads import pads_of

__all__ = ["Window", "attribute", "window_of"]


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute of ``node`` as Python value, text as str."""
    for entry in node.attribute:
        if entry.name == name:
            value = onnx.helper.get_attribute_value(entry)
            return value.decode() if isinstance(value, bytes) else value
    return default


@dataclass(frozen=True)
class Window:
    """A window over spatial axes. ``before`` and ``after`` are pads; ``output`` is how many places
    it takes along each axis."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    output: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of spatial axes."""
        return len(self.kernel)

    def offsets(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Every element of the kernel, with the slices of the padded data that it meets."""
        for place in product(*(range(size) for size in self.kernel)):
            starts = [at * step for at, step in zip(place, self.dilations, strict=True)]
            yield (
                place,
                tuple(
                    slice(start, start + stride * (count - 1) + 1, stride)
                    for start, stride, count in zip(starts, self.strides, self.output, strict=True)
                ),
            )

    def missing(self, data: Sequence[int]) -> tuple[int, ...]:
        """How far the last window reaches beyond data and pads (``ceil_mode``), along each axis."""
        needed = [
            (count - 1) * stride + (size - 1) * dilation + 1
            for count, stride, size, dilation in zip(
                self.output, self.strides, self.kernel, self.dilations, strict=True
            )
        ]
        padded = map(sum, zip(data, self.before, self.after, strict=True))
        return tuple(max(need - have, 0) for need, have in zip(needed, padded, strict=True))


def window_of(node: onnx.NodeProto, data: Sequence[int], kernel: Sequence[int]) -> Window:
    """The window of a Conv or pool ``node`` over spatial dimensions ``data``.

    Source: ONNX operator specification, Conv, MaxPool and AveragePool (auto_pad, ceil_mode: a
    window that would begin in the pads behind the data is left out).
    """
    rank = len(kernel)
    strides = tuple(attribute(node, "strides", (1,) * rank))
    dilations = tuple(attribute(node, "dilations", (1,) * rank))
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    auto, given = attribute(node, "auto_pad", "NOTSET"), attribute(node, "pads", ())
    before, after = pads_of(auto, given, data, reach, strides)
    whole = math.ceil if attribute(node, "ceil_mode", 0) else math.floor
    output = []
    for axis in range(rank):
        free = data[axis] + before[axis] + after[axis] - reach[axis]
        count = whole(free / strides[axis]) + 1
        if (count - 1) * strides[axis] >= data[axis] + before[axis]:
            count -= 1
        output.append(count)
    return Window(tuple(kernel), strides, dilations, before, after, tuple(output))
