"""What a function may return instead of ``Samples``: arrays, or anything that yields rows.

======================================  ======================================================
mapping name → array                    samples first, ``labels`` and ``groups`` beside
array                                   the only input's
``onnxruntime`` CalibrationDataReader   batches: ``get_next()`` until it gives None
``torch`` DataLoader                    batches, unless its ``batch_size`` is None
``torch`` Dataset                       samples, without batch axis
any other iterable, a generator         samples; batches if every rank is that of the graph's input
======================================  ======================================================

A row is a mapping by input name, a sequence in the order of the inputs, or the only input's array;
a sequence with one part more ends with the label, and ``(inputs, label)`` may nest. Rows are read
once, in order, into a temporary file, so that memory stays flat and every later pass sees the same
values.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError, OnnxqError, PluginError, nearest
from onnxq.formats.assign import ArrayOptions, assigned
from onnxq.formats.columns import StoredRows
from onnxq.formats.content import ONLY, Content, Request
from onnxq.formats.spool import Spool
from onnxq.samples import GROUPS, LABELS, TIMESTEPS, Samples

__all__ = ["samples_from"]

_BESIDE = (LABELS, GROUPS, TIMESTEPS)
Array = Shaped[np.ndarray, "..."]
Row = Mapping[str, Array]


def samples_from(found: object, request: Request, where: str) -> Samples:
    """The samples that a function's result stands for.

    Raises PluginError for a result of another kind or an iterator that fails, DataError for rows
    that differ from one another or from the graph's inputs, StoreError if the disk is full.
    """
    if isinstance(found, Samples):
        return found
    if isinstance(found, Mapping):
        arrays = {str(name): _array(values, f"{where}, `{name}`") for name, values in found.items()}
        return assigned(Content(arrays), ArrayOptions(), request, where)
    if _is_array(found):
        return assigned(Content({ONLY: _array(found, where)}), ArrayOptions(), request, where)
    rows, batched, total = _opened(found, where)
    return _spooled(_named(rows, request, where), batched, total, request, where)


def _opened(found: object, where: str) -> tuple[Iterator[Any], bool | None, int]:
    """The rows, whether they are batches (None: not known), and how many there are (0: unknown)."""
    get_next = getattr(found, "get_next", None)
    if callable(get_next):
        return _until_none(get_next), True, 0
    data: Any = sys.modules.get("torch.utils.data")
    if data is not None and isinstance(found, data.DataLoader):
        return _items(found), found.batch_sampler is not None, _length(found)
    is_dataset = data is not None and isinstance(found, data.Dataset)
    by_index = is_dataset and not isinstance(found, data.IterableDataset)
    if by_index:
        return _by_index(found), False, _length(found)
    if isinstance(found, Iterable) and not isinstance(found, str | bytes):
        return _items(found), False if is_dataset else None, _length(found)
    raise PluginError(
        f"returned {type(found).__name__}",
        where=where,
        do="return onnxq.samples.Samples, a mapping of arrays, a CalibrationDataReader, a torch "
        "Dataset or DataLoader, or an iterable of rows",
    )


def _until_none(get_next: Callable[[], object]) -> Iterator[object]:
    while (row := get_next()) is not None:
        yield row


def _items(found: Iterable[object]) -> Iterator[object]:
    yield from found


def _by_index(found: Any) -> Iterator[object]:
    yield from (found[index] for index in range(len(found)))


def _length(found: object) -> int:
    try:
        return len(found)  # type: ignore[arg-type]  # asked of whatever it is
    except (TypeError, NotImplementedError):  # a generator, an iterable data set
        return 0


def _named(rows: Iterator[Any], request: Request, where: str) -> Iterator[Row]:
    """Every row by name. What the user's iterator raises is reported as his."""
    number = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except OnnxqError:
            raise
        except Exception as fault:
            what = f"reading row {number} failed: {type(fault).__name__}: {fault}"
            raise PluginError(what, where=where) from fault
        yield _by_name(row, request.input_names, f"{where}, row {number}")
        number += 1


def _by_name(row: Any, names: tuple[str, ...], where: str) -> Row:
    if isinstance(row, Mapping):
        for name in row:
            if name not in (*names, *_BESIDE):
                what = f"`{name}` is no input of the model; {nearest(str(name), names)}"
                do = f"yield exactly: {', '.join(names)}; `labels` and `groups` may be beside them"
                raise DataError(what, where=where, do=do)
        return {name: _array(values, f"{where}, `{name}`") for name, values in row.items()}
    if isinstance(row, tuple | list) and not (len(names) == 1 and _is_numbers(row)):
        inner = row[0] if len(row) == 2 and isinstance(row[0], Mapping | tuple | list) else None
        if inner is not None and not _is_numbers(inner):
            return {**_by_name(inner, names, where), LABELS: _label(row[1], where)}
        if len(row) == len(names) + 1:
            return {**_by_name(list(row[:-1]), names, where), LABELS: _label(row[-1], where)}
        if len(row) == len(names):
            return {n: _array(values, where) for n, values in zip(names, row, strict=True)}
    elif len(names) == 1:
        return {names[0]: _array(row, where)}
    count = len(row) if isinstance(row, Sequence) else 1
    raise DataError(
        f"{count} value(s) for the inputs {', '.join(names)}",
        where=where,
        do="yield a mapping by name, or the inputs in that order, and behind them a label if any",
    )


def _is_array(value: object) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "__array__")


