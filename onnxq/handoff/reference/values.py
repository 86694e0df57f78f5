"""The values of the integer reference: reals that are known as integers, and plain arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from onnxq.errors import ModelError

__all__ = [
    "Array",
    "Steps",
    "Term",
    "Value",
    "dequantized",
    "one_scale",
    "one_term",
    "real",
    "sum_of",
    "term_of",
]

Array = Shaped[np.ndarray, "..."]
SAME_SCALE = 2.0**-20  # float32 products of scales differ by less, relatively


@dataclass(frozen=True)
class Term:
    """The reals ``numbers * scale``. The scale has the rank of the numbers and broadcasts to them:
    every dimension is 1 for one scale, or runs over the channels of one axis."""

    numbers: Int64[np.ndarray, "..."]
    scale: Float64[np.ndarray, "..."]

    def real(self) -> Float64[np.ndarray, "..."]:
        """The reals themselves; exact, as long as the integers have fewer than 2**29."""
        return np.asarray(self.numbers * self.scale)

    def varies_along(self, *axes: int) -> bool:
        """True if the scale is not the same along these axes."""
        return any(self.scale.shape[axis] != 1 for axis in axes)


def term_of(numbers: np.ndarray | np.generic, scale: np.ndarray | np.generic) -> Term:
    """A term of what numpy computed; it makes a number, not an array, of two arrays of rank 0."""
    return Term(np.asarray(numbers), np.asarray(scale))


@dataclass(frozen=True)
class Steps:
    """A sum of terms, cut to ``[low, high]`` when it is quantized.

    The cut waits because a quantization is monotone: cutting the real value before it or the
    integer behind it gives the same, whatever the rounding.
    """

    terms: tuple[Term, ...]
    low: float = -math.inf
    high: float = math.inf

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return np.broadcast_shapes(*(term.numbers.shape for term in self.terms))

    @property
    def is_cut(self) -> bool:
        """True if a bound waits."""
        return self.low > -math.inf or self.high < math.inf

    def cut(self, low: float, high: float) -> "Steps":
        """The value cut to ``[low, high]``. Cutting one term at zero needs no waiting."""
        if not self.is_cut and (low, high) == (0.0, math.inf) and len(self.terms) == 1:
            (term,) = self.terms
            return Steps((term_of(np.maximum(term.numbers, 0), term.scale),))
        bottom = min(max(self.low, low), high)
        return Steps(self.terms, bottom, max(min(self.high, high), bottom))


Value: TypeAlias = Steps | Array


def dequantized(
    integers: Array, scale: Array, zero_point: Array | None, axis: int, block: int = 0
) -> Steps:
    """What DequantizeLinear says, kept as integers: ``integers - zero_point`` of ``scale``.

    ``scale`` and ``zero_point`` hold one number, one a channel of ``axis``, or one a block of
    ``block`` numbers along it. Raises ModelError if their shape fits none of these.
    """
    numbers = integers.astype(np.int64)
    factors = _spread(scale.astype(np.float64), numbers.shape, axis, block)
    if zero_point is not None:
        numbers = numbers - _spread(zero_point.astype(np.int64), numbers.shape, axis, block)
    return Steps((term_of(numbers, factors),))


def _spread(parameter: Array, shape: Sequence[int], axis: int, block: int) -> Array:
    """The parameter with the rank of ``shape``, broadcasting to it."""
    if parameter.size == 1:
        return parameter.reshape((1,) * len(shape))
    if block:
        repeated = np.repeat(parameter, block, axis=axis)
        return np.take(repeated, np.arange(shape[axis]), axis=axis)
    if parameter.size != shape[axis]:
        raise ModelError(
            f"has {parameter.size} scales or zero points for {shape[axis]} channels",
            where="DequantizeLinear",
        )
    rank = len(shape)
    return parameter.reshape([-1 if dim == axis % rank else 1 for dim in range(rank)])


def one_term(value: Value) -> Term | None:
    """The term of a value that is just one, with no bound waiting; else None."""
    if not isinstance(value, Steps) or value.is_cut or len(value.terms) != 1:
        return None
    return value.terms[0]


def one_scale(value: Value) -> Term | None:
    """The term of a value that is one term with a single scale; else None."""
    term = one_term(value)
    return term if term is not None and term.scale.size == 1 else None


def real(value: Value) -> Array:
    """The value as float64; an array of integers or booleans (shapes, indices) as it is."""
    if isinstance(value, Steps):
        total = sum((term.real() for term in value.terms[1:]), start=value.terms[0].real())
        return np.asarray(np.clip(total, value.low, value.high) if value.is_cut else total)
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def sum_of(terms: Sequence[Term]) -> Steps:
    """The sum, in integers where scales are the same but for the rounding of float32.

    A bias has its own scale in the file, which ought to be that of input times weight.
    """
    rank = max(term.numbers.ndim for term in terms)
    kept: list[Term] = []
    for term in (_with_rank(term, rank) for term in terms):
        for place, other in enumerate(kept):
            if _same(term.scale, other.scale):
                kept[place] = term_of(other.numbers + term.numbers, other.scale)
                break
        else:
            kept.append(term)
    return Steps(tuple(kept))


def _with_rank(term: Term, rank: int) -> Term:
    more = (1,) * (rank - term.numbers.ndim)
    return term_of(
        term.numbers.reshape(more + term.numbers.shape), term.scale.reshape(more + term.scale.shape)
    )


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and bool(np.all(np.abs(one - other) <= SAME_SCALE * other))
