"""Add, Sub, Mul, Relu, Clip and Concat of integers."""

import math

import numpy as np
import onnx

from onnxq.handoff.reference.values import Steps, Term, Value, one_term, real, sum_of, term_of
from onnxq.handoff.reference.windows import attribute

__all__ = ["add", "clip", "concat", "mul", "relu", "sub"]


def add(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The sum of two values: two terms, or one where both have the same scale."""
    return _plus(inputs, sign=1)


def sub(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The difference of two values, as ``add``."""
    return _plus(inputs, sign=-1)


def _plus(inputs: list[Value | None], sign: int) -> Value:
    left, right = _pair(inputs)
    if not (isinstance(left, Steps) and isinstance(right, Steps)) or left.is_cut or right.is_cut:
        return np.asarray(real(left) + sign * real(right))
    shape = np.broadcast_shapes(left.shape, right.shape)
    turned = [term_of(sign * term.numbers, term.scale) for term in right.terms]
    return sum_of([_broadcast(term, shape) for term in (*left.terms, *turned)])


def _broadcast(term: Term, shape: tuple[int, ...]) -> Term:
    more = (1,) * (len(shape) - term.scale.ndim)
    return term_of(
        np.broadcast_to(term.numbers, shape), term.scale.reshape(more + term.scale.shape)
    )


def mul(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The product of two values: integers multiplied, scales multiplied."""
    left, right = _pair(inputs)
    one, two = one_term(left), one_term(right)
    if one is None or two is None:
        return np.asarray(real(left) * real(right))
    rank = max(one.numbers.ndim, two.numbers.ndim)
    shape = np.broadcast_shapes(one.numbers.shape, two.numbers.shape)
    scales = [
        term.scale.reshape((1,) * (rank - term.scale.ndim) + term.scale.shape)
        for term in (one, two)
    ]
    numbers = np.broadcast_to(one.numbers * two.numbers, shape)
    return Steps((term_of(numbers, scales[0] * scales[1]),))


def relu(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """Cut at zero: of one term at once, of a sum when it is quantized."""
    return _cut(inputs[0], 0.0, math.inf)


def clip(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """Cut to constant bounds when it is quantized."""
    bounds = [attribute(node, "min", -math.inf), attribute(node, "max", math.inf)]
    for place, value in enumerate(inputs[1:3]):
        if value is not None:
            bounds[place] = float(real(value).reshape(-1)[0])
    return _cut(inputs[0], *bounds)


def _cut(value: Value | None, low: float, high: float) -> Value:
    if isinstance(value, Steps):
        return value.cut(low, high)
    if value is None:
        raise ValueError("an operator lacks its input")
    return np.clip(value, low, high).astype(value.dtype)


def concat(node: onnx.NodeProto, inputs: list[Value | None]) -> Value:
    """The values side by side, each part with its own scale."""
    values = [value for value in inputs if value is not None]
    terms = [term for value in values if (term := one_term(value)) is not None]
    axis = int(attribute(node, "axis", 0))
    if len(terms) < len(values):
        return np.concatenate([real(value) for value in values], axis)
    numbers = np.concatenate([term.numbers for term in terms], axis)
    first = terms[0].scale
    if all(term.scale.size == 1 and term.scale.item() == first.item() for term in terms):
        return Steps((term_of(numbers, first),))
    shape = np.broadcast_shapes(*(_without(term.scale.shape, axis) for term in terms))
    parts = []
    for term in terms:
        wanted = list(shape)
        wanted[axis] = term.numbers.shape[axis]
        parts.append(np.broadcast_to(term.scale, wanted))
    return Steps((term_of(numbers, np.concatenate(parts, axis)),))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    left = list(shape)
    left[axis] = 1
    return tuple(left)


def _pair(inputs: list[Value | None]) -> tuple[Value, Value]:
    left, right = inputs
    if left is None or right is None:
        raise ValueError("an operator lacks one of its two inputs")
    return left, right
