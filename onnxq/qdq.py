"""Q and DQ, the nodes between real values and integers: how every stage reads them."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

__all__ = [
    "DEQUANTIZE",
    "QDQ",
    "QUANTIZE",
    "dequantizer",
    "quantized_type",
    "stored_integers",
    "stored_type",
]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
QDQ = frozenset({QUANTIZE, DEQUANTIZE})
_FOUR_BITS = frozenset({ir.DataType.INT4, ir.DataType.UINT4})


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
    """The constant integers that a DQ takes, in their own 8 bits or more; None if they are computed
    at run time. Those of 4 bits, be it before a Cast or not, are held in int8 (uint4 in uint8)."""
    source = _stored(dq)
    tensor = ir.convenience.get_const_tensor(source) if source is not None else None
    if source is None or tensor is None:
        return None
    if tensor.dtype in _FOUR_BITS:
        return tensor.numpy().astype(np.int8 if tensor.dtype == ir.DataType.INT4 else np.uint8)
    return tensor.numpy()


def stored_type(dq: ir.Node) -> str:
    """Integer type in which a file stores what a DQ takes: ``int4`` before a Cast to int8 too."""
    source = _stored(dq)
    if source is None or source is dq.inputs[0] or source.dtype is None:
        return quantized_type(dq)
    return source.dtype.name.lower()


def _stored(dq: ir.Node) -> ir.Value | None:
    """What a DQ takes; of 4-bit constants that a Cast widens, what goes into the Cast."""
    value = dq.inputs[0]
    cast = value.producer() if value is not None else None
    if cast is None or cast.op_type != "Cast" or cast.inputs[0] is None:
        return value
    source = cast.inputs[0]
    return source if ir.convenience.get_const_tensor(source) is not None else value
