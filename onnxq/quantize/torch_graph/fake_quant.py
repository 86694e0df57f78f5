"""QuantizeLinear and DequantizeLinear, with gradients that pass through the rounding.

Codes are computed as ONNX says (divide, round half to even, add the zero point, saturate) and held
in floating point. Backwards, values inside the grid have the gradient of ``x / scale``, values
outside none; with what DequantizeLinear adds, the gradient of a scale is that of LSQ: ``round(v) -
v`` inside, the bound outside, ``v = x / scale`` (Esser et al. 2020, arXiv 1902.08153, equation 3).
LSQ's factor on that gradient is the business of who trains.
"""

from typing import Any

import onnx
import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, operator
from onnxq.quantize.torch_graph.types import BOUNDS

__all__ = ["dequantized", "quantized", "spread"]


class _Rounding(torch.autograd.Function):
    """x, scale and zero point (of shapes that broadcast), lowest and highest code -> codes."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        x, scale, zero_point, low, high = given
        steps = x / scale
        ctx.save_for_backward(steps, scale, zero_point)
        ctx.bounds = low, high
        wide = torch.float64 if steps.dtype == torch.float64 else torch.float32
        return torch.clamp(torch.round(steps).to(wide) + zero_point.to(wide), low, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        steps, scale, zero_point = ctx.saved_tensors
        low, high = ctx.bounds
        offset = zero_point.to(steps.dtype)
        inside = (steps > low - offset) & (steps < high - offset)
        passed = torch.where(inside, gradients[0].to(steps.dtype) / scale, 0)
        of_x = passed if ctx.needs_input_grad[0] else None
        of_scale = (-passed * steps).sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None
        return of_x, of_scale, None, None, None


@operator("QuantizeLinear")
def quantized(call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Tensor:
    """``saturate(round_half_even(x / scale) + zero_point)``, held in floating point."""
    low, high = BOUNDS[call.output_types[0]]
    x = x if x.is_floating_point() else x.to(scale.dtype)
    if call.get("saturate", 1) != 1:
        raise call.refused("saturate = 0, which is of 8-bit floating point")
    offset = torch.zeros_like(scale) if zero_point is None else zero_point
    codes: Tensor = _Rounding.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        x, spread(call, scale, x), spread(call, offset, x), low, high
    )
    return codes


@operator("DequantizeLinear")
def dequantized(
    call: Call, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None
) -> Tensor:
    """``(codes - zero_point) * scale``, in float32 unless the scale is double."""
    wide = torch.float64 if scale.dtype == torch.float64 else torch.float32
    values = codes.to(wide)
    if zero_point is not None:
        values = values - spread(call, zero_point, codes).to(wide)
    return (values * spread(call, scale, codes).to(wide)).to(scale.dtype)


def spread(call: Call, parameter: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point in a shape that broadcasts: per tensor, per axis or per block."""
    axis, block = call.get("axis", 1), call.get("block_size", 0)
    if block:
        axis = axis % x.dim()
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.numel() == 1 and parameter.dim() < 2:
        return parameter.reshape(())
    if parameter.dim() != 1:
        raise call.refused("scales of more than one axis without block_size")
    return parameter.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


@operator("DynamicQuantizeLinear")
def _dynamic(call: Call, x: Tensor) -> tuple[Tensor, ...]:
    """Codes, scale and zero point of the range of ``x``, widened to zero.

    Source: the equations of DynamicQuantizeLinear in the ONNX operator specification.
    """
    low, high = BOUNDS[onnx.TensorProto.UINT8]
    least, most = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (most - least) / (high - low)
    safe = torch.where(scale == 0, 1, scale)
    zero_point = torch.clamp(torch.round(low - least / safe), low, high).detach()
    codes: Tensor = _Rounding.apply(x, safe, zero_point, low, high)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return codes, scale, zero_point.to(torch.uint8)
