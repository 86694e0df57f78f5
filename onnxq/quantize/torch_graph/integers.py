"""The integer kernels of ONNX Runtime's CPU, code for code: what becomes of DQ, operator and Q.

Products are summed exactly, as integers in float64; what follows is float32, in the order of the
kernels, since there a product next to the middle between two codes falls to one side or the other:

- Conv, Gemm, MatMul, GlobalAveragePool: ``round(clamp(float(sum) * m)) + zero``, where m is
  ``a * b / y`` of the scales (of the pool ``a / (y * count)``)
- Add: ``round(zero + (codes * ratios - zeros * ratios))``, by fused multiply-adds
- Mul: ``round(float(product) * m + zero)``; the middle is rounded with the zero point added
- AveragePool: real values added up in the order of the window, then as Mul
- Softmax: a table of 256 exponentials; divided by the sum, times ``floor(1 / y)``

Every other operator gives the same codes from real values in float32 as on integers, or has no
integer kernel. Source: onnxruntime 1.31, ``qlinearconv.cc``, ``quant_gemm.cc``,
``qlinear_matmul.cc``, ``matmul_integer_to_float``, ``qladd_avx2.cpp``, ``qlmul.cpp``,
``qlgavgpool.cpp``, ``qlinear_pool.cc``, ``qlinear_softmax.cc``; ``qladd.cpp`` and
``qlgavgpool.cpp`` round in fixed point on ARM, which this does not follow.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from onnxq.quantize.torch_graph.convolution import conv
from onnxq.quantize.torch_graph.fake_quant import spread
from onnxq.quantize.torch_graph.pooling import window_elements
from onnxq.quantize.torch_graph.registry import Call
from onnxq.quantize.torch_graph.types import BOUNDS

__all__ = ["KERNELS", "Grid", "Operand", "quantized_bias"]

_FLOAT32 = torch.float32
_SOFTMAX_RESERVE = 5  # of the logarithm of the largest float32, that a table's sum stays below


@dataclass(frozen=True)
class Grid:
    """Scale, zero point and ONNX element type of a quantized tensor.

    ``shift`` is added to codes and zero point first: 128 where int8 is turned into uint8 at load.
    """

    scale: Tensor
    zero: Tensor
    type: int
    shift: int = 0

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest code, shifted."""
        low, high = BOUNDS[self.type]
        return low + self.shift, high + self.shift

    @property
    def zero_number(self) -> float:
        """The one zero point, shifted."""
        return float(self.zero.reshape(-1)[0]) + self.shift

    def entered(self, codes: Tensor) -> Tensor:
        """Codes that were computed shifted, as the graph has them."""
        return codes - self.shift


@dataclass(frozen=True)
class Operand:
    """Codes with their grid; ``call`` is the DequantizeLinear that reads them."""

    codes: Tensor
    grid: Grid
    call: Call

    def centred(self) -> Tensor:
        """Codes less zero point, in float64."""
        zero = spread(self.call, self.grid.zero, self.codes).to(torch.float64)
        return self.codes.to(torch.float64) - zero

    def shifted(self) -> Tensor:
        """Codes as the kernel has them, in float32."""
        return self.codes.to(_FLOAT32) + self.grid.shift


Kernel = Callable[[Call, list[Operand], Tensor | None, Grid | None], Tensor]


def quantized_bias(bias: Tensor, data: Operand, weight: Operand) -> Tensor:
    """Integers of a float bias, as they are made at load: of the scales of data times weight."""
    return torch.round(bias / (data.grid.scale.reshape(()) * weight.grid.scale.reshape(-1)))


def _requantized(total: Tensor, multiplier: Tensor, grid: Grid) -> Tensor:
    (low, high), zero = grid.ends, grid.zero_number
    steps = torch.clamp(total.to(_FLOAT32) * multiplier, low - zero, high - zero)
    return grid.entered(torch.round(steps) + zero)


def _saturated(shifted: Tensor, grid: Grid) -> Tensor:
    """Codes of values to which the zero point was added before they are rounded."""
    return grid.entered(torch.clamp(torch.round(shifted), *grid.ends))


def _given(grid: Grid | None) -> Grid:
    if grid is None:
        raise ValueError("this kernel makes integers alone")
    return grid


def _conv(call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None) -> Tensor:
    data, weight = operands
    grid = _given(grid)
    total = conv(call, data.centred(), weight.centred())
    channels = [-1, *[1] * (total.dim() - 2)]
    if bias is not None:
        total = total + bias.to(torch.float64).reshape(channels)
    scales = weight.grid.scale.reshape(channels)
    return _requantized(total, data.grid.scale * scales / grid.scale, grid)


