"""Operators that pick, put and pad elements by index."""

import numpy as np
import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, integers, operator

_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _counted(indices: Tensor, size: int) -> Tensor:
    """Indices from the end (negative) as indices from the beginning."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather")
def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.dim()
    flat = _counted(indices, x.shape[axis]).reshape(-1).to(x.device)
    picked = torch.index_select(x, axis, flat)
    return picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@operator("GatherElements")
def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return torch.gather(x, axis, _counted(indices, x.shape[axis]))


def _linear(indices: Tensor, sizes: list[int]) -> Tensor:
    """Tuples of indices (last axis) as places in an array of these sizes laid out in a row."""
    place = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, size in enumerate(sizes):
        place = place * size + _counted(indices[..., i], size)
    return place


@operator("GatherND")
def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    batch, depth = call.get("batch_dims", 0), indices.shape[-1]
    sizes = list(x.shape[batch : batch + depth])
    rest = x.shape[batch + depth :]
    groups = int(np.prod(x.shape[:batch]))
    flat = x.reshape(groups, int(np.prod(sizes)), *rest)
    places = _linear(indices, sizes).reshape(groups, -1)
    rows = torch.arange(groups, device=x.device).reshape(-1, 1)
    return flat[rows, places].reshape(indices.shape[:-1] + rest)


@operator("ScatterND")
def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    reduction = call.only("reduction", "none", ("none", *_REDUCTIONS))
    depth = indices.shape[-1]
    sizes, rest = list(x.shape[:depth]), x.shape[depth:]
    width = int(np.prod(rest))
    flat = x.reshape(int(np.prod(sizes)), width)
    places = _linear(indices, sizes).reshape(-1, 1).expand(-1, width)
    return _scattered(flat, 0, places, (updates.reshape(-1, width), reduction)).reshape(x.shape)


@operator("ScatterElements")
def _scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    reduction = call.only("reduction", "none", ("none", *_REDUCTIONS))
    return _scattered(x, axis, _counted(indices, x.shape[axis]), (updates, reduction))


def _scattered(x: Tensor, axis: int, places: Tensor, updates: tuple[Tensor, str]) -> Tensor:
    values, reduction = updates
    if reduction == "none":
        return torch.scatter(x, axis, places, values)
    return torch.scatter_reduce(x, axis, places, values, _REDUCTIONS[reduction])


@operator("Slice")
def _slice(
    call: Call,
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    """As Python slices; an end far before the beginning means all that is left."""
    first, last = integers(starts), integers(ends)
    along = list(range(len(first))) if axes is None else integers(axes)
    stride = [1] * len(first) if steps is None else integers(steps)
    for axis, start, end, step in zip(along, first, last, stride, strict=True):
        size = x.shape[axis]
        low, high = (0, size) if step > 0 else (-1, size - 1)
        begin = min(max(start + size if start < 0 else start, low, 0), high)
        stop = min(max(end + size if end < 0 else end, low), high + (step < 0))
        if step == 1:
            x = x.narrow(axis, begin, max(stop - begin, 0))
        else:
            chosen = torch.arange(size)[np.arange(begin, stop, step)].to(x.device)
            x = torch.index_select(x, axis, chosen)
    return x


@operator("Pad")
def _pad(
    call: Call,
    x: Tensor,
    pads: Tensor,
    value: Tensor | None = None,
    axes: Tensor | None = None,
) -> Tensor:
    """Negative pads cut. The axes are an input since opset 18."""
    mode = call.only("mode", "constant", ("constant", "reflect", "edge", "wrap"))
    amounts = integers(pads)
    along = list(range(x.dim())) if axes is None else [a % x.dim() for a in integers(axes)]
    pairs = zip(along, amounts[: len(along)], amounts[len(along) :], strict=True)
    if mode != "constant":
        for axis, before, after in pairs:
            index = np.arange(x.shape[axis])[max(-before, 0) :]
            index = index[: len(index) + min(after, 0)]
            index = np.pad(index, (max(before, 0), max(after, 0)), mode=mode)  # type: ignore[call-overload]  # a word of the attribute
            x = torch.index_select(x, axis, torch.from_numpy(index).to(x.device))
        return x
    around = [0, 0] * x.dim()
    for axis, before, after in pairs:
        place = 2 * (x.dim() - 1 - axis)
        around[place : place + 2] = [before, after]
    filler = 0 if value is None else value.reshape(()).item()
    if x.dtype == torch.bool:
        return torch.nn.functional.pad(x.byte(), around, value=filler).bool()
    return torch.nn.functional.pad(x, around, value=filler)


@operator("NonZero")
def _non_zero(call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x.reshape(1) if x.dim() == 0 else x).T


@operator("Compress")
def _compress(call: Call, x: Tensor, condition: Tensor) -> Tensor:
    axis = call.get("axis")
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return torch.index_select(x, axis, torch.nonzero(condition).reshape(-1))


@operator("OneHot")
def _one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    """An index out of -depth .. depth - 1 gives no one at all."""
    count = int(depth.reshape(()).item())
    axis = call.get("axis", -1)
    axis = axis % (indices.dim() + 1)
    places = torch.arange(count, device=indices.device)
    places = places.reshape([-1 if i == axis else 1 for i in range(indices.dim() + 1)])
    return torch.where(_counted(indices, count).unsqueeze(axis) == places, values[1], values[0])


@operator("ReverseSequence")
def _reverse_sequence(call: Call, x: Tensor, lengths: Tensor) -> Tensor:
    batch, time = call.get("batch_axis", 1), call.get("time_axis", 0)
    steps = torch.arange(x.shape[time], device=x.device).reshape(-1, 1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)  # time x batch
    places = places if time < batch else places.T
    shape = [x.shape[i] if i in (batch, time) else 1 for i in range(x.dim())]
    return torch.gather(x, time, places.reshape(shape).expand(x.shape))
