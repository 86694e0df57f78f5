"""Q and DQ, the nodes between real values and integers: how every stage reads them."""

import onnx_ir as ir

__all__ = ["DEQUANTIZE", "QDQ", "QUANTIZE", "dequantizer", "quantized_type"]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
QDQ = frozenset({QUANTIZE, DEQUANTIZE})


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
