"""Conv, ConvTranspose, Gemm and MatMul: products summed in integers.

An accumulator is an int64 array. Sums of products are taken by float64 matrix products wherever
no sum can reach 2**53, which makes every partial sum an exact integer; else by int64 ones.
The same kernels take float64 arrays, for an operator whose inputs are not all integers.
"""

import numpy as np
import onnx

from onnxq.handoff.reference.values import (
    Array,
    Steps,
    Term,
    Value,
    one_scale,
    one_term,
    real,
    sum_of,
    term_of,
)
from onnxq.handoff.reference.windows import Window, attribute, window_of

__all__ = ["conv", "conv_transpose", "gemm", "matmul"]

EXACT = 2.0**53  # float64 holds every integer up to it


def conv(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """Conv of any rank, with groups, dilations, strides and pads.

    In integers if the data has one scale and the weights one or one an output channel. A bias with
    the scale of input times weight is added in integers, another as a term of its own.
    """
    data, weight, bias = _operands(inputs)
    x, w, b = one_scale(data), one_term(weight), _bias_term(bias)
    if (
        x is None
        or w is None
        or w.varies_along(*range(1, w.numbers.ndim))
        or (bias is not None and b is None)
    ):
        result = convolved(node, real(data), real(weight))
        return result if bias is None else result + _along_channels(real(bias), result.ndim)
    channels = w.scale.reshape((1, -1) + (1,) * (x.numbers.ndim - 2))
    term = term_of(convolved(node, x.numbers, w.numbers), x.scale * channels)
    return Steps((term,)) if b is None else sum_of([term, _channel_term(b, term)])


def conv_transpose(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """ConvTranspose of any rank; in integers as ``conv``, with the output channel on axis 1."""
    data, weight, bias = _operands(inputs)
    x, w, b = one_scale(data), one_term(weight), _bias_term(bias)
    groups = attribute(node, "group", 1)
    others = [axis for axis in range(real(weight).ndim) if axis != 1]
    if x is None or w is None or w.varies_along(*others) or (bias is not None and b is None):
        result = spread(node, real(data), real(weight))
        return result if bias is None else result + _along_channels(real(bias), result.ndim)
    factors = w.scale.reshape(-1)
    channels = np.tile(factors, groups) if factors.size > 1 else factors
    scale = x.scale * channels.reshape((1, -1) + (1,) * (x.numbers.ndim - 2))
    term = term_of(spread(node, x.numbers, w.numbers), scale)
    return Steps((term,)) if b is None else sum_of([term, _channel_term(b, term)])


def gemm(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """``alpha * A' * B' + beta * C``; in integers if A has one scale and B one or one a column."""
    data, weight, bias = _operands(inputs)
    alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
    turned = (attribute(node, "transA", 0), attribute(node, "transB", 0))
    x, w = one_scale(data), one_term(weight)
    c = one_term(bias) if bias is not None else None
    if w is not None and turned[1]:
        w = term_of(w.numbers.T, w.scale.T)
    if x is None or w is None or w.varies_along(0) or (bias is not None and c is None):
        a, b = (
            array.T if turn else array
            for array, turn in zip((real(data), real(weight)), turned, strict=True)
        )
        result = alpha * (a @ b)
        return np.asarray(result if bias is None else result + beta * real(bias))
    left = x.numbers.T if turned[0] else x.numbers
    terms = [term_of(multiplied(left, w.numbers), alpha * x.scale * w.scale)]
    if c is not None:
        terms.append(_gemm_term(c, terms[0], beta))
    return sum_of(terms)


def matmul(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """``A @ B`` of any rank; in integers if no scale changes along the axis that is summed over."""
    a, b = (_given(value) for value in inputs)
    left, right = one_term(a), one_term(b)
    if left is None or right is None or left.numbers.ndim < 2 or right.numbers.ndim < 2:
        return np.asarray(np.matmul(real(a), real(b)))
    if left.varies_along(-1) or right.varies_along(-2):
        return np.asarray(np.matmul(real(a), real(b)))
    return Steps((term_of(multiplied(left.numbers, right.numbers), left.scale * right.scale),))


def convolved(node: onnx.NodeProto, data: Array, weight: Array) -> Array:
    """The sums of products alone: data (N, C, …), weight (M, C/groups, …) → (N, M, …)."""
    if data.dtype.kind != "f" and _is_exact_in_float64(data, weight, weight[0].size):
        floats = convolved(node, data.astype(np.float64), weight.astype(np.float64))
        return floats.astype(np.int64)
    window = window_of(node, data.shape[2:], weight.shape[2:])
    groups = attribute(node, "group", 1)
    pads = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
    padded = np.pad(data, pads)
    batch, channels = data.shape[:2]
    filters = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], *weight.shape[2:])
    total = np.zeros((batch, *filters.shape[:2], int(np.prod(window.output))), data.dtype)
    for place, region in window.offsets():
        seen = padded[(slice(None), slice(None), *region)]
        columns = seen.reshape(batch, groups, channels // groups, -1)
        total += np.matmul(_at(filters, place), columns)
    return total.reshape(batch, weight.shape[0], *window.output)


def spread(node: onnx.NodeProto, data: Array, weight: Array) -> Array:
    """The sums of products of ConvTranspose: data (N, C, …), weight (C, M/groups, …) → (N, M, …).

    Source: ONNX operator specification, ConvTranspose (output_shape, output_padding, auto_pad).
    """
    if data.dtype.kind != "f" and _is_exact_in_float64(data, weight, weight[:, 0].size):
        floats = spread(node, data.astype(np.float64), weight.astype(np.float64))
        return floats.astype(np.int64)
    window, pads, output = _spreading(node, data.shape[2:], weight.shape[2:])
    groups = attribute(node, "group", 1)
    batch, channels = data.shape[:2]
    reach = tuple(size + max(extra, 0) for size, extra in zip(output, pads, strict=True))
    room = tuple(
        max(have, (count - 1) * stride + (size - 1) * dilation + 1)
        for have, count, stride, size, dilation in zip(
            reach, window.output, window.strides, window.kernel, window.dilations, strict=True
        )
    )
    filters = weight.reshape(groups, channels // groups, *weight.shape[1:])
    columns = data.reshape(batch, groups, channels // groups, -1)
    total = np.zeros((batch, groups * weight.shape[1], *room), data.dtype)
    for place, region in window.offsets():
        part = np.matmul(np.swapaxes(_at(filters, place), 1, 2), columns)
        shape = (batch, groups * weight.shape[1], *data.shape[2:])
        total[(slice(None), slice(None), *region)] += part.reshape(shape)
    kept = (slice(start, start + size) for start, size in zip(pads, output, strict=True))
    return total[(slice(None), slice(None), *kept)]


def _spreading(
    node: onnx.NodeProto, data: tuple[int, ...], kernel: tuple[int, ...]
) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """Window over the output, pads before it, and the output's spatial shape."""
    rank = len(kernel)
    strides = tuple(attribute(node, "strides", (1,) * rank))
    dilations = tuple(attribute(node, "dilations", (1,) * rank))
    more = attribute(node, "output_padding", (0,) * rank)
    auto, wanted = attribute(node, "auto_pad", "NOTSET"), attribute(node, "output_shape", None)
    full = tuple(
        (size - 1) * stride + (taps - 1) * dilation + 1 + extra
        for size, stride, taps, dilation, extra in zip(
            data, strides, kernel, dilations, more, strict=True
        )
    )
    if auto.startswith("SAME") and wanted is None:
        wanted = [size * stride for size, stride in zip(data, strides, strict=True)]
    if wanted is None:
        pads = (
            tuple(attribute(node, "pads", (0,) * (2 * rank)))
            if auto != "VALID"
            else (0,) * (2 * rank)
        )
        sides = zip(full, pads[:rank], pads[rank:], strict=True)
        output, before = tuple(size - one - two for size, one, two in sides), pads[:rank]
    else:
        output = tuple(wanted)[-rank:]
        total = [max(size - goal, 0) for size, goal in zip(full, output, strict=True)]
        before = tuple(pad // 2 if auto == "SAME_UPPER" else pad - pad // 2 for pad in total)
    window = Window(kernel, strides, dilations, (0,) * rank, (0,) * rank, data)
    return window, before, output


def multiplied(left: Array, right: Array) -> Array:
    """``left @ right``, exact for integers."""
    if left.dtype.kind != "f" and _is_exact_in_float64(left, right, left.shape[-1]):
        product = np.matmul(left.astype(np.float64), right.astype(np.float64))
        return np.asarray(product.astype(np.int64))
    return np.asarray(np.matmul(left, right))


def _is_exact_in_float64(left: Array, right: Array, count: int) -> bool:
    """True if no sum of ``count`` products of their numbers can leave the integers of float64."""
    largest = [float(np.abs(numbers).max(initial=0)) for numbers in (left, right)]
    return largest[0] * largest[1] * count < EXACT


def _operands(inputs: list[Value | None]) -> tuple[Value, Value, Value | None]:
    return _given(inputs[0]), _given(inputs[1]), inputs[2] if len(inputs) > 2 else None


def _given(value: Value | None) -> Value:
    if value is None:
        raise ValueError("an operator lacks an input that it must have")
    return value


def _bias_term(bias: Value | None) -> Term | None:
    return None if bias is None else one_term(bias)


def _at(filters: Array, place: tuple[int, ...]) -> Array:
    """One element of the kernel, of all filters."""
    index: tuple[int | slice, ...] = (slice(None),) * (filters.ndim - len(place)) + place
    return np.asarray(filters[index])


def _along_channels(bias: Array, rank: int) -> Array:
    return bias.reshape((1, -1) + (1,) * (rank - 2))


def _channel_term(bias: Term, like: Term) -> Term:
    """A bias (channels,) as a term of the accumulator's rank, its scale as simple as the other."""
    rank = like.numbers.ndim
    scale = _along_channels(np.broadcast_to(bias.scale, bias.numbers.shape), rank)
    if like.scale.size == 1 and np.ptp(scale) == 0:
        scale = scale[:, :1]
    return term_of(_along_channels(bias.numbers, rank), scale)


def _gemm_term(bias: Term, like: Term, beta: float) -> Term:
    """Gemm's C as a term of the product's shape."""
    scale = beta * np.broadcast_to(bias.scale, bias.numbers.shape)
    scale = scale.reshape((1,) * (2 - scale.ndim) + scale.shape)
    if like.scale.size == 1 and np.ptp(scale) == 0:
        scale = scale[:1, :1]
    elif scale.shape[0] > 1 and np.all(scale == scale[:1]):
        scale = scale[:1]
    return term_of(np.broadcast_to(bias.numbers, like.numbers.shape), scale)
