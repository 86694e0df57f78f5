"""Samples: model inputs with labels and groups, read a row at a time and never loaded whole."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError, nearest

__all__ = ["Column", "Samples", "load_samples"]

LABELS, GROUPS = "labels", "groups"
Array = Shaped[np.ndarray, "..."]


@runtime_checkable
class Column(Protocol):
    """One model input of every sample: ``len(column)`` rows, each read when it is asked for.

    NumPy arrays and memory maps are columns as they are.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, *sample_shape)``."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Type of every row."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Array:
        """Row ``index``, of shape ``sample_shape``."""
        ...


@dataclass(frozen=True)
class _Taken:
    """Some rows of another column, in a given order; nothing is copied."""

    column: Column
    indices: Shaped[np.ndarray, " n"]

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.indices), *self.column.shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return self.column.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Array:
        return np.asarray(self.column[int(self.indices[index])])


@dataclass(frozen=True)
class Samples:
    """``n`` samples of a model's inputs, with what is known of each.

    ``inputs`` maps every graph input to a column of ``n`` rows without batch axis; ``labels`` has
    shape ``(n,)``; ``groups`` names what each sample belongs to (subject, file), the unit of splits
    and of confidence intervals. ``notes`` are sentences that a reader of the report must know,
    ``made_up`` says that the values are random numbers and no data. ``fingerprint`` stands for the
    whole content, where whoever made the samples knows a quicker one than reading them all.
    ``numbers`` are the places of samples that were taken out of others, for messages.
    """

    name: str
    inputs: Mapping[str, Column]
    labels: Shaped[np.ndarray, " n"] | None = None
    groups: Shaped[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = ()
    made_up: bool = False
    fingerprint: str | None = None
    numbers: Shaped[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("holds no model input", where=self.name)
        for name, column in self.inputs.items():
            if not column.shape:
                do = "put the samples first: an array of shape (n, …)"
                raise DataError(f"`{name}` is a single number", where=self.name, do=do)
        lengths = {name: len(column) for name, column in self.inputs.items()}
        for name, values in ((LABELS, self.labels), (GROUPS, self.groups)):
            if values is not None:
                if values.ndim != 1:
                    what = f"`{name}` has shape {list(values.shape)}"
                    raise DataError(what, where=self.name, do="give one value for each sample")
                lengths[name] = len(values)
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in lengths.items())
            raise DataError(f"numbers of rows differ: {counts}", where=self.name)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def number(self, index: int) -> int:
        """The place of sample ``index`` in the source that it was taken from."""
        return index if self.numbers is None else int(self.numbers[index])

    def row(self, index: int) -> dict[str, Array]:
        """Inputs of one sample, each with a batch axis of 1 in front."""
        return {name: np.asarray(column[index])[np.newaxis] for name, column in self.inputs.items()}

    def rows(self) -> Iterator[dict[str, Array]]:
        """``row(i)`` for every sample, in order."""
        return (self.row(index) for index in range(len(self)))

    def take(self, indices: Shaped[np.ndarray, " m"]) -> "Samples":
        """The samples at ``indices``, in that order, still read on demand."""
        return replace(
            self,
            fingerprint=None,
            numbers=indices if self.numbers is None else self.numbers[indices],
            inputs={name: _Taken(column, indices) for name, column in self.inputs.items()},
            labels=None if self.labels is None else self.labels[indices],
            groups=None if self.groups is None else self.groups[indices],
        )

    def thinned(self, count: int) -> "Samples":
        """At most ``count`` samples, spread evenly over all of them."""
        if count >= len(self):
            return self
        return self.take(np.linspace(0, len(self) - 1, count).round().astype(np.int64))

    @cached_property
    def row_digests(self) -> tuple[str, ...]:
        """SHA-256 over the input bytes of every sample; equal content gives equal digests."""
        return tuple(_digest_of_row(row) for row in self.rows())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the content: the fingerprint, else every sample's inputs; labels; groups."""
        total = hashlib.sha256((self.fingerprint or "".join(self.row_digests)).encode())
        for values in (self.labels, self.groups):
            total.update(repr(None if values is None else values.tolist()).encode())
        return total.hexdigest()


def _digest_of_row(row: Mapping[str, Array]) -> str:
    total = hashlib.sha256()
    for name in sorted(row):
        array = np.ascontiguousarray(row[name])
        total.update(f"{name}{array.dtype.str}{array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()


def load_samples(path: Path, input_names: tuple[str, ...]) -> Samples:
    """Samples from a file: ``.npz`` or ``.safetensors`` (one array per graph input, samples first,
    with ``labels`` and ``groups`` beside them if known) or ``.npy`` (the only input's array).

    Raises DataError for a missing, unreadable or foreign file and for arrays that no input takes.
    """
    if not path.exists():
        raise DataError("no such file", where=str(path), do="check the path given as data source")
    arrays = dict(_read_arrays(path, input_names))
    labels, groups = arrays.pop(LABELS, None), arrays.pop(GROUPS, None)
    for name in arrays:
        if name not in input_names:
            raise DataError(
                f"array `{name}` is no input of the model; {nearest(name, input_names)}",
                where=str(path),
                do="name the arrays after the graph inputs, with `labels` and `groups` beside them",
            )
    return Samples(name=path.name, inputs=arrays, labels=labels, groups=groups)


def _read_arrays(path: Path, input_names: tuple[str, ...]) -> Mapping[str, Array]:
    kind = path.suffix.lower()
    try:
        if kind == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        if kind == ".npy":
            if len(input_names) != 1:
                raise DataError(
                    f"one array for a model of {len(input_names)} inputs",
                    where=str(path),
                    do="use an .npz with one array per input: " + ", ".join(input_names),
                )
            return {input_names[0]: np.load(path, mmap_mode="r", allow_pickle=False)}
        if kind == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
    except DataError:
        raise
    except Exception as fault:  # each reader has its own exceptions for a damaged file
        raise DataError(
            f"cannot be read: {type(fault).__name__}: {fault}",
            where=str(path),
            do="make the file again; it may be truncated, or hold pickled objects (never read)",
        ) from fault
    raise DataError(
        f"data of kind `{kind or 'folder'}` cannot be read",
        where=str(path),
        do="give .npz, .npy, .safetensors or module:function",
    )
