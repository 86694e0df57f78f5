"""Arithmetic, comparison and logic, element by element, with numpy's broadcasting."""

from collections.abc import Callable
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.quantize.torch_graph.registry import Call, operator
from onnxq.quantize.torch_graph.types import BOUNDS, held, is_carried

_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Det": torch.linalg.det,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # half to even, as ONNX
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}
_TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}
_MANY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Mean": torch.add,
    "Min": torch.minimum,
    "Sum": torch.add,
}


@operator(*_ONE)
def _one(call: Call, x: Tensor) -> Tensor:
    return _ONE[call.op_type](x)


@operator(*_TWO)
def _two(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return _TWO[call.op_type](a, b)


@operator(*_MANY)
def _many(call: Call, *tensors: Tensor) -> Tensor:
    result = reduce(_MANY[call.op_type], tensors)
    return result / len(tensors) if call.op_type == "Mean" else result


@operator("Div")
def _div(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided towards zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Mod")
def _mod(call: Call, a: Tensor, b: Tensor) -> Tensor:
    """With fmod the sign is that of the dividend, else that of the divisor."""
    if call.get("fmod", 0):
        return torch.fmod(a, b)
    if a.is_floating_point():
        raise call.refused("Mod of floating point numbers without fmod, which ONNX forbids")
    return torch.remainder(a, b)


@operator("Pow")
def _pow(call: Call, base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base; mixed types are raised in the wider."""
    if base.is_floating_point() == exponent.is_floating_point():
        return torch.pow(base, exponent).to(base.dtype)
    if base.is_floating_point():
        return torch.pow(base, exponent)
    return torch.pow(base.double(), exponent.double()).to(base.dtype)


@operator("BitShift")
def _bit_shift(call: Call, a: Tensor, b: Tensor) -> Tensor:
    if call.only("direction", "", ("LEFT", "RIGHT")) == "LEFT":
        return torch.bitwise_left_shift(a, b)
    return torch.bitwise_right_shift(a, b)


@operator("Where")
def _where(call: Call, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@operator("IsInf")
def _is_inf(call: Call, x: Tensor) -> Tensor:
    found = torch.zeros_like(x, dtype=torch.bool)
    if call.get("detect_positive", 1):
        found = found | torch.isposinf(x)
    if call.get("detect_negative", 1):
        found = found | torch.isneginf(x)
    return found


@operator("Clip")
def _clip(call: Call, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Where low is above high, high wins, as in ONNX."""
    if x.is_floating_point() and low is not None and high is not None:
        ends = None if low.requires_grad or high.requires_grad else (float(low), float(high))
        if ends is not None and ends[0] <= ends[1]:
            return functional.hardtanh(x, *ends)  # one pass each way, where others take many
    if low is not None:
        x = torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


@operator("Cast", "CastLike")
def _cast(call: Call, x: Tensor, like: Tensor | None = None) -> Tensor:
    """Codes held in floating point keep their gradient where the new type holds all of them."""
    source, target = call.input_types[0], call.output_types[0]
    dtype = held(target, call.where)
    if is_carried(x, source):
        if target in BOUNDS and not _holds(target, source):
            return x.to(held(source, call.where)).to(dtype)
        return x if target in BOUNDS else x.to(dtype)
    if x.is_floating_point() and target in BOUNDS:
        return x.to(torch.int64).to(dtype)  # towards zero, then modulo: never an undefined cast
    return x.to(dtype)


def _holds(target: int, source: int) -> bool:
    (low, high), (least, most) = BOUNDS[target], BOUNDS[source]
    return low <= least and most <= high


@operator("Dropout")
def _dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Inference alone."""
    if training is not None and bool(training):
        raise call.refused("Dropout in training mode", "export the network in evaluation mode")
    return x, torch.ones_like(x, dtype=torch.bool)
