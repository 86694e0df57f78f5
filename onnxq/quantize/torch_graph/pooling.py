"""Pooling over windows, and over everything."""

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.quantize.torch_graph.registry import Call, operator
from onnxq.quantize.torch_graph.windows import Windows, padded, taken, windows_of

__all__ = ["window_elements"]

_LARGEST = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_LARGEST_WITH_PLACES = {
    1: functional.max_pool1d_with_indices,
    2: functional.max_pool2d_with_indices,
    3: functional.max_pool3d_with_indices,
}
_MEAN = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


def _windows(call: Call, x: Tensor) -> Windows:
    if x.dim() - 2 not in _MEAN:
        raise call.refused(f"pooling over {x.dim() - 2} dimensions; torch has 1 to 3")
    return windows_of(call, x.shape[2:], call.get("kernel_shape"))


@operator("MaxPool")
def _max_pool(call: Call, x: Tensor) -> Tensor | tuple[Tensor, ...]:
    """8-bit integers are compared in float32, which holds them all."""
    windows, rank = _windows(call, x), x.dim() - 2
    values = x if x.is_floating_point() else x.float()
    filled = padded(values, windows.before, windows.fit(x.shape[2:]), -torch.inf)
    kernel, strides, dilations = windows.kernel, windows.strides, windows.dilations
    if len(call.output_types) == 1:
        largest: Tensor = _LARGEST[rank](filled, kernel, strides, [0] * rank, dilations)
        return largest.to(x.dtype)
    largest, places = _LARGEST_WITH_PLACES[rank](filled, kernel, strides, [0] * rank, dilations)
    return largest.to(x.dtype), _places(call, (x, filled), places, windows)


def _places(call: Call, tensors: tuple[Tensor, Tensor], places: Tensor, windows: Windows) -> Tensor:
    """Places in the padded picture as places in the whole tensor, row or column major."""
    x, filled = tensors
    coordinates = []
    for size, before in zip(filled.shape[:1:-1], windows.before[::-1], strict=True):
        coordinates.append(places % size - before)
        places = places // size
    sizes = list(x.shape[2:])
    axes = list(zip(sizes, coordinates[::-1], strict=True))
    inner = torch.zeros_like(places)
    for size, coordinate in axes[::-1] if call.get("storage_order", 0) else axes:
        inner = inner * size + coordinate
    pictures = torch.arange(x.shape[0] * x.shape[1], device=x.device)
    pictures = pictures.reshape(*x.shape[:2], *[1] * len(sizes))
    return inner + pictures * (x[0, 0].numel())


@operator("AveragePool")
def _average_pool(call: Call, x: Tensor) -> Tensor:
    """Pads count with count_include_pad; what ceil_mode adds behind them never does."""
    windows, rank = _windows(call, x), x.dim() - 2
    filled = padded(x, windows.before, windows.fit(x.shape[2:]))
    every = 1
    for k in windows.kernel:
        every *= k
    if set(windows.dilations) == {1}:
        mean: Tensor = _MEAN[rank](filled, windows.kernel, windows.strides)
    else:
        mean = taken(filled, windows).flatten(-rank).sum(-1) / every
    counted = _counted(windows, list(x.shape[2:]), with_pads=bool(call.get("count_include_pad", 0)))
    if bool((counted == every).all()):
        return mean
    return mean * (every / counted).to(device=x.device, dtype=x.dtype)


def window_elements(call: Call, x: Tensor) -> tuple[Tensor, Tensor]:
    """What each window of an AveragePool sees, in order, and how many of it count.

    (n, c, counts ..., elements), zero in the pads, and (counts ...) of the type of ``x``.
    """
    windows, rank = _windows(call, x), x.dim() - 2
    filled = padded(x, windows.before, windows.fit(x.shape[2:]))
    with_pads = bool(call.get("count_include_pad", 0))
    counted = _counted(windows, list(x.shape[2:]), with_pads=with_pads)
    return taken(filled, windows).flatten(-rank), counted.to(device=x.device, dtype=x.dtype)


def _counted(windows: Windows, sizes: list[int], *, with_pads: bool) -> Tensor:
    """How many elements each window averages over: (counts ...)."""
    total = torch.ones(1, dtype=torch.float64)
    for i, count in enumerate(windows.counts):
        starts = torch.arange(count).reshape(-1, 1) * windows.strides[i] - windows.before[i]
        places = starts + torch.arange(windows.kernel[i]) * windows.dilations[i]
        low = -windows.before[i] if with_pads else 0
        high = sizes[i] + (windows.after[i] if with_pads else 0)
        inside = ((places >= low) & (places < high)).sum(1).double()
        total = total.unsqueeze(-1) * inside
    return total[0]


@operator("LpPool")
def _lp_pool(call: Call, x: Tensor) -> Tensor:
    windows, rank = _windows(call, x), x.dim() - 2
    filled = padded(x, windows.before, windows.fit(x.shape[2:]))
    p = call.get("p", 2)
    total = (taken(filled, windows).flatten(-rank).abs() ** p).sum(-1)
    return torch.pow(total, 1 / p)


@operator("GlobalAveragePool")
def _global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(list(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def _global_lp_pool(call: Call, x: Tensor) -> Tensor:
    axes = list(range(2, x.dim()))
    norm: Tensor = torch.linalg.vector_norm(x, call.get("p", 2), axes, keepdim=True)
    return norm
