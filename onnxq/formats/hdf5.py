"""HDF5 files (``.h5``, ``.hdf5``): datasets named after the inputs."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError, MissingExtraError, nearest
from onnxq.formats.content import Content

__all__ = ["H5Rows", "read_hdf5"]

Array = Shaped[np.ndarray, "..."]


def read_hdf5(path: Path, key: str = "") -> Content:
    """The datasets of the file, or of its group ``key`` (``train/images``).

    Raises MissingExtraError without h5py, DataError for a group that is not there or holds groups.
    """
    h5py = _h5py()
    columns = {}
    with h5py.File(path, "r") as file:
        if key not in ("", *_groups(file, h5py)):
            what = f"has no group `{key}`; {nearest(key, _groups(file, h5py))}"
            raise DataError(what, where=str(path), do="mend the option `key`")
        for name, item in (file[key] if key else file).items():
            inner = f"{key}/{name}".strip("/")
            if not isinstance(item, h5py.Dataset):
                raise DataError(
                    f"`{inner}` is a group of datasets",
                    where=str(path),
                    do=f"say where the arrays are, as in `key: {inner}`",
                )
            columns[name] = H5Rows(path, inner, tuple(item.shape), _type_of(item, h5py))
    return Content(columns)


def _groups(file: Any, h5py: ModuleType) -> list[str]:
    names: list[str] = []
    file.visititems(lambda n, item: names.append(n) if isinstance(item, h5py.Group) else None)
    return names


def _type_of(dataset: Any, h5py: ModuleType) -> np.dtype:
    """Strings are objects to h5py and words to us."""
    is_string = h5py.check_string_dtype(dataset.dtype) is not None
    return np.dtype(np.str_ if is_string else dataset.dtype)


def _h5py() -> ModuleType:
    try:
        import h5py
    except ModuleNotFoundError as fault:
        raise MissingExtraError(
            f"reading HDF5 needs the package `{fault.name}`", do="pip install 'onnxq[hdf5]'"
        ) from fault
    return h5py  # type: ignore[no-any-return]  # h5py ships no types


class H5Rows:
    """A dataset in a file; the file is opened once in every process that reads from it."""

    def __init__(self, path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.path = path
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self._opened: tuple[int, Any] = (-1, None)

    def __getstate__(self) -> dict[str, object]:
        return vars(self) | {"_opened": (-1, None)}

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int, /) -> Array:
        if not 0 <= index < len(self):  # h5py has its own error for it, which ends no loop
            raise IndexError(f"row {index} of {len(self)}")
        return self._read((index,))

    def at(self, outer: int, inner: int) -> Array:
        """Row ``inner`` of row ``outer``."""
        return self._read((outer, inner))

    def whole(self) -> Array:
        """All rows."""
        return self._read(())

    def _read(self, index: tuple[int, ...]) -> Array:
        try:
            values = self._dataset()[index]
        except (OSError, KeyError) as fault:
            what = f"`{self.name}` cannot be read: {fault}"
            do = "make the file again, or leave it as it is until the run is over"
            raise DataError(what, where=str(self.path), do=do) from fault
        return np.asarray(values, np.str_ if self.dtype.kind == "U" else None)

    def _dataset(self) -> Any:
        """The open dataset of this process: HDF5 handles do not survive a fork."""
        process, dataset = self._opened
        if process != os.getpid():
            dataset = _h5py().File(self.path, "r")[self.name]
            self._opened = (os.getpid(), dataset)
        return dataset.asstr() if self.dtype.kind == "U" else dataset