def _is_numbers(values: Any) -> bool:
    """Whether a sequence is one array written as numbers."""
    return bool(values) and all(isinstance(v, int | float) for v in values)


def _array(values: Any, where: str) -> Array:
    """An array of NumPy's; a torch tensor is taken from its device and graph."""
    if callable(getattr(values, "detach", None)):
        values = values.detach().cpu()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as fault:  # bfloat16, lists of different lengths
        do = "give arrays of numbers of one shape, in a type that NumPy knows"
        raise DataError(f"is no array: {fault}", where=where, do=do) from fault


def _label(value: Any, where: str) -> Array:
    return np.asarray(None) if isinstance(value, Mapping) else _array(value, where)


def _spooled(
    rows: Iterator[Row], batched: bool | None, total: int, request: Request, where: str
) -> Samples:
    """All rows, at most ``limit`` samples of them, written to disk and read from there."""
    writer: _Writer | None = None
    limit = request.limit
    shown: Iterable[Row] = request.progress(rows, f"reading {where}", total or limit or 0)
    for row in shown:
        if writer is None:
            if batched is None:
                batched = _is_batched(row, request, where)
            writer = _Writer(where, batched, tuple(row))
        writer.write(row, limit)
        if limit is not None and writer.count >= limit:
            break
    if writer is None:
        do = "yield at least one row; a generator that was read before is empty"
        raise DataError("yields no row", where=where, do=do)
    return writer.samples()


def _is_batched(row: Row, request: Request, where: str) -> bool:
    """True if every input has as many axes as the graph's, False if every one has one less."""
    ranks = {n: (row[n].ndim, request.rank(n)) for n in request.input_names if n in row}
    extra = {found - rank for found, rank in ranks.values() if rank is not None}
    if len(extra) > 1:
        what = ", ".join(f"`{n}` has {found} axes of {rank}" for n, (found, rank) in ranks.items())
        do = "yield samples without batch axis, or every input with one"
        raise DataError(f"some inputs have a batch axis: {what}", where=where, do=do)
    return extra == {0}


class _Writer:
    """Rows on their way to one temporary file per input; labels and the like stay in memory."""

    def __init__(self, where: str, batched: bool, names: tuple[str, ...]) -> None:
        self.where, self.batched, self.names = where, batched, names
        self.count = 0
        self._spool = Spool()
        self._forms: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self._beside: dict[str, list[Array]] = {}
        self._dropped: dict[str, str] = {}

    def write(self, row: Row, limit: int | None) -> None:
        """Append one sample, or a batch of which no more than ``limit`` in all are kept."""
        if set(row) != set(self.names):
            what = f"row with {', '.join(row)} after rows with {', '.join(self.names)}"
            raise DataError(what, where=self.where, do="yield the same names in every row")
        rows = row if self.batched else {n: values[np.newaxis] for n, values in row.items()}
        left = None if limit is None else limit - self.count
        inputs = {n: v for n, v in rows.items() if n not in _BESIDE}
        sizes = {n: len(v) if v.ndim else 0 for n, v in inputs.items()}
        if len(set(sizes.values())) != 1 or 0 in sizes.values():
            what = f"a batch of {', '.join(f'{n} {v.shape}' for n, v in inputs.items())}"
            raise DataError(what, where=self.where, do="give every input the same batch")
        for name, values in inputs.items():
            self._append(name, values[:left])
        for name in set(rows) - set(inputs):
            self._note(name, rows[name], next(iter(sizes.values())), left)
        self.count += len(next(iter(inputs.values()))[:left])

    def _append(self, name: str, values: Array) -> None:
        form = (values.dtype, values.shape[1:])
        if values.dtype.hasobject:
            do = "yield arrays of numbers of one shape"
            raise DataError(f"`{name}` holds Python objects", where=self.where, do=do)
        if self._forms.setdefault(name, form) != form:
            dtype, shape = self._forms[name]
            raise DataError(
                f"sample {self.count}: `{name}` is {form[0]} of shape {list(form[1])}, "
                f"sample 0 {dtype} of shape {list(shape)}",
                where=self.where,
                do="give all samples one shape and one type",
            )
        with self._spool.writing() as folder, self._path(folder, name).open("ab") as file:
            file.write(np.ascontiguousarray(values).data)

    def _path(self, folder: Any, name: str) -> Any:
        return folder / f"{list(self._forms).index(name)}.raw"

    def _note(self, name: str, values: Array, size: int, left: int | None) -> None:
        """Keep one number or word a sample; anything else is left out, and said."""
        flat = values.reshape(size, -1) if values.ndim and len(values) == size else None
        if flat is None or flat.shape[1] != 1 or values.dtype.hasobject:
            self._dropped[name] = f"{values.dtype} of shape {list(values.shape[1:])}"
        else:
            self._beside.setdefault(name, []).append(flat[:left, 0])

    def samples(self) -> Samples:
        """What was written, read from there."""
        columns = {
            name: StoredRows(
                self._path(self._spool.folder, name), 0, (self.count, *shape), dtype, False,
                self._spool,
            )
            for name, (dtype, shape) in self._forms.items()
        }  # fmt: skip
        beside: dict[str, Any] = {
            name: np.concatenate(parts)
            for name, parts in self._beside.items()
            if name not in self._dropped
        }
        notes = tuple(
            f"`{name}` are left out: they are {form} a sample, not one number or word"
            for name, form in self._dropped.items()
        )
        return Samples(name=self.where, inputs=columns, notes=notes, **beside)
