"""How tensors of ONNX's element types are held in torch while a graph runs.

torch computes little in uint16, uint32 and uint64: they are held as int64, 4-bit integers as int8.
What QuantizeLinear makes is held in floating point, so that gradients pass; it is turned into
integers where somebody other than DequantizeLinear and operators that move values looks at it.
"""

import numpy as np
import onnx
import torch
from jaxtyping import Shaped
from torch import Tensor

from onnxq.errors import DataError, ModelError

__all__ = [
    "BOUNDS",
    "KNOWN_TYPES",
    "as_tensor",
    "delivered",
    "held",
    "is_carried",
    "landed",
    "wrapped",
]

_T = onnx.TensorProto
_FLOATS: dict[int, torch.dtype] = {
    _T.FLOAT: torch.float32,
    _T.DOUBLE: torch.float64,
    _T.FLOAT16: torch.float16,
    _T.BFLOAT16: torch.bfloat16,
}
_HELD: dict[int, torch.dtype] = _FLOATS | {
    _T.BOOL: torch.bool,
    _T.INT4: torch.int8,
    _T.UINT4: torch.int8,
    _T.INT8: torch.int8,
    _T.UINT8: torch.uint8,
    _T.INT16: torch.int16,
    _T.UINT16: torch.int64,
    _T.INT32: torch.int32,
    _T.UINT32: torch.int64,
    _T.INT64: torch.int64,
    _T.UINT64: torch.int64,
}
_DELIVERED: dict[int, torch.dtype] = _HELD | {
    _T.UINT4: torch.uint8,
    _T.UINT16: torch.uint16,
    _T.UINT32: torch.uint32,
    _T.UINT64: torch.uint64,
}
KNOWN_TYPES = frozenset(int(type_) for type_ in _HELD)
_BITS: dict[int, int] = {
    _T.INT4: 4, _T.UINT4: 4, _T.INT8: 8, _T.UINT8: 8, _T.INT16: 16, _T.UINT16: 16,
    _T.INT32: 32, _T.UINT32: 32, _T.INT64: 64, _T.UINT64: 64,
}  # fmt: skip
_UNSIGNED = frozenset({_T.UINT4, _T.UINT8, _T.UINT16, _T.UINT32, _T.UINT64})
BOUNDS: dict[int, tuple[int, int]] = {
    type_: (0, 2**bits - 1) if type_ in _UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for type_, bits in _BITS.items()
}


def held(type_: int, where: str) -> torch.dtype:
    """The torch type in which tensors of an ONNX element type are computed. Raises ModelError."""
    if type_ in _HELD:
        return _HELD[type_]
    name = _T.DataType.Name(type_).lower()
    raise ModelError(
        f"tensors of type {name} are not computed in torch",
        where=where,
        do="keep the part of the graph that makes such tensors out of this step",
    )


def is_carried(tensor: Tensor, type_: int) -> bool:
    """Whether integers of a graph are held in floating point, with their gradient."""
    return type_ in _BITS and tensor.is_floating_point()


def landed(tensor: Tensor, type_: int, where: str) -> Tensor:
    """Integers held in floating point, as integers; anything else unchanged."""
    return tensor.to(held(type_, where)) if is_carried(tensor, type_) else tensor


def wrapped(tensor: Tensor, type_: int, where: str) -> Tensor:
    """What integer arithmetic gives in types that torch holds in wider ones: modulo 2**bits.

    Raises DataError where a uint64 does not fit into the int64 that holds it.
    """
    if type_ in (_T.UINT16, _T.UINT32):
        return torch.bitwise_and(tensor, BOUNDS[type_][1])
    if type_ == _T.UINT4:
        return tensor & 15
    if type_ == _T.INT4:
        return ((tensor + 8) & 15) - 8
    if type_ == _T.UINT64 and bool((tensor < 0).any()):
        raise DataError(
            "a uint64 of 2**63 or more", where=where, do="use int64: torch holds uint64 in it"
        )
    return tensor


def delivered(tensor: Tensor, type_: int) -> Tensor:
    """A tensor as a caller expects it: integers in torch's type of that name (uint4 as uint8)."""
    return tensor.to(_DELIVERED[type_]) if type_ in _BITS else tensor


def as_tensor(array: Shaped[np.ndarray, "..."], type_: int, where: str) -> Shaped[Tensor, "..."]:
    """A constant of the graph as torch holds it. Raises ModelError or DataError."""
    dtype = held(type_, where)
    if type_ == _T.BFLOAT16:
        array = array.astype(np.float32)
    elif type_ in (_T.INT4, _T.UINT4):
        array = array.astype(np.int8)
    elif type_ in (_T.UINT16, _T.UINT32, _T.UINT64):
        array = array.astype(np.int64)
    return wrapped(torch.from_numpy(np.array(array, order="C")).to(dtype), type_, where)
