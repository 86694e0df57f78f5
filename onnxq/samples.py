"""Samples: model inputs with labels and groups, read a row at a time and never loaded whole."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError

__all__ = ["GROUPS", "LABELS", "TIMESTEPS", "Column", "Samples"]

LABELS, GROUPS, TIMESTEPS = "labels", "groups", "timesteps"
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
    and of confidence intervals; ``timesteps`` is the step of a diffusion process that each sample
    was taken at. ``notes`` are sentences that a reader of the report must know, ``made_up`` says
    that the values are random numbers and no data. ``fingerprint`` stands for the whole content,
    where whoever made the samples knows a quicker one than reading them all. ``numbers`` are the
    places of samples that were taken out of others, for messages. ``preprocessing`` says in one
    line what was done to raw data; statistics are merged only where it is the same.
    """

    name: str
    inputs: Mapping[str, Column]
    labels: Shaped[np.ndarray, " n"] | None = None
    groups: Shaped[np.ndarray, " n"] | None = None
    notes: tuple[str, ...] = ()
    made_up: bool = False
    fingerprint: str | None = None
    numbers: Shaped[np.ndarray, " n"] | None = None
    timesteps: Shaped[np.ndarray, " n"] | None = None
    preprocessing: str = ""

    def __post_init__(self) -> None:
        if not self.inputs:
            raise DataError("holds no model input", where=self.name)
        for name, column in self.inputs.items():
            if not column.shape:
                do = "put the samples first: an array of shape (n, …)"
                raise DataError(f"`{name}` is a single number", where=self.name, do=do)
        lengths = {name: len(column) for name, column in self.inputs.items()}
        for name, values in self._facts.items():
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

    @property
    def _facts(self) -> dict[str, Array | None]:
        """What is known of each sample beside its inputs."""
        return {LABELS: self.labels, GROUPS: self.groups, TIMESTEPS: self.timesteps}

    def number(self, index: int) -> int:
        """The place of sample ``index`` in the source that it was taken from."""
        return index if self.numbers is None else int(self.numbers[index])

    def row(self, index: int) -> dict[str, Array]:
        """Inputs of one sample, each with a batch axis of 1 in front."""
        return {name: np.asarray(column[index])[np.newaxis] for name, column in self.inputs.items()}

    def batch(self, start: int, size: int) -> dict[str, Array]:
        """Inputs of the samples from ``start`` on, stacked: each of shape ``(size, *sample)``.

        Raises DataError if there are fewer than ``start + size`` samples.
        """
        if size < 1 or not 0 <= start <= len(self) - size:
            what = f"holds {len(self)} samples: no batch of {size} begins at sample {start}"
            raise DataError(what, where=self.name, do="give more samples, or a smaller batch")
        wanted = range(start, start + size)
        return {
            name: np.stack([np.asarray(column[index]) for index in wanted])
            for name, column in self.inputs.items()
        }

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
            timesteps=None if self.timesteps is None else self.timesteps[indices],
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
        """SHA-256 over the content: the fingerprint, else every sample's inputs; labels, groups
        and timesteps."""
        total = hashlib.sha256((self.fingerprint or "".join(self.row_digests)).encode())
        for values in self._facts.values():
            total.update(repr(None if values is None else values.tolist()).encode())
        return total.hexdigest()


def _digest_of_row(row: Mapping[str, Array]) -> str:
    total = hashlib.sha256()
    for name in sorted(row):
        array = np.ascontiguousarray(row[name])
        total.update(f"{name}{array.dtype.str}{array.shape}".encode())
        total.update(array.data)
    return total.hexdigest()
