"""A QuantizeLinear and the DequantizeLinear behind it as one step: the same numbers, less memory.

Training spends its time on whole activations, so each pass over one counts. Forwards a pair is one
new tensor that is divided, rounded, cut and multiplied in place; backwards one pass (of a scale
that learns: four more). Nothing is kept but what was rounded, and for a scale the result.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from onnxq.quantize.torch_graph.fake_quant import dequantized, quantized, spread
from onnxq.quantize.torch_graph.registry import Call, Computation, Step
from onnxq.quantize.torch_graph.types import BOUNDS

__all__ = ["with_pairs"]


def with_pairs(steps: Sequence[Step], outputs: Collection[str]) -> tuple[Step, ...]:
    """The steps with every Q whose codes only DQs of its own grid take made one with them.

    Codes that are among ``outputs``, or that another operator takes, are computed as before.
    """
    takers = defaultdict(list)
    for step in steps:
        for name in step.inputs:
            takers[name].append(step)
    makers = {
        step.outputs[0]: step
        for step in steps
        if step.call.op_type == "QuantizeLinear"
        and step.call.get("saturate", 1) == 1
        and step.outputs[0] not in outputs
        and takers[step.outputs[0]]
        and all(_reverses(other, step) for other in takers[step.outputs[0]])
    }
    first: dict[str, str] = {}
    kept = []
    for step in steps:
        codes = step.inputs[0] if step.inputs else ""
        if step.outputs[0] in makers:
            continue
        if codes not in makers:
            kept.append(step)
        elif codes in first:
            kept.append(replace(step, computation=_same, inputs=(first[codes],)))
        else:
            quantize, first[codes] = makers[codes], step.outputs[0]
            whole = replace(step.call, input_types=quantize.call.input_types)
            kept.append(
                replace(
                    step,
                    call=whole,
                    computation=_pair(quantize.call, step.call),
                    inputs=quantize.inputs,
                )
            )
    return tuple(kept)


def _reverses(step: Step, quantize: Step) -> bool:
    """Whether a step is the DQ of a Q's own scale and zero point."""
    own = [quantize.call.get(key, default) for key, default in (("axis", 1), ("block_size", 0))]
    return (
        step.call.op_type == "DequantizeLinear"
        and step.inputs[1:] == quantize.inputs[1:]
        and step.inputs[0] == quantize.outputs[0]
        and [step.call.get("axis", 1), step.call.get("block_size", 0)] == own
    )


def _same(call: Call, x: Tensor) -> Tensor:
    return x


def _pair(first: Call, second: Call) -> Computation:
    def there_and_back(
        call: Call, x: Tensor, scale: Tensor, zero_point: Tensor | None = None
    ) -> Tensor:
        if x.dtype != scale.dtype or x.dtype not in (torch.float32, torch.float64):
            return dequantized(second, quantized(first, x, scale, zero_point), scale, zero_point)
        offset = torch.zeros_like(scale) if zero_point is None else zero_point
        low, high = BOUNDS[first.output_types[0]]
        result: Tensor = _ThereAndBack.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            x, spread(first, scale, x), *_ends(spread(first, offset, x), low, high)
        )
        return result

    return there_and_back


def _ends(offset: Tensor, low: int, high: int) -> tuple[float, float] | tuple[Tensor, Tensor]:
    """Lowest and highest code, less the zero point; numbers where that is the same for all."""
    points = offset.reshape(-1)
    if offset.numel() == 1 or bool((points == points[0]).all()):
        return low - float(points[0]), high - float(points[0])
    wide = offset.to(torch.float64)
    return low - wide, high - wide


class _ThereAndBack(torch.autograd.Function):
    """x, scale (of a shape that broadcasts), lowest and highest step -> rounded x.

    The gradients are those of ``fake_quant``: none outside the grid's bounds; a scale has LSQ's.
    """

    @staticmethod
    def forward(ctx: Any, *given: Any) -> Tensor:
        x, scale, low, high = given
        ctx.ends = low, high
        if isinstance(low, Tensor):
            low, high = low.to(x.dtype), high.to(x.dtype)
        rounded = torch.div(x, scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, scale, rounded if ctx.needs_input_grad[1] else None)
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """A scale's is ``(rounded x - x inside) / scale``: LSQ's, but for float32's last bits."""
        (gradient,) = gradients
        x, scale, rounded = ctx.saved_tensors
        passed = _inside(gradient, x, scale, ctx.ends) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return passed, None, None, None
        moved = _inside(x, x, scale, ctx.ends)
        torch.sub(rounded, moved, out=moved).mul_(gradient)
        return passed, moved.sum_to_size(scale.shape) / scale, None, None


def _inside(values: Tensor, x: Tensor, scale: Tensor, ends: tuple[Any, Any]) -> Tensor:
    """``values`` where ``x`` is inside the grid's bounds, else zero."""
    low, high = ends
    if scale.dim() == 0 and not isinstance(low, Tensor):
        step = float(scale.detach())
        return torch.ops.aten.hardtanh_backward(values, x, low * step, high * step)  # type: ignore[no-any-return]
    return torch.where((x > low * scale) & (x < high * scale), values, 0)
