"""Pools and means: comparisons and sums of integers; a mean is a sum whose scale is divided."""

import numpy as np
import onnx

from onnxq.handoff.reference.values import Array, Steps, Term, Value, one_term, real, term_of
from onnxq.handoff.reference.windows import Window, attribute, window_of

__all__ = ["average_pool", "global_average_pool", "max_pool", "reduce_mean"]


def max_pool(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """MaxPool of any rank. A cut that waits goes on waiting, as the larger of two survives it."""
    data = inputs[0]
    if isinstance(data, Steps) and len(data.terms) == 1:
        (term,) = data.terms
        if not term.varies_along(*range(2, term.numbers.ndim)):
            numbers = _largest(node, term.numbers, np.iinfo(np.int64).min)
            return Steps((term_of(numbers, term.scale),), data.low, data.high)
    array = real(_given(data))
    return _largest(node, array, -np.inf if array.dtype.kind == "f" else np.iinfo(array.dtype).min)


def average_pool(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """AveragePool of any rank: sums in integers, over the number of elements of each window."""
    data = _given(inputs[0])
    term = one_term(data)
    if term is None or term.varies_along(*range(2, term.numbers.ndim)):
        array = real(data)
        window = _window(node, array)
        return np.asarray(_summed(array, window) / _counts(node, array, window))
    window = _window(node, term.numbers)
    counts = _counts(node, term.numbers, window)
    if counts.min() == counts.max():
        counts = counts.reshape(-1)[:1].reshape((1,) * counts.ndim)
    return Steps((term_of(_summed(term.numbers, window), term.scale / counts),))


def global_average_pool(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The mean over all spatial axes."""
    data = _given(inputs[0])
    term = one_term(data)
    array = real(data) if term is None else term.numbers
    return _mean(data, term, tuple(range(2, array.ndim)), keep=True)


def reduce_mean(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The mean over ``axes``, an attribute (to opset 17) or an input."""
    data = _given(inputs[0])
    axes = attribute(node, "axes", None)
    if len(inputs) > 1 and inputs[1] is not None:
        axes = real(inputs[1]).tolist()
    rank = len(data.shape)
    if not axes and attribute(node, "noop_with_empty_axes", 0):
        return data
    chosen = tuple(sorted(axis % rank for axis in axes)) if axes else tuple(range(rank))
    return _mean(data, one_term(data), chosen, keep=bool(attribute(node, "keepdims", 1)))


def _mean(data: Value, term: Term | None, axes: tuple[int, ...], *, keep: bool) -> Value:
    if term is None or term.varies_along(*axes):
        return np.asarray(real(data).mean(axis=axes, keepdims=keep))
    count = int(np.prod([term.numbers.shape[axis] for axis in axes]))
    scale = term.scale / count
    if not keep:
        scale = np.squeeze(scale, axes)
    return Steps((term_of(np.asarray(term.numbers.sum(axis=axes, keepdims=keep)), scale),))


def _window(node: onnx.NodeProto, data: Array) -> Window:
    return window_of(node, data.shape[2:], tuple(attribute(node, "kernel_shape", ())))


def _padded(data: Array, window: Window, fill: float) -> Array:
    """``fill`` in the pads and in what a last window of ``ceil_mode`` reaches beyond them."""
    missing = window.missing(data.shape[2:])
    sides = zip(window.before, window.after, missing, strict=True)
    pads = [(0, 0), (0, 0), *((before, after + more) for before, after, more in sides)]
    return np.pad(data, pads, constant_values=fill)


def _largest(node: onnx.NodeProto, data: Array, lowest: float) -> Array:
    window = _window(node, data)
    padded = _padded(data, window, lowest)
    regions = [padded[(slice(None), slice(None), *region)] for _, region in window.offsets()]
    return np.asarray(np.maximum.reduce(regions))


def _summed(data: Array, window: Window) -> Array:
    padded = _padded(data, window, 0)
    total = np.zeros((*data.shape[:2], *window.output), data.dtype)
    for _, region in window.offsets():
        total += padded[(slice(None), slice(None), *region)]
    return total


def _counts(node: onnx.NodeProto, data: Array, window: Window) -> Array:
    """Elements of each window that count: (1, 1, …) like the output's spatial shape."""
    ones = np.ones((1, 1, *data.shape[2:]))
    if attribute(node, "count_include_pad", 0):
        pads = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
        ones = np.ones([size + sum(pad) for size, pad in zip(ones.shape, pads, strict=True)])
        window = Window(
            window.kernel, window.strides, window.dilations,
            (0,) * window.rank, (0,) * window.rank, window.output,
        )  # fmt: skip
    return _summed(ones, window)


def _given(value: Value | None) -> Value:
    if value is None:
        raise ValueError("a pool lacks its data")
    return value
