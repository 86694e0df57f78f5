"""What is known of samples, as cells: label bins or classes, timesteps, groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Int, Shaped

from onnxq.artifacts import SampleChoice
from onnxq.errors import DataError
from onnxq.samples import Samples

__all__ = [
    "Facet",
    "Kind",
    "facets_of",
    "group_facet",
    "joined_bins",
    "label_facet",
    "plural",
    "some",
    "timestep_facet",
    "word_of",
]

Kind = Literal["label", "timestep", "group"]
Values = Shaped[np.ndarray, " n"]
_MOST_VALUES = 10  # of float labels that are told apart one by one; more are put in as many bins
_MOST_STEPS = 50  # of timesteps, likewise
_MOST_LISTED = 8  # cells named in one sentence


@dataclass(frozen=True)
class Facet:
    """One thing that is known of every sample, and the cell that puts it in.

    ``names`` are the cells in order, also such as hold none of the samples; ``cells`` is the number
    of the cell of every sample. ``edges`` are those of bins, none where every value is a cell of
    its own. The lowest and the highest bin are open, and are there only if a sample is in them.
    """

    kind: Kind
    names: tuple[str, ...]
    cells: Int[np.ndarray, " n"]
    edges: tuple[float, ...] = ()

    @property
    def word(self) -> str:
        """What a person calls one of the cells."""
        return word_of(self.kind, has_edges=bool(self.edges))

    @property
    def held(self) -> Int[np.ndarray, " cells"]:
        """How many samples are in each cell."""
        return np.bincount(self.cells, minlength=len(self.names))

    def counted(self, indices: Int[np.ndarray, " m"]) -> Int[np.ndarray, " cells"]:
        """How many of the samples at ``indices`` are in each cell."""
        return np.bincount(self.cells[indices], minlength=len(self.names))


def word_of(kind: Kind, *, has_edges: bool) -> str:
    """What a person calls a cell of this kind: a bin, or what every value is."""
    if has_edges:
        return f"{kind} bin"
    return "label class" if kind == "label" else kind


def plural(word: str, count: int) -> str:
    """``word`` for ``count`` of it."""
    if count == 1:
        return word
    return f"{word}es" if word.endswith("s") else f"{word}s"


def some(names: Sequence[str]) -> str:
    """The first eight of them, and how many more there are."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more


def label_facet(samples: Samples, edges: tuple[float, ...] = (), most: int = _MOST_VALUES) -> Facet:
    """Bins of the labels between ``edges``; without them, every class is a cell, and float labels
    of more than ``most`` values are put into as many bins of equal width.

    Raises DataError if the labels are not known, are no finite numbers, or are text and have edges.
    """
    labels = _known(samples, samples.labels, "labels", "leave out `label_edges` and `by_label`")
    if edges or np.issubdtype(labels.dtype, np.floating):
        return _of_numbers("label", _finite(samples, labels, "label"), edges, most)
    return _of_values("label", labels)


def timestep_facet(
    samples: Samples, edges: tuple[float, ...] = (), most: int = _MOST_STEPS
) -> Facet:
    """Every timestep a cell if there are at most ``most``, else as many bins of equal width; bins
    between ``edges`` if they are given. Raises DataError if the timesteps are not known."""
    steps = _known(samples, samples.timesteps, "timesteps", "set `by_timestep: false`")
    return _of_numbers("timestep", _finite(samples, steps, "timestep"), edges, most)


def group_facet(samples: Samples) -> Facet:
    """Every group a cell. Raises DataError if the groups are not known."""
    return _of_values("group", _known(samples, samples.groups, "groups", "set `by_group: false`"))