def _matmul(call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None) -> Tensor:
    """MatMul and Gemm: by columns. Without a grid behind it, in float."""
    left, right = (operand.centred() for operand in operands)
    left = left.transpose(-1, -2) if call.get("transA", 0) else left
    right = right.transpose(-1, -2) if call.get("transB", 0) else right
    total = torch.matmul(left, right)
    if bias is not None:
        total = total + bias.to(torch.float64)
    scales = [operand.grid.scale.reshape(-1) for operand in operands]
    multiplier = scales[0] * call.get("alpha", 1.0) * scales[1]
    if grid is None:
        real: Tensor = total.to(_FLOAT32) * multiplier
        return real
    return _requantized(total, multiplier / grid.scale, grid)


def _added(product: Tensor, factor: Tensor, term: Tensor) -> Tensor:
    """A fused multiply-add of float32: rounded once."""
    return (product.double() * factor.double() + term.double()).to(_FLOAT32)


def _add(call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None) -> Tensor:
    """What is broadcast along the innermost axis comes second, whichever it is."""
    grid = _given(grid)
    first, second = operands
    if _is_single(first.codes, second.codes):
        first, second = second, first
    ratios = [operand.grid.scale.reshape(()) / grid.scale for operand in (first, second)]
    zeros = [torch.tensor(o.grid.zero_number, dtype=_FLOAT32) for o in (first, second)]
    fixed = grid.zero_number - _added(zeros[0], ratios[0], ratios[1] * zeros[1])
    return _saturated(
        _added(first.shifted(), ratios[0], _added(second.shifted(), ratios[1], fixed)), grid
    )


def _is_single(codes: Tensor, others: Tensor) -> bool:
    """Whether one number stands against many along the innermost axis of their sum."""
    rank = max(codes.dim(), others.dim())
    shapes = [[1] * (rank - tensor.dim()) + list(tensor.shape) for tensor in (codes, others)]
    pairs = [pair for pair in zip(*shapes, strict=True) if max(pair) > 1]
    return bool(pairs) and pairs[-1][0] == 1


def _mul(call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None) -> Tensor:
    grid = _given(grid)
    left, right = operands
    product = (left.centred() * right.centred()).to(_FLOAT32)
    multiplier = left.grid.scale.reshape(()) * right.grid.scale.reshape(()) / grid.scale
    return _saturated(product * multiplier + grid.zero_number, grid)


def _global_average_pool(
    call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None
) -> Tensor:
    grid, (data,) = _given(grid), operands
    centred = data.centred()
    axes = list(range(2, centred.dim()))
    count = float(centred[0, 0].numel())
    multiplier = data.grid.scale.reshape(()) / (grid.scale * count)
    return _requantized(centred.sum(axes, keepdim=True), multiplier, grid)


def _average_pool(
    call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None
) -> Tensor:
    grid, (data,) = _given(grid), operands
    values = data.centred().to(_FLOAT32) * data.grid.scale.reshape(())
    elements, counts = window_elements(call, values)
    total = torch.zeros_like(elements[..., 0])
    for place in range(elements.shape[-1]):
        total = total + elements[..., place]
    return _saturated(total / counts / grid.scale + grid.zero_number, grid)


def _softmax(call: Call, operands: list[Operand], bias: Tensor | None, grid: Grid | None) -> Tensor:
    grid, (data,) = _given(grid), operands
    codes = data.codes.movedim(call.get("axis", -1), -1).to(torch.int64)
    scale = float(data.grid.scale)
    room = float(np.log(np.finfo(np.float32).max / np.float32(codes.shape[-1])))
    lift = max(0.0, room - _SOFTMAX_RESERVE) / scale
    places = torch.arange(-255, 1, dtype=torch.float64)
    table = torch.exp((places + lift) * scale).to(_FLOAT32)
    powers = table[255 + codes - codes.amax(-1, keepdim=True)]
    total = torch.zeros_like(powers[..., 0])
    for place in range(powers.shape[-1]):
        total = total + powers[..., place]
    steps = torch.round(powers * torch.floor(1 / grid.scale.reshape(())) / total[..., None])
    return _saturated(steps + grid.zero_number, grid).movedim(-1, call.get("axis", -1))


KERNELS: dict[str, Kernel] = {
    "Add": _add,
    "AveragePool": _average_pool,
    "Conv": _conv,
    "Gemm": _matmul,
    "GlobalAveragePool": _global_average_pool,
    "MatMul": _matmul,
    "Mul": _mul,
    "Softmax": _softmax,
}
