"""Q and DQ, the nodes between real values and integers: how every stage reads them."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

__all__ = [
    "DEQUANTIZE",
    "QDQ",
    "QUANTIZE",
    "dequantizer",
    "is_folded_at_load",
    "packed_integers",
    "quantized_type",
    "stored_integers",
    "stored_type",
]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
QDQ = frozenset({QUANTIZE, DEQUANTIZE})
_HELD_IN = {ir.DataType.INT4: np.int8, ir.DataType.UINT4: np.uint8}
_UNPACKING = frozenset({"Cast", "Mul", "Reshape"})  # what makes 8-bit weights of packed ones


def dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that ``value`` comes from."""
    producer = value.producer() if value is not None else None
    return producer if producer is not None and producer.op_type == DEQUANTIZE else None


def quantized_type(node: ir.Node) -> str:
    """Integer type that a Q makes or a DQ takes, as ``int8``; ONNX's default is uint8."""
    if node.op_type == DEQUANTIZE:
        taken = node.inputs[0].dtype if node.inputs[0] is not None else None
    else:
        taken = node.outputs[0].dtype
    if taken is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        taken = node.inputs[2].dtype
    return "uint8" if taken is None else taken.name.lower()


def stored_integers(dq: ir.Node) -> Shaped[np.ndarray, "..."] | None:
    """The constant integers that a DQ takes; None if they are computed at run time.

    Those that a file stores in 4 bits are unpacked as it says: by a Cast, and by a Mul and a
    Reshape where blocks have multipliers. Without a Cast they are held in int8 (uint4 in uint8).
    """
    return _evaluated(dq.inputs[0])


def stored_type(dq: ir.Node) -> str:
    """Integer type in which a file stores what a DQ takes: ``int4`` before a Cast to int8 too."""
    value = _packed(dq)
    if value is None or value is dq.inputs[0] or value.dtype is None:
        return quantized_type(dq)
    return value.dtype.name.lower()


def packed_integers(dq: ir.Node) -> Shaped[np.ndarray, "..."] | None:
    """The constant integers as a file stores them, without their blocks' multipliers; those of 4
    bits held in int8 or uint8. None if they are computed at run time."""
    return _evaluated(_packed(dq))


def _packed(dq: ir.Node) -> ir.Value | None:
    """What is unpacked to what a DQ takes."""
    value = dq.inputs[0]
    while value is not None and (maker := value.producer()) is not None:
        if not is_folded_at_load(maker):
            break
        value = maker.inputs[0]
    return value


def is_folded_at_load(node: ir.Node) -> bool:
    """Whether a node unpacks constants: a Cast, Mul or Reshape of constants alone."""
    return node.op_type in _UNPACKING and all(
        ir.convenience.get_const_tensor(value) is not None
        or ((maker := value.producer()) is not None and is_folded_at_load(maker))
        for value in node.inputs
        if value is not None
    )


def _evaluated(value: ir.Value | None) -> Shaped[np.ndarray, "..."] | None:
    """A constant, or what a node that unpacks constants makes of them."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is not None:
        array = tensor.numpy()
        return array.astype(_HELD_IN[tensor.dtype]) if tensor.dtype in _HELD_IN else array
    node = value.producer() if value is not None else None
    if node is None or not is_folded_at_load(node):
        return None
    first, second = (*(_evaluated(each) for each in node.inputs), None)[:2]
    if first is not None and node.op_type == "Cast":
        return first.astype(ir.DataType(node.attributes.get_int("to", 0)).numpy())
    if first is None or second is None:
        return None
    return first * second if node.op_type == "Mul" else first.reshape(second.tolist())
