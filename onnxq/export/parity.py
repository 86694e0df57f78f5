"""Parity: two graphs on the same inputs, and how far their outputs lie apart."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from onnxq.artifacts import ParityCheck, ValueFacts
from onnxq.errors import DataError, ParityError, nearest
from onnxq.recipe import Tolerance
from onnxq.samples import Samples

__all__ = ["compare_outputs", "input_sets", "require"]

Array = Shaped[np.ndarray, "..."]
Row = Mapping[str, Array]
_RANDOM_ROWS, _REAL_ROWS = 4, 8
_FREE_BATCH = 3  # rows of the one batch that shows whether a free batch is free
_UNDECLARED = (-1.0, 1.0)


def input_sets(
    inputs: Sequence[ValueFacts], samples: Samples | None, seed: int
) -> dict[str, list[dict[str, Array]]]:
    """Rows to compare two graphs on: ``random``, ``edges`` and, if ``samples`` are given, ``real``.

    Random values are uniform in the declared domain (undeclared: [-1, 1]); with a free batch one
    row holds three samples. Edges are the domain's two ends, its middle, zero, and a checkerboard
    of both ends. Real rows are spread evenly over the samples. Raises DataError if samples do not
    fit the inputs.
    """
    rng = np.random.default_rng(seed)
    sizes = [1] * _RANDOM_ROWS
    if any(value.shape and isinstance(value.shape[0], str) for value in inputs):
        sizes[-1] = _FREE_BATCH
    sets = {
        "random": [{value.name: _random(value, n, rng) for value in inputs} for n in sizes],
        "edges": [
            {value.name: _edge(value, kind) for value in inputs}
            for kind in ("low", "high", "middle", "zero", "checkerboard")
        ],
    }
    if samples is not None and len(samples) and not samples.made_up:
        count = min(_REAL_ROWS, len(samples))
        chosen = np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))
        sets["real"] = [_real(samples, int(index), inputs) for index in chosen]
    return sets


def _shape(value: ValueFacts, batch: int) -> tuple[int, ...]:
    """The shape with ``batch`` for its free first dimension, and 1 for any other free one."""
    return tuple(
        dim if isinstance(dim, int) else batch if axis == 0 else 1
        for axis, dim in enumerate(value.shape)
    )


def _random(value: ValueFacts, batch: int, rng: np.random.Generator) -> Array:
    low, high = _domain(value)
    kind = np.dtype(value.dtype)
    if kind.kind in "iub":
        return rng.integers(int(low), int(high) + 1, _shape(value, batch)).astype(kind)
    return rng.uniform(low, high, _shape(value, batch)).astype(kind)


def _domain(value: ValueFacts) -> tuple[float, float]:
    if value.domain is not None:
        return value.domain
    return _UNDECLARED if np.dtype(value.dtype).kind == "f" else (0.0, 1.0)


def _edge(value: ValueFacts, kind: str) -> Array:
    low, high = _domain(value)
    shape = _shape(value, 1)
    if kind == "checkerboard":
        odd = np.indices(shape).sum(axis=0) % 2 if shape else np.zeros(())
        filled = np.where(odd == 1, high, low)
    else:
        middle = (low + high) / 2
        zero = min(max(0.0, low), high)
        filled = np.full(shape, {"low": low, "high": high, "middle": middle, "zero": zero}[kind])
    return filled.astype(np.dtype(value.dtype))


def _real(samples: Samples, index: int, inputs: Sequence[ValueFacts]) -> dict[str, Array]:
    """One sample as the graph wants it: every input, in its order and type."""
    row = samples.row(index)
    missing = [value.name for value in inputs if value.name not in row]
    if missing:
        raise DataError(
            f"have no values for the input `{missing[0]}`; {nearest(missing[0], row)}",
            where=samples.name,
        )
    for value in inputs:
        given = row[value.name].shape
        if given != _shape(value, 1):
            raise DataError(
                f"`{value.name}` has shape {list(given)} with its batch axis; "
                f"the graph takes {list(value.shape)}",
                where=f"{samples.name}, sample {index}",
            )
    return {value.name: row[value.name].astype(np.dtype(value.dtype)) for value in inputs}


def compare_outputs(
    hop: str,
    inputs: str,
    reference: Sequence[Row],
    other: Sequence[Row],
    tolerance: Tolerance,
) -> ParityCheck:
    """Largest differences over the rows, output by output.

    A hop passes if every output keeps the absolute limit or the relative one; the numbers are the
    worst over the outputs. Where one side is NaN or infinite and the other is not, they are
    infinitely far apart.
    """
    measured = [
        _measure([row[name] for row in reference], [row[name] for row in other])
        for name in reference[0]
    ]
    return ParityCheck(
        hop=hop,
        inputs=inputs,
        samples=len(reference),
        max_absolute=max(absolute for absolute, _, _ in measured),
        max_relative=max(relative for _, relative, _ in measured),
        cosine=min(cosine for _, _, cosine in measured),
        passed=all(
            absolute <= tolerance.absolute or relative <= tolerance.relative
            for absolute, relative, _ in measured
        ),
    )


def _measure(reference: Sequence[Array], other: Sequence[Array]) -> tuple[float, float, float]:
    """Largest absolute difference, the same over the largest magnitude, and the cosine."""
    if any(a.shape != b.shape for a, b in zip(reference, other, strict=True)):
        return float("inf"), float("inf"), 0.0
    ours = np.concatenate([array.astype(np.float64).ravel() for array in reference])
    theirs = np.concatenate([array.astype(np.float64).ravel() for array in other])
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(ours - theirs))
    absolute = float(np.nan_to_num(difference, nan=np.inf, posinf=np.inf).max(initial=0.0))
    finite = np.isfinite(ours) & np.isfinite(theirs)
    magnitude = float(np.abs(ours[finite]).max(initial=0.0))
    relative = absolute / magnitude if magnitude else (0.0 if absolute == 0 else float("inf"))
    return absolute, relative, _cosine(ours[finite], theirs[finite])


def _cosine(a: Shaped[np.ndarray, " n"], b: Shaped[np.ndarray, " n"]) -> float:
    if np.array_equal(a, b):
        return 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0


def require(check: ParityCheck, tolerance: Tolerance, culprit: str = "") -> ParityCheck:
    """The check itself if it passed. Raises ParityError with its numbers, and the culprit."""
    if check.passed:
        return check
    by = f" after the step “{culprit}”" if culprit else ""
    raise ParityError(
        f"outputs differ on the {check.inputs} inputs{by}: "
        f"{check.max_absolute:.3g} absolute (limit {tolerance.absolute:g}) and "
        f"{check.max_relative:.3g} relative (limit {tolerance.relative:g}), "
        f"cosine {check.cosine:.6f}",
        where=check.hop,
        do="the graph computes something else than what it was made from, and must not be used",
    )
