"""Bytes of a model, counted from its files and never from a parameter count."""

import zlib
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from onnxq.artifacts import SizeLine

__all__ = ["external_files", "size_lines"]

_PIECE = 1 << 20


def size_lines(fp32: Path, int8: Path) -> tuple[SizeLine, ...]:
    """Constants alone, the files, and the files compressed, of both models.

    Constants of 4 bits count two a byte; a file that holds weights beside the model counts with it.
    """
    rows = (
        ("constants (weights, biases, scales)", _constants_in),
        ("file", lambda path: sum(file.stat().st_size for file in _files_of(path))),
        ("file, compressed (zlib 9)", lambda path: sum(map(_compressed, _files_of(path)))),
    )
    return tuple(
        SizeLine(what=what, fp32_bytes=count(fp32), int8_bytes=count(int8)) for what, count in rows
    )


def external_files(model: Path) -> tuple[str, ...]:
    """Paths, relative to the model's folder, of the files beside it that hold its weights."""
    tensors = onnx.load(model, load_external_data=False).graph.initializer
    names = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(names))


def _constants_in(path: Path) -> int:
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    bits = (
        int(np.prod(tensor.dims, dtype=np.int64)) * ir.DataType(tensor.data_type).bitwidth
        for tensor in tensors
    )
    return sum((count + 7) // 8 for count in bits)


def _files_of(path: Path) -> list[Path]:
    return [path, *(path.parent / name for name in external_files(path))]


def _compressed(path: Path) -> int:
    packer, total = zlib.compressobj(9), 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            total += len(packer.compress(piece))
    return total + len(packer.flush())
