"""Arrays in ``.npy``, ``.npz`` and ``.safetensors``: where in the file each one lies."""

import json
import shutil
import struct
import zipfile
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from onnxq.errors import DataError
from onnxq.formats.columns import StoredRows
from onnxq.formats.content import ONLY, Content
from onnxq.formats.spool import Spool

__all__ = ["read_npy", "read_npz", "read_safetensors", "stored_array"]

_LOCAL_HEADER = struct.Struct("<26xHH")  # APPNOTE.TXT 4.3.7: lengths of the name and the extra
_SAFETENSORS_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
    "I8": "|i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


def read_npy(path: Path) -> Content:
    """The array of an ``.npy`` file. Raises DataError for pickled objects, ValueError and the like
    for a damaged file, as all readers here."""
    with path.open("rb") as file:
        return Content({ONLY: stored_array(path, file, path.stat().st_size)})


def stored_array(path: Path, file: BinaryIO, end: int, keeper: object = None) -> StoredRows:
    """The array whose ``.npy`` header ``file`` stands at and which must be over by byte ``end``.

    Format: NumPy's NEP 1. Raises ValueError if it is none, or cut off.
    """
    version = npy.read_magic(file)
    if version == (1, 0):
        shape, by_columns, dtype = npy.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, by_columns, dtype = npy.read_array_header_2_0(file)
    else:
        raise ValueError(f"version {version} of the .npy format holds records, no samples")
    if dtype.hasobject:
        raise ValueError("holds pickled Python objects")
    offset = file.tell()
    if offset + prod(shape) * dtype.itemsize > end:
        raise ValueError(f"is cut off: an array of shape {list(shape)} does not fit in the file")
    return StoredRows(path, offset, tuple(shape), dtype, bool(by_columns), keeper)


def read_npz(path: Path) -> Content:
    """The arrays of an ``.npz`` file.

    Members that ``numpy.savez`` stored as they are are read in place; their checksums are not
    compared, as that would read them all. Compressed members are spooled to a temporary file once.
    """
    columns: dict[str, StoredRows] = {}
    spooled = []
    spool: Spool | None = None
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name in columns or name == member.filename:
                what = "occurs twice" if name in columns else "is no .npy array"
                raise ValueError(f"member `{member.filename}` {what}")
            if member.flag_bits & 1:
                raise ValueError(f"member `{member.filename}` is encrypted")
            if member.compress_type == zipfile.ZIP_STORED:
                columns[name] = _stored_member(path, file, member)
            else:
                spool = spool or Spool()
                columns[name] = _spooled_member(archive, member, spool, len(columns))
                spooled.append(name)
    notes: tuple[str, ...] = ()
    if spooled:
        names = ", ".join(f"`{name}`" for name in spooled)
        notes = (
            f"{path.name}: {names} compressed; unpacked to a temporary file "
            "(numpy.savez, without compression, is read in place)",
        )
    return Content(columns, notes)


def _stored_member(path: Path, file: BinaryIO, member: zipfile.ZipInfo) -> StoredRows:
    file.seek(member.header_offset)
    lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    start = file.tell() + sum(lengths)
    file.seek(start)
    return stored_array(path, file, min(start + member.file_size, path.stat().st_size))


def _spooled_member(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, spool: Spool, number: int
) -> StoredRows:
    with spool.writing() as folder:
        copy = folder / f"{number}.npy"
        with archive.open(member) as packed, copy.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked, 1 << 20)
    with copy.open("rb") as file:
        return stored_array(copy, file, copy.stat().st_size, spool)


def read_safetensors(path: Path) -> Content:
    """The tensors of a ``.safetensors`` file; the package checks the header, offsets are read here.

    Format: eight bytes of length, a JSON header with ``data_offsets``, the tensors' bytes.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np"):  # refuses a header that does not fit the file
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    columns = {}
    for name, tensor in header.items():
        if tensor["dtype"] not in _SAFETENSORS_TYPES:
            raise DataError(
                f"`{name}` is {tensor['dtype']}, which NumPy does not know",
                where=str(path),
                do="save it as F32 or F16",
            )
        dtype = np.dtype(_SAFETENSORS_TYPES[tensor["dtype"]])
        offset = 8 + length + tensor["data_offsets"][0]
        columns[name] = StoredRows(path, offset, tuple(tensor["shape"]), dtype)
    return Content(columns)
