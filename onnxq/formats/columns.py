"""Columns that stay where they are: on the disk, in parts, or in another type."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError
from onnxq.samples import Column

__all__ = ["Converted", "Joined", "Nested", "StoredRows", "flattened", "whole"]

Array = Shaped[np.ndarray, "..."]


@runtime_checkable
class Nested(Protocol):
    """A column whose rows have rows that can be read one by one."""

    def at(self, outer: int, inner: int) -> Array:
        """Row ``inner`` of row ``outer``, and nothing but that."""
        ...


@runtime_checkable
class _AtOnce(Protocol):
    """A column that has a quicker way to read everything than row by row."""

    def whole(self) -> Array:
        """All rows."""
        ...


def whole(column: Column) -> Array:
    """All rows of a short column (labels, timesteps) in memory, of shape ``(n, *sample)``."""
    if isinstance(column, np.ndarray):
        return column
    if isinstance(column, _AtOnce):
        return column.whole()
    if len(column) == 0:
        return np.empty(column.shape, column.dtype)
    return np.stack([np.asarray(column[index]) for index in range(len(column))])


@dataclass(frozen=True)
class StoredRows:
    """An array that lies uncompressed in a file, from byte ``offset`` on.

    Rows are read, not mapped: the memory in use stays that of one row however many were read, a
    file that is cut off meanwhile is an error instead of a bus error, and the column can be sent to
    another process. Only arrays stored column by column (``by_columns``, Fortran's order) are
    mapped, because their rows lie scattered. ``keeper`` is held for as long as the file is needed.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool = False
    keeper: object = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int, /) -> Array:
        return self._row((index,))

    def at(self, outer: int, inner: int) -> Array:
        """Row ``inner`` of row ``outer``."""
        return self._row((outer, inner))

    def _row(self, place: tuple[int, ...]) -> Array:
        lead, sample = self.shape[: len(place)], self.shape[len(place) :]
        if not all(0 <= index < count for index, count in zip(place, lead, strict=True)):
            raise IndexError(f"row {place} of {lead}")
        if self.by_columns:
            return np.array(self._mapped()[place], order="C")
        return self._read(int(np.ravel_multi_index(place, lead)) * prod(sample), sample)

    def whole(self) -> Array:
        """All rows."""
        if self.by_columns:
            return np.array(self._mapped(), order="C")
        return self._read(0, self.shape)

    def _read(self, first: int, shape: tuple[int, ...]) -> Array:
        """``prod(shape)`` values from value ``first`` on."""
        offset = self.offset + first * self.dtype.itemsize
        try:
            values = np.fromfile(self.path, self.dtype, prod(shape), offset=offset)
        except OSError as fault:
            raise self._gone(str(fault)) from fault
        if values.size != prod(shape):
            raise self._gone("it has become shorter")
        return values.reshape(shape)

    def _mapped(self) -> Array:
        try:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order="F")
        except (OSError, ValueError) as fault:
            raise self._gone(str(fault)) from fault

    def _gone(self, what: str) -> DataError:
        do = "leave the data as they are until the run is over"
        return DataError(f"cannot be read any more: {what}", where=str(self.path), do=do)


@dataclass(frozen=True)
class Joined:
    """Columns one after another; their samples must have one shape and one type."""

    parts: tuple[Column, ...]

    @classmethod
    def of(cls, parts: Sequence[Column], where: str) -> "Joined":
        """The parts joined. Raises DataError if there is none or if they differ."""
        if not parts:
            raise DataError("is an empty list", where=where, do="give at least one array")
        first = parts[0]
        for number, part in enumerate(parts):
            if not part.shape:
                what = f"part {number} is a single number"
                raise DataError(what, where=where, do="give arrays of shape (n, …)")
            if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                raise DataError(
                    f"part {number} holds {part.dtype} samples of shape {list(part.shape[1:])}, "
                    f"part 0 {first.dtype} of shape {list(first.shape[1:])}",
                    where=where,
                    do="give all parts one shape and one type",
                )
        return cls(tuple(parts))

    @cached_property
    def _ends(self) -> Shaped[np.ndarray, " parts"]:
        return np.cumsum([len(part) for part in self.parts])

    @property
    def shape(self) -> tuple[int, ...]:
        """``(sum of the parts' n, *sample)``."""
        return (len(self), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        """That of every part."""
        return self.parts[0].dtype

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int, /) -> Array:
        part = int(np.searchsorted(self._ends, index, side="right"))
        if index < 0 or part == len(self.parts):
            raise IndexError(f"row {index} of {len(self)}")
        before = int(self._ends[part - 1]) if part else 0
        return np.asarray(self.parts[part][index - before])

    def whole(self) -> Array:
        """All rows."""
        return np.concatenate([whole(part) for part in self.parts])


def flattened(column: Column) -> Column:
    """A column of shape ``(steps, n, *sample)`` as one of ``(steps·n, *sample)``."""
    if isinstance(column, np.ndarray):
        return column.reshape(-1, *column.shape[2:])
    return _Flattened(column)


@dataclass(frozen=True)
class _Flattened:
    column: Column

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.column.shape[2:])

    @property
    def dtype(self) -> np.dtype:
        return self.column.dtype

    def __len__(self) -> int:
        return prod(self.column.shape[:2])

    def __getitem__(self, index: int, /) -> Array:
        outer, inner = divmod(index, self.column.shape[1])
        if isinstance(self.column, Nested):
            return np.asarray(self.column.at(outer, inner))
        return np.asarray(self.column[outer][inner])

    def whole(self) -> Array:
        return whole(self.column).reshape(self.shape)


@dataclass(frozen=True)
class Converted:
    """A column in another type, converted as it is read.

    Between floating-point types values are rounded to the nearest; any other conversion must be
    exact. Raises DataError, naming the row, for a value that the new type cannot stand for.
    """

    column: Column
    dtype: np.dtype
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the column."""
        return self.column.shape

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: int, /) -> Array:
        return self._convert(np.asarray(self.column[index]), f"sample {index}")

    def whole(self) -> Array:
        """All rows."""
        return self._convert(whole(self.column), "the array")

    def _convert(self, values: Array, what: str) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):
            made = values.astype(self.dtype)
            if values.dtype.kind == made.dtype.kind == "f":
                lost = np.isfinite(values) & ~np.isfinite(made)
            else:
                lost = made.astype(values.dtype) != values
        if np.any(lost):
            value = values[lost].flat[0] if values.ndim else values[()]
            raise DataError(
                f"{what} holds {value}, which is no {self.dtype} value",
                where=self.where,
                do="convert the data yourself, or mend them",
            )
        return made
