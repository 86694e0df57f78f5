"""A folder of ``.npy`` files, in one of three forms."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError
from onnxq.formats.arrays import stored_array
from onnxq.formats.columns import StoredRows
from onnxq.formats.content import Content, Request
from onnxq.samples import GROUPS, LABELS, TIMESTEPS, Column

__all__ = ["FORMS", "FileRows", "read_npy_folder"]

FORMS = (
    "one .npy file per graph input, named after it; one .npy file per sample (models of one "
    "input); or one folder per input with one .npy file per sample; labels.npy, groups.npy and "
    "timesteps.npy may stand beside them"
)
_BESIDE = (LABELS, GROUPS, TIMESTEPS)
Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True)
class FileRows:
    """One ``.npy`` file a sample. ``batched`` files hold a batch of one, whose axis is dropped."""

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    batched: bool

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int, /) -> Array:
        path = self.files[index]
        stored = _stored(path)
        wanted = ((1,) if self.batched else ()) + self.shape[1:]
        if stored.shape != wanted or stored.dtype != self.dtype:
            raise DataError(
                f"holds {stored.dtype} of shape {list(stored.shape)}, {self.files[0].name} "
                f"{self.dtype} of shape {list(wanted)}",
                where=str(path),
                do="give all samples one shape and one type",
            )
        values = stored.whole()
        return values[0] if self.batched else values


def read_npy_folder(folder: Path, request: Request) -> Content:
    """The arrays of a folder in one of ``FORMS``. Raises DataError if it is in none of them."""
    beside = {name: folder / f"{name}.npy" for name in _BESIDE if name not in request.input_names}
    columns: dict[str, Column] = {
        name: _stored(path) for name, path in beside.items() if path.exists()
    }
    files = {path.stem: path for path in _npy_files(folder) if path not in beside.values()}
    folders = {path.name: path for path in sorted(folder.iterdir()) if _holds_samples(path)}
    named = set(files) & set(request.input_names)
    if files and not folders and named == set(files):
        return Content(columns | {name: _stored(path) for name, path in files.items()})
    if folders and not files:
        return _folder_per_input(folder, folders, columns, request)
    if files and not folders and not named and len(request.input_names) == 1:
        rows, notes = _file_rows(tuple(files.values()), request, request.input_names[0])
        return Content(columns | {request.input_names[0]: rows}, notes)
    names = ", ".join([*files, *(f"{name}/" for name in folders)][:5]) or "deeper than one folder"
    inputs = ", ".join(request.input_names)
    raise DataError(
        f"its .npy files ({names}) are in no form that is known for the inputs {inputs}",
        where=str(folder),
        do=f"give {FORMS}",
    )


def _folder_per_input(
    folder: Path, folders: Mapping[str, Path], beside: Mapping[str, Column], request: Request
) -> Content:
    columns, notes = dict(beside), tuple[str, ...]()
    first, names = next(iter(folders)), None
    for name, inner in folders.items():
        files = tuple(_npy_files(inner))
        if names is None:
            names = {path.name for path in files}
        elif different := names ^ {path.name for path in files}:
            raise DataError(
                f"{sorted(different)[0]} is not in both {first}/ and {name}/",
                where=str(folder),
                do="give a sample's files the same name in every input's folder",
            )
        columns[name], more = _file_rows(files, request, name)
        notes += more
    return Content(columns, notes)


def _file_rows(
    files: Sequence[Path], request: Request, name: str
) -> tuple[FileRows, tuple[str, ...]]:
    first = _stored(files[0])
    batched = first.shape[:1] == (1,) and len(first.shape) == request.rank(name)
    shape = (len(files), *(first.shape[1:] if batched else first.shape))
    notes = (f"`{name}`: the files' batch axis of 1 is dropped",) if batched else ()
    return FileRows(tuple(files), shape, first.dtype, batched), notes


def _stored(path: Path) -> StoredRows:
    try:
        with path.open("rb") as file:
            return stored_array(path, file, path.stat().st_size)
    except (OSError, ValueError) as fault:
        do = "make the file again with numpy.save"
        raise DataError(f"cannot be read: {fault}", where=str(path), do=do) from fault


def _holds_samples(path: Path) -> bool:
    return path.is_dir() and bool(_npy_files(path))


def _npy_files(folder: Path) -> list[Path]:
    """In the order of the numbers in their names: 2.npy before 10.npy."""
    files = (path for path in folder.glob("*.npy") if not path.name.startswith("."))
    return sorted(files, key=lambda path: _natural(path.name))


def _natural(name: str) -> tuple[tuple[bool, int, str], ...]:
    parts = re.split(r"(\d+)", name)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)
