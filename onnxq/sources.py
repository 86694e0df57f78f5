"""Where samples come from: a file, a folder, or a user's ``module:function``."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq import plugins
from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError, OnnxqError
from onnxq.formats.arrays import read_npy, read_npz, read_safetensors
from onnxq.formats.assign import ArrayOptions, NestedOptions, assigned
from onnxq.formats.content import Content, Request, parsed
from onnxq.formats.hdf5 import read_hdf5
from onnxq.formats.iterables import samples_from
from onnxq.formats.npy_folder import FORMS, read_npy_folder
from onnxq.formats.pictures import SUFFIXES, PictureOptions, read_pictures
from onnxq.formats.torch_file import read_torch
from onnxq.progress import Progress, silent
from onnxq.samples import Samples

__all__ = ["open_source"]

_FLAT: Mapping[str, Callable[[Path], Content]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".safetensors": read_safetensors,
}
_NESTED: Mapping[str, Callable[[Path, str], Content]] = {
    ".h5": read_hdf5,
    ".hdf5": read_hdf5,
    ".pt": read_torch,
    ".pth": read_torch,
}


def open_source(  # noqa: PLR0913 - a source, and all that is known of what it is for
    source: str,
    options: Mapping[str, object],
    input_names: tuple[str, ...],
    search: Path | None = None,
    progress: Progress = silent,
    *,
    inputs: Sequence[ValueFacts] = (),
    limit: int | None = None,
) -> Samples:
    """Samples of ``source``, a path or ``module:function``; no row is read before it is needed.

    Files: ``.npy``, ``.npz``, ``.safetensors``, ``.h5``, ``.pt``; folders of ``.npy`` files or of
    pictures. ``options`` are those of the kind of file (``ArrayOptions``, ``NestedOptions``,
    ``PictureOptions``), or the function's arguments. A function's module is looked for in
    ``search`` first; one with a parameter ``progress`` is given one, as reading videos may take
    minutes. What it may return is listed in ``formats.iterables``.

    ``inputs`` are the facts of the graph's inputs, where they are known: they let types be
    converted on demand and a batch axis be told from a sample. At most ``limit`` samples, the
    first ones, are read.

    Raises DataError and PluginError, MissingExtraError for a kind of file whose package is not
    installed, StoreError if temporary data cannot be written.
    """
    request = Request(input_names, {value.name: value for value in inputs}, limit, progress)
    if plugins.is_reference(source):
        found = plugins.call(source, options, search, {"progress": progress})
        samples = samples_from(found, request, source)
    else:
        samples = _open_path(Path(source), options, request)
    if limit is not None and len(samples) > limit:
        return samples.take(np.arange(limit))
    return samples


def _open_path(path: Path, options: Mapping[str, object], request: Request) -> Samples:
    if not path.exists():
        raise DataError("no such file", where=str(path), do="check the path given as data source")
    where, path = str(path), path.absolute()  # a worker process may stand somewhere else
    if path.is_dir():
        return _open_folder(path, options, request)
    kind = path.suffix.lower()
    if kind in _FLAT:
        flat = parsed(ArrayOptions, options, where)
        with _reading(where):
            content = _FLAT[kind](path)
        return assigned(content, flat, request, where)
    if kind in _NESTED:
        nested = parsed(NestedOptions, options, where)
        with _reading(where):
            content = _NESTED[kind](path, nested.key)
        return assigned(content, nested, request, where)
    raise DataError(
        f"data of kind `{kind}` cannot be read",
        where=where,
        do=f"give {', '.join([*_FLAT, *_NESTED])}, a folder of .npy files or pictures, or "
        "module:function",
    )


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Each reader has its own exceptions for a damaged file."""
    try:
        yield
    except OnnxqError:
        raise
    except Exception as fault:
        raise DataError(
            f"cannot be read: {type(fault).__name__}: {fault}",
            where=where,
            do="make the file again; it may be truncated, or hold pickled objects (never read)",
        ) from fault


def _open_folder(folder: Path, options: Mapping[str, object], request: Request) -> Samples:
    files = tuple(_files(folder))
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    arrays = any(file.suffix.lower() == ".npy" for file in files)
    if pictures and arrays:
        do = "put the arrays and the pictures into folders of their own"
        raise DataError("holds both pictures and .npy files", where=str(folder), do=do)
    if pictures:
        wanted = parsed(PictureOptions, options, str(folder))
        return read_pictures(folder, pictures, wanted, request)
    if arrays:
        flat = parsed(ArrayOptions, options, str(folder))
        return assigned(read_npy_folder(folder, request), flat, request, str(folder))
    raise DataError(
        "cannot be read: it holds neither pictures nor .npy files",
        where=str(folder),
        do=f"give pictures ({', '.join(sorted(SUFFIXES))}), or {FORMS}",
    )


def _files(folder: Path) -> Iterator[Path]:
    """Every file below the folder, through links to other folders, but none that is hidden."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))