def facets_of(
    samples: Samples, edges: Mapping[str, tuple[float, ...]] | None = None
) -> tuple[Facet, ...]:
    """All that is known of ``samples``. ``edges`` are those of bins, by kind: what is not among
    them has a cell for every value; unless it is given, bins are made where values are many.

    Labels or timesteps that are not all finite, or that are text where edges are given, are no help
    in telling samples apart and are left out.
    """
    labels, steps = ((edges or {}).get(kind, ()) for kind in ("label", "timestep"))
    values, many = (_MOST_VALUES, _MOST_STEPS) if edges is None else (len(samples),) * 2
    found = []
    if _is_usable(samples.labels, labels):
        found.append(label_facet(samples, labels, values))
    if _is_usable(samples.timesteps, steps):
        found.append(timestep_facet(samples, steps, many))
    if samples.groups is not None:
        found.append(group_facet(samples))
    return tuple(found)


def _is_usable(values: Values | None, edges: tuple[float, ...]) -> bool:
    if values is None:
        return False
    if not np.issubdtype(values.dtype, np.number):
        return not edges
    return bool(np.isfinite(values).all())


def joined_bins(
    choices: Sequence[SampleChoice],
) -> tuple[dict[str, int], dict[str, tuple[float, ...]]]:
    """``bins`` and ``edges`` of several choices as one.

    A kind is left out if some choice knows nothing of it, or has other bins.
    """
    edges = dict(choices[0].edges)
    bins: dict[str, int] = {}
    for kind in ("label", "timestep", "group"):
        own = [
            {key: n for key, n in choice.bins.items() if key.startswith(f"{kind} ")}
            for choice in choices
        ]
        if all(own) and len({choice.edges.get(kind) for choice in choices}) == 1:
            for part in own:
                bins |= {key: bins.get(key, 0) + number for key, number in part.items()}
        else:
            edges.pop(kind, None)
    return bins, edges


def _known(samples: Samples, values: Values | None, word: str, otherwise: str) -> Values:
    if values is None:
        raise DataError(
            f"has no {word} to stratify by",
            where=samples.name,
            do=f"put `{word}` beside the inputs, or {otherwise}",
        )
    return values


def _finite(samples: Samples, values: Values, word: str) -> Values:
    if not np.issubdtype(values.dtype, np.number):
        raise DataError(
            f"its {word}s are no numbers ({values.dtype}), and edges are given",
            where=samples.name,
            do="set `by_label: true` in place of `label_edges`",
        )
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise DataError(
            f"the {word} is {values[bad[0]]} ({len(bad)} not finite)",
            where=f"{samples.name}, sample {samples.number(int(bad[0]))}",
            do=f"remove the sample, or mend its {word}",
        )
    return values


def _of_values(kind: Kind, values: Values) -> Facet:
    found, cells = np.unique(values, return_inverse=True)
    return Facet(kind, tuple(_name(value) for value in found), cells)


def _name(value: object) -> str:
    """A whole number is written the same whatever its type."""
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    return str(int(value)) if whole else str(value)  # type: ignore[call-overload]


def _of_numbers(kind: Kind, values: Values, edges: tuple[float, ...], most: int) -> Facet:
    if not edges:
        found = np.unique(values)
        if len(found) <= most:
            return _of_values(kind, values)
        edges = tuple(np.linspace(float(found[0]), float(found[-1]), most + 1)[1:-1].tolist())
    numbers = np.digitize(values, edges)
    cells = [
        number
        for number in range(len(edges) + 1)
        if 0 < number < len(edges) or np.any(numbers == number)
    ]
    names = _bin_names(edges)
    return Facet(
        kind,
        tuple(names[number] for number in cells),
        np.searchsorted(np.array(cells, np.int64), numbers),
        edges,
    )


def _bin_names(edges: tuple[float, ...]) -> list[str]:
    """``< a``, ``[a, b)``, …, ``≥ z``, with as many digits as tell the edges apart."""
    written = next(
        words
        for digits in (4, 6, 9, 17)
        for words in [[f"{edge:.{digits}g}" for edge in edges]]
        if len(set(words)) == len(edges)
    )
    inside = [f"[{low}, {high})" for low, high in pairwise(written)]
    return [f"< {written[0]}", *inside, f"≥ {written[-1]}"]
