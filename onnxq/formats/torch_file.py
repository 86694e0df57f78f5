"""PyTorch files (``.pt``, ``.pth``): dictionaries of tensors, mapped and never unpickled freely."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError, MissingExtraError, nearest
from onnxq.formats.columns import Joined
from onnxq.formats.content import ONLY, Content
from onnxq.samples import Column

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["TensorRows", "read_torch"]

Array = Shaped[np.ndarray, "..."]


def read_torch(path: Path, key: str = "") -> Content:
    """The tensors of a dictionary, of the dictionary that ``key`` leads to, or a single tensor.

    Lists of tensors are joined; lists of numbers or words (labels, groups) are arrays. Raises
    MissingExtraError without torch, DataError for anything else.
    """
    file = _File(path)
    found = file.at(tuple(key.split("/")) if key else ())
    torch = _torch()
    if isinstance(found, torch.Tensor) or _is_list_of_tensors(found, torch):
        return Content({ONLY: _column(file, key, (), found)})
    if not isinstance(found, Mapping):
        raise DataError(
            f"holds a {type(found).__name__}",
            where=str(path),
            do="give a dictionary of tensors, one per graph input, or the one input's tensor",
        )
    keys = tuple(key.split("/")) if key else ()
    return Content({str(n): _column(file, str(n), (*keys, n), v) for n, v in found.items()})


class _File:
    """A file that is mapped when it is needed; only its name is sent to another process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    @cached_property
    def content(self) -> Any:
        return _torch().load(self.path, map_location="cpu", weights_only=True, mmap=True)

    def at(self, keys: tuple[Any, ...]) -> Any:
        """What lies under the keys, one inside the other."""
        found = self.content
        for key in keys:
            by_place = isinstance(found, list | tuple) and isinstance(key, int)
            if by_place or (isinstance(found, Mapping) and key in found):
                found = found[key]
            else:
                known = map(str, found) if isinstance(found, Mapping) else ()
                what = f"has no key `{key}`; {nearest(str(key), known)}"
                raise DataError(what, where=str(self.path), do="mend the option `key`")
        return found


class TensorRows:
    """A tensor in a mapped file: only the rows that are read are loaded."""

    def __init__(self, file: _File, keys: tuple[Any, ...]) -> None:
        self._file, self._keys = file, keys
        tensor = self._tensor
        self.shape = tuple(tensor.shape)
        self.dtype = _torch().empty(0, dtype=tensor.dtype).numpy().dtype

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_tensor"}

    @cached_property
    def _tensor(self) -> "Tensor":
        tensor: Tensor = self._file.at(self._keys).detach()
        return tensor

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int, /) -> Array:
        return _copied(self._tensor[index])

    def at(self, outer: int, inner: int) -> Array:
        """Row ``inner`` of row ``outer``."""
        return _copied(self._tensor[outer, inner])

    def whole(self) -> Array:
        """All rows."""
        return _copied(self._tensor)


def _copied(tensor: "Tensor") -> Array:
    return np.array(tensor.numpy())  # torch would start threads for it, at ten times the cost


def _column(file: _File, name: str, keys: tuple[Any, ...], value: Any) -> Column:
    torch = _torch()
    where = f"{file.path}, `{name}`" if name else str(file.path)
    if isinstance(value, torch.Tensor):
        return _tensor_rows(file, keys, value, where)
    if _is_list_of_tensors(value, torch):
        if all(tensor.ndim == 0 for tensor in value):
            return np.stack([tensor.detach().numpy() for tensor in value])
        parts = [_tensor_rows(file, (*keys, i), tensor, where) for i, tensor in enumerate(value)]
        return Joined.of(parts, where)
    if isinstance(value, list | tuple) and value and all(
        isinstance(item, int | float | str) for item in value
    ):  # fmt: skip
        return np.array(value)
    inside = isinstance(value, Mapping)
    raise DataError(
        f"is a {type(value).__name__}, not a tensor or a list of tensors",
        where=where,
        do=f"say where the tensors are, as in `key: {'/'.join(map(str, keys))}`" if inside
        else "leave it out, or make a tensor of it",
    )  # fmt: skip


def _tensor_rows(file: _File, keys: tuple[Any, ...], tensor: "Tensor", where: str) -> TensorRows:
    try:
        return TensorRows(file, keys)
    except TypeError as fault:
        do = "save it as float32 or float16"
        raise DataError(
            f"is {tensor.dtype}, which NumPy does not know", where=where, do=do
        ) from fault


def _is_list_of_tensors(value: object, torch: ModuleType) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(
        isinstance(item, torch.Tensor) for item in value
    )  # fmt: skip


def _torch() -> ModuleType:
    try:
        import torch
    except ModuleNotFoundError as fault:
        raise MissingExtraError(
            f"reading a PyTorch file needs the package `{fault.name}`",
            do="pip install 'onnxq[torch]'",
        ) from fault
    return torch
