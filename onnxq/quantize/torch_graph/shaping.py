"""Operators that change the shape of a tensor and no value, and those that speak of shapes."""

import math

import numpy as np
import onnx
import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, integers, operator
from onnxq.quantize.torch_graph.types import as_tensor, held


@operator("Reshape")
def _reshape(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Zero copies the dimension of the input, unless allowzero."""
    wanted = integers(shape)
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    if -1 in wanted:
        rest = math.prod(n for n in wanted if n != -1)
        wanted[wanted.index(-1)] = x.numel() // rest if rest else 0
    return x.reshape(wanted)


@operator("Flatten")
def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm") or list(range(x.dim()))[::-1])


@operator("Squeeze")
def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    removed = {axis % x.dim() for axis in integers(axes)}
    if any(x.shape[axis] != 1 for axis in removed):
        raise call.refused(f"it squeezes {sorted(removed)} of the shape {list(x.shape)}")
    return x.reshape([n for i, n in enumerate(x.shape) if i not in removed])


@operator("Unsqueeze")
def _unsqueeze(call: Call, x: Tensor, axes: Tensor) -> Tensor:
    rank = x.dim() + axes.numel()
    new = {axis % rank for axis in integers(axes)}
    old = iter(x.shape)
    return x.reshape([1 if i in new else next(old) for i in range(rank)])


@operator("Expand")
def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Broadcast both ways: a dimension of the shape may be one."""
    wanted = integers(shape)
    rank = max(x.dim(), len(wanted))
    old, new = ([1] * (rank - len(dims)) + list(dims) for dims in (x.shape, wanted))
    return x.expand([o if n == 1 else n for o, n in zip(old, new, strict=True)])


@operator("Tile")
def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(integers(repeats))


@operator("Concat")
def _concat(call: Call, *tensors: Tensor) -> Tensor:
    return torch.cat(tensors, call.get("axis"))


@operator("Split")
def _split(call: Call, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """Without sizes, equal parts; the last is smaller where num_outputs does not divide."""
    axis = call.get("axis", 0)
    if sizes is not None:
        return torch.split(x, integers(sizes), axis)
    parts = call.get("num_outputs", len(call.output_types))
    size = -(-x.shape[axis] // parts)
    rest = x.shape[axis] - size * (parts - 1)
    return torch.split(x, [size] * (parts - 1) + [rest], axis)


@operator("DepthToSpace")
def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    if call.only("mode", "DCR", ("DCR", "CRD")) == "DCR":
        moved = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        moved = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return moved.reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth")
def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    b = call.get("blocksize")
    moved = x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4)
    return moved.reshape(n, c * b**2, h // b, w // b)


@operator("Shape")
def _shape(call: Call, x: Tensor) -> Tensor:
    part = list(x.shape)[call.get("start", 0) : call.get("end")]
    return torch.tensor(part, dtype=torch.int64, device=x.device)


@operator("Size")
def _size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64, device=x.device)


@operator("ConstantOfShape")
def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    proto = call.get("value")
    array = np.zeros(1, np.float32) if proto is None else onnx.numpy_helper.to_array(proto)
    type_ = onnx.TensorProto.FLOAT if proto is None else proto.data_type
    return as_tensor(array, type_, call.where).to(shape.device).expand(integers(shape)).clone()


@operator("Range")
def _range(call: Call, start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """``ceil((limit - start) / step)`` numbers, none if that is negative."""
    count = max(math.ceil((limit.item() - start.item()) / step.item()), 0)
    return start + torch.arange(count, device=start.device).to(start.dtype) * step


@operator("EyeLike")
def _eye_like(call: Call, x: Tensor) -> Tensor:
    dtype = held(call.output_types[0], call.where)
    ones = torch.ones(x.shape, dtype=torch.float32, device=x.device)
    diagonal = call.get("k", 0)
    return (torch.tril(torch.triu(ones, diagonal), diagonal)).to(dtype)


@operator("Trilu")
def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else integers(k)[0]
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


@operator("CenterCropPad")
def _center_crop_pad(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    """Cut or filled with zeros on both sides; the odd one is at the end."""
    sizes = integers(shape)
    for axis, size in zip(call.get("axes") or range(x.dim()), sizes, strict=True):
        more = size - x.shape[axis]
        before = more // 2 if more > 0 else -(-more // 2)
        pads = [0, 0] * x.dim()
        place = 2 * (x.dim() - 1 - axis % x.dim())
        pads[place : place + 2] = [before, more - before]
        x = torch.nn.functional.pad(x, pads)
    return x
