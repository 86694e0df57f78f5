"""Samples on their way into a graph: which are taken, and one at a time."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int, Shaped
from onnxruntime.quantization import CalibrationDataReader

from onnxq.artifacts import SampleChoice
from onnxq.errors import DataError, LeakageError
from onnxq.recipe import Stratify
from onnxq.samples import Samples

__all__ = [
    "SampleReader",
    "choose",
    "describe",
    "refuse_overlap",
]

Array = Shaped[np.ndarray, "..."]


class SampleReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """``onnxruntime.quantization``'s reader over samples: one sample a call, None at the end."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.rewind()

    def rewind(self) -> None:
        """Start over."""
        self._rows = self._samples.rows()

    def __len__(self) -> int:
        return len(self._samples)

    def number(self, index: int) -> int:
        """The place of the sample in its source."""
        return self._samples.number(index)

    def get_next(self) -> dict[str, Array] | None:
        """Inputs of the next sample, with a batch axis of 1."""
        return next(self._rows, None)


def choose(
    samples: Samples, count: int, seed: int, stratify: Stratify
) -> tuple[Int[np.ndarray, " count"], str, tuple[str, ...]]:
    """Draw ``count`` samples without repeating one: indices, the plan in words, and notes.

    Cells are label bins, within them groups. The bins take turns, and within a bin its groups take
    turns, until enough are drawn; what is drawn from a cell is random by ``seed``, and so is the
    order of the result. Raises DataError if there are too few samples or what the plan needs is
    not known of them.
    """
    if len(samples) == 0:
        raise DataError("holds no sample", where=samples.name, do="give at least one")
    if len(samples) < count:
        raise DataError(
            f"holds {len(samples)} samples, {count} were asked for",
            where=samples.name,
            do=f"give more data, or ask for {len(samples)} (`samples:` or --samples)",
        )
    random = np.random.default_rng(seed)
    bins, bin_notes = _label_bins(samples, stratify.label_edges)
    groups = _group_numbers(samples) if stratify.by_group else np.zeros(len(samples), np.int64)
    taken = _round_robin(random.permutation(len(samples)), bins, groups)[:count]
    words = [
        word
        for word, on in (("label bin", stratify.label_edges), ("group", stratify.by_group))
        if on
    ]
    plan = f"stratified by {' and '.join(words)}, shuffled" if words else "random"
    return random.permutation(taken), plan, bin_notes


def _label_bins(
    samples: Samples, edges: Sequence[float]
) -> tuple[Int[np.ndarray, " n"], tuple[str, ...]]:
    if not edges:
        return np.zeros(len(samples), np.int64), ()
    if samples.labels is None:
        raise DataError(
            "has no labels to stratify by",
            where=samples.name,
            do="put `labels` beside the inputs, or leave out `label_edges`",
        )
    bins = np.digitize(samples.labels, edges)
    notes = tuple(
        f"no calibration sample has a label in [{low:g}, {high:g})"
        for number, (low, high) in enumerate(pairwise(edges), start=1)
        if not np.any(bins == number)
    )
    return bins, notes


def _group_numbers(samples: Samples) -> Int[np.ndarray, " n"]:
    if samples.groups is None:
        raise DataError(
            "has no groups to stratify by",
            where=samples.name,
            do="put `groups` beside the inputs, or set `by_group: false`",
        )
    return np.unique(samples.groups, return_inverse=True)[1]


def _round_robin(
    order: Int[np.ndarray, " n"], bins: Int[np.ndarray, " n"], groups: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " n"]:
    """``order`` rearranged so that bins, and groups within a bin, take turns."""
    turn_in_cell = _running_number(list(zip(bins[order], groups[order], strict=True)))
    by_cell = order[np.argsort(turn_in_cell, kind="stable")]
    turn_in_bin = _running_number(list(bins[by_cell]))
    return by_cell[np.argsort(turn_in_bin, kind="stable")]


def _running_number(keys: Sequence[object]) -> Int[np.ndarray, " n"]:
    """How many times each key has occurred before."""
    seen: dict[object, int] = {}
    numbers = []
    for key in keys:
        numbers.append(seen.get(key, 0))
        seen[key] = numbers[-1] + 1
    return np.array(numbers, np.int64)


def describe(samples: Samples, chosen: Samples, plan: "tuple[str, int, Array]") -> SampleChoice:
    """The record of a choice: ``plan`` is its words, its seed and the indices."""
    words, seed, indices = plan
    labels = None if chosen.labels is None else chosen.labels.astype(np.float64)
    return SampleChoice(
        source=samples.name,
        plan=words,
        seed=seed,
        asked=len(indices),
        indices=tuple(int(index) for index in indices),
        digests=chosen.row_digests,
        groups=() if chosen.groups is None else tuple(map(str, np.unique(chosen.groups))),
        label_low=None if labels is None else float(labels.min()),
        label_high=None if labels is None else float(labels.max()),
        label_mean=None if labels is None else float(labels.mean()),
        made_up=samples.made_up,
        notes=samples.notes,
    )


def refuse_overlap(chosen: SampleChoice, evaluation: Samples) -> None:
    """Raise LeakageError if calibration and evaluation share a group or a sample's content."""
    groups = () if evaluation.groups is None else map(str, np.unique(evaluation.groups))
    shared = sorted(set(chosen.groups) & set(groups))
    if shared:
        raise LeakageError(
            f"calibration and evaluation share {len(shared)} group(s): {', '.join(shared[:5])}",
            where=f"{chosen.source} / {evaluation.name}",
            do="split by group, so that the result is judged on people or files never seen",
        )
    places = {digest: index for index, digest in enumerate(evaluation.row_digests)}
    for index, digest in zip(chosen.indices, chosen.digests, strict=True):
        if digest in places:
            raise LeakageError(
                f"calibration sample {index} is evaluation sample {places[digest]}, byte for byte",
                where=f"{chosen.source} / {evaluation.name}",
                do="take the samples for calibration out of the evaluation set",
            )
