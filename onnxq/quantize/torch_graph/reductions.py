"""Reductions along axes, given by an attribute or by an input."""

from collections.abc import Callable

import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, integers, operator


def _product(x: Tensor, axes: list[int]) -> Tensor:
    for axis in axes:
        x = torch.prod(x, axis, keepdim=True, dtype=x.dtype)
    return x


def _total(x: Tensor, axes: list[int]) -> Tensor:
    return torch.sum(x, axes, keepdim=True, dtype=x.dtype)


def _extreme(x: Tensor, axes: list[int], *, largest: bool) -> Tensor:
    """Of an empty set, the least (most) that the type has."""
    if all(x.shape[axis] for axis in axes):
        return torch.amax(x, axes, keepdim=True) if largest else torch.amin(x, axes, keepdim=True)
    shape = [1 if i in axes else n for i, n in enumerate(x.shape)]
    if x.dtype == torch.bool:
        return torch.full(shape, not largest, device=x.device)
    if x.is_floating_point():
        return torch.full(shape, -torch.inf if largest else torch.inf, dtype=x.dtype).to(x.device)
    limits = torch.iinfo(x.dtype)
    return torch.full(shape, limits.min if largest else limits.max, dtype=x.dtype).to(x.device)


def _mean(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=True)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(_total(x, axes), count, rounding_mode="trunc")


def _root(x: Tensor, axes: list[int]) -> Tensor:
    if x.is_floating_point():
        norm: Tensor = torch.linalg.vector_norm(x, 2, axes, keepdim=True)
        return norm
    return torch.sqrt(_total(x * x, axes).double()).to(x.dtype)


def _of_floats(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x) if x.is_floating_point() else function(x.double()).to(x.dtype)


_REDUCED: dict[str, Callable[[Tensor, list[int]], Tensor]] = {
    "ReduceL1": lambda x, axes: _total(torch.abs(x), axes),
    "ReduceL2": _root,
    "ReduceLogSum": lambda x, axes: _of_floats(torch.log, _total(x, axes)),
    "ReduceLogSumExp": lambda x, axes: _of_floats(
        lambda y: torch.logsumexp(y, axes, keepdim=True), x
    ),
    "ReduceMax": lambda x, axes: _extreme(x, axes, largest=True),
    "ReduceMean": _mean,
    "ReduceMin": lambda x, axes: _extreme(x, axes, largest=False),
    "ReduceProd": _product,
    "ReduceSum": _total,
    "ReduceSumSquare": lambda x, axes: _total(x * x, axes),
}


@operator(*_REDUCED)
def _reduce(call: Call, x: Tensor, given: Tensor | None = None) -> Tensor:
    """Axes are an input of ReduceSum, of the others since opset 18; none mean all, or nothing with
    noop_with_empty_axes, where only what is done to each element remains.
    """
    axes = call.get("axes") if given is None else integers(given)
    if not axes and call.get("noop_with_empty_axes", 0):
        return _REDUCED[call.op_type](x.unsqueeze(-1), [x.dim()]).squeeze(-1)
    axes = sorted({a % x.dim() for a in axes}) if axes else list(range(x.dim()))
    if not axes:  # a scalar
        return _REDUCED[call.op_type](x.reshape(1), [0]).reshape(())
    result = _REDUCED[call.op_type](x, axes)
    if call.get("keepdims", 1):
        return result
    return result.reshape([n for i, n in enumerate(result.shape) if i not in axes])


@operator("ArgMax", "ArgMin")
def _arg(call: Call, x: Tensor) -> Tensor:
    """The first of equals, or the last with select_last_index."""
    axis, keep = call.get("axis", 0), bool(call.get("keepdims", 1))
    function = torch.argmax if call.op_type == "ArgMax" else torch.argmin
    if not call.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    from_the_end: Tensor = function(x.flip(axis), axis, keepdim=keep)
    return torch.sub(x.shape[axis] - 1, from_the_end)


@operator("CumSum")
def _cumsum(call: Call, x: Tensor, axis: Tensor) -> Tensor:
    (along,) = integers(axis)
    reverse = call.get("reverse", 0)
    x = x.flip(along) if reverse else x
    total = torch.cumsum(x, along, dtype=x.dtype)
    if call.get("exclusive", 0):
        first = torch.zeros_like(total.narrow(along, 0, 1))
        total = torch.cat([first, total.narrow(along, 0, x.shape[along] - 1)], along)
    return total.flip(along) if reverse else total


@operator("TopK")
def _top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Of equals the one with the lower index comes first."""
    axis, (count,) = call.get("axis", -1), integers(k)
    largest = bool(call.get("largest", 1))
    values, indices = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, count), indices.narrow(axis, 0, count)
