"""Windows that slide over the spatial axes: their pads, and how many there are.

Source: the shape rules of Conv, MaxPool and AveragePool in the ONNX operator specification.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call

__all__ = ["AUTO_PADS", "Windows", "padded", "taken", "windows_of"]

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True)
class Windows:
    """Per spatial axis: size, step and spread of a window, pads, and the number of windows."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    counts: tuple[int, ...]

    def fit(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """What has to be added at the end so that the windows cover it exactly; may be negative."""
        return tuple(
            (count - 1) * stride + (k - 1) * d + 1 - size - before
            for count, stride, k, d, size, before in zip(
                self.counts, self.strides, self.kernel, self.dilations, sizes, self.before,
                strict=True,
            )
        )  # fmt: skip


def windows_of(call: Call, sizes: Sequence[int], kernel: Sequence[int]) -> Windows:
    """The windows of a node over spatial ``sizes``. Raises ModelError for an unknown auto_pad."""
    rank = len(sizes)
    strides = tuple(call.get("strides") or [1] * rank)
    dilations = tuple(call.get("dilations") or [1] * rank)
    auto_pad = call.only("auto_pad", "NOTSET", AUTO_PADS)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = list(call.get("pads") or [0] * 2 * rank)
    if auto_pad != "NOTSET":
        pads = [0] * 2 * rank
    if auto_pad.startswith("SAME"):
        for i, (size, stride, span) in enumerate(zip(sizes, strides, spans, strict=True)):
            total = max((-(-size // stride) - 1) * stride + span - size, 0)
            small, large = total // 2, total - total // 2
            upper = auto_pad == "SAME_UPPER"
            pads[i], pads[i + rank] = (small, large) if upper else (large, small)
    before, after = tuple(pads[:rank]), tuple(pads[rank:])
    counts = []
    for i, (size, stride, span) in enumerate(zip(sizes, strides, spans, strict=True)):
        room = size + before[i] + after[i] - span
        count = room // stride + 1
        if call.get("ceil_mode", 0) and auto_pad == "NOTSET":
            count = -(-room // stride) + 1
            count -= (count - 1) * stride >= size + before[i]  # would begin in the end's pad
        counts.append(count)
    return Windows(tuple(kernel), strides, dilations, before, after, tuple(counts))


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0) -> Tensor:
    """``x`` with its last axes padded; negative numbers cut."""
    around = [n for pair in zip(before[::-1], after[::-1], strict=True) for n in pair]
    return torch.nn.functional.pad(x, around, value=value) if any(around) else x


def taken(x: Tensor, windows: Windows) -> Tensor:
    """Every window of an ``x`` padded to fit: (n, c, counts ..., kernel ...)."""
    for i, count in enumerate(windows.counts):
        starts = torch.arange(count, device=x.device).reshape(-1, 1) * windows.strides[i]
        steps = torch.arange(windows.kernel[i], device=x.device) * windows.dilations[i]
        places = starts + steps
        x = torch.index_select(x, 2 + i, places.reshape(-1))
        x = x.reshape(x.shape[: 2 + i] + places.shape + x.shape[3 + i :]).movedim(3 + i, -1)
    return x
