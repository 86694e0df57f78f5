"""Samples on their way into a graph: which are taken, whether they can be used, one at a time."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Int, Shaped
from onnxruntime.quantization import CalibrationDataReader

from onnxq.artifacts import SampleChoice, ValueFacts
from onnxq.errors import DataError, LeakageError, nearest
from onnxq.recipe import Stratify
from onnxq.samples import Samples

__all__ = [
    "SampleReader",
    "check_samples",
    "choose",
    "describe",
    "made_up_samples",
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


def check_samples(samples: Samples, inputs: Sequence[ValueFacts]) -> None:
    """Raise DataError, naming sample and tensor, unless every sample fits the graph's inputs.

    Checked: names, shape and dtype (once), and for every sample that all values are finite and lie
    in the declared domain.
    """
    if len(samples) == 0:
        raise DataError("holds no sample", where=samples.name, do="give at least one")
    known = {value.name: value for value in inputs}
    for name in samples.inputs:
        if name not in known:
            raise DataError(f"`{name}` is no input; {nearest(name, known)}", where=samples.name)
    for name, value in known.items():
        _check_form(samples, name, value)
    for index, row in enumerate(samples.rows()):
        for name, array in row.items():
            _check_values(array, known[name], f"{samples.name}, sample {index}, input `{name}`")


def _check_form(samples: Samples, name: str, value: ValueFacts) -> None:
    column = samples.inputs.get(name)
    if column is None:
        raise DataError(f"the model's input `{name}` is missing", where=samples.name)
    where = f"{samples.name}, input `{name}`"
    wanted, found = value.shape[1:], column.shape[1:]
    fits = len(wanted) == len(found) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted, found, strict=True)
    )
    if not fits:
        raise DataError(
            f"a sample has shape {list(found)}, the model takes {list(wanted)}",
            where=where,
            do="samples come first in the array, without the model's batch axis",
        )
    if str(column.dtype) != value.dtype:
        raise DataError(
            f"is {column.dtype}, the model takes {value.dtype}",
            where=where,
            do="convert the data; nothing is cast on the quiet",
        )


def _check_values(array: Array, value: ValueFacts, where: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise DataError(
            f"holds {array[tuple(bad)]} at {bad[1:].tolist()} ({(~finite).sum()} not finite)",
            where=where,
            do="remove the sample or mend the preprocessing",
        )
    if value.domain is None:
        return
    low, high = float(array.min()), float(array.max())
    if low < value.domain[0] or high > value.domain[1]:
        raise DataError(
            f"values from {low:g} to {high:g} leave the declared domain {list(value.domain)}",
            where=where,
            do="mend the preprocessing, or declare the true domain under `export: inputs:`",
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


def made_up_samples(inputs: Sequence[ValueFacts], count: int, seed: int) -> Samples:
    """Uniform random numbers in each input's domain ([0, 1] where none is declared).

    Good for smoke tests only: whatever is calibrated on them is stamped and never verified.
    """
    random = np.random.default_rng(seed)
    columns: Mapping[str, Array] = {
        value.name: random.uniform(
            *(value.domain or (0.0, 1.0)),
            (count, *(dim if isinstance(dim, int) else 1 for dim in value.shape[1:])),
        ).astype(value.dtype)
        for value in inputs
    }
    return Samples(name="random numbers", inputs=columns, made_up=True)
