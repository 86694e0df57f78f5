"""Rules about the numbers: types, zero points, scales and axes of Q/DQ nodes."""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxq.graph import constant_input, dims_of, output_channel_axis
from onnxq.handoff.subject import (
    Fault,
    Quantized,
    Subject,
    at_node,
    at_value,
    is_constant,
    label_of,
)
from onnxq.qdq import DEQUANTIZE, quantized_type, stored_type
from onnxq.target import TargetRule

__all__ = [
    "activation_types",
    "activations_per_tensor",
    "bias_scale",
    "int4_operators",
    "no_bool_values",
    "no_int8_blocks",
    "weight_axis",
    "weight_types",
    "weights_symmetric",
    "weights_unshared",
]

BIAS_TOLERANCE = 1e-5  # relative
_BIASED = ("Conv", "ConvTranspose", "Gemm")


def activation_types(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Activations, and constants that are no weight and no bias, are of a type in ``values``.

    Only between int8 and uint8 can a file be converted.
    """
    for node in subject.quantizers:
        kind = quantized_type(node)
        if kind not in rule.values:
            yield at_node(node, f"makes {kind}", _mended(kind))
    for value in subject.inputs:
        for node in value.consumers():
            if node.op_type == DEQUANTIZE and quantized_type(node) not in rule.values:
                kind = quantized_type(node)
                yield at_value(value, f"is {kind}", _mended(kind))
    for use in subject.constants:
        kind = quantized_type(use.dequantize)
        if use.role == "operand" and kind not in rule.values:
            yield at_node(use.consumer, f"takes a constant of {kind}", _mended(kind))


def _mended(kind: str) -> str | None:
    """The rule's own step, or none."""
    return "" if kind in ("int8", "uint8") else None


def activations_per_tensor(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Scale and zero point of an activation hold one number each."""
    for node in subject.quantizers:
        scale = constant_input(node, 1)
        if scale is None:
            yield at_node(node, "has a scale that is computed at run time")
        elif scale.size > 1:
            yield at_node(node, f"has {scale.size} scales")


def weight_types(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Weights are of a type in ``values``."""
    for use in _weights(subject):
        kind = stored_type(use.dequantize)
        if kind not in rule.values:
            yield at_node(use.consumer, f"has {kind} weights")


def int4_operators(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """int4 weights are those of the operators in ``values``."""
    for use in _weights(subject):
        if stored_type(use.dequantize) == "int4" and use.consumer.op_type not in rule.values:
            yield at_node(use.consumer, "has int4 weights")


def weights_symmetric(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Zero points of weights: 0 for signed types, all the same for unsigned ones."""
    for use in _weights(subject):
        points = constant_input(use.dequantize, 2)
        if points is None:
            continue
        integers = points.astype(np.int64).reshape(-1)
        if quantized_type(use.dequantize).startswith("u"):
            if np.any(integers != integers[0]):
                yield at_node(use.consumer, "has weights with several zero points")
        elif np.any(integers):
            worst = integers[np.argmax(np.abs(integers))]
            yield at_node(use.consumer, f"has a weight zero point of {worst}")


def weights_unshared(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No two weights take their integers, or their zero point, from one initializer."""
    owners: dict[ir.Value, ir.Node] = {}
    for use in _weights(subject):
        for constant in (use.dequantize.inputs[0], *use.dequantize.inputs[2:]):
            if constant is not None and owners.setdefault(constant, use.dequantize) is not (
                use.dequantize
            ):
                what = f"shares `{constant.name}` with {label_of(owners[constant])}"
                yield at_node(use.consumer, what)


def weight_axis(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The axis of per-channel weight scales is the consumer's output channel."""
    for use in _weights(subject):
        scale = constant_input(use.dequantize, 1)
        rank = len(dims_of(use.dequantize.outputs[0]) or ())
        if scale is None or scale.size < 2 or not rank:
            continue
        axis = use.dequantize.attributes.get_int("axis", 1) % rank
        wanted = output_channel_axis(use.consumer) % rank
        if axis != wanted:
            yield at_node(
                use.consumer,
                f"has weight scales along axis {axis}; its output channel is axis {wanted}",
            )


def bias_scale(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """A bias is int32, zero point 0, scale = input scale × weight scale to 1e-5.

    A float bias is let pass where ``values`` holds ``float``.
    """
    for node in subject.of_type(*_BIASED):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        data = node.inputs[0].producer() if node.inputs[0] is not None else None
        if bias is None or data is None or data.op_type != DEQUANTIZE or not is_constant(bias):
            continue
        source = bias.producer()
        if source is None or source.op_type != DEQUANTIZE:
            if "float" not in rule.values:
                yield at_node(node, "has a float bias")
            continue
        for what in _bias_faults(node, data, source):
            yield at_node(node, what)


def _bias_faults(node: ir.Node, data: ir.Node, bias: ir.Node) -> Iterator[str]:
    if quantized_type(bias) != "int32":
        yield f"has an {quantized_type(bias)} bias"
        return
    points = constant_input(bias, 2)
    if points is not None and np.any(points):
        yield "has a bias zero point other than 0"
    weight = node.inputs[1].producer() if node.inputs[1] is not None else None
    scales = [
        constant_input(source, 1)
        for source in (data, weight, bias)
        if source is not None and source.op_type == DEQUANTIZE
    ]
    if len(scales) < 3 or any(scale is None for scale in scales):
        yield "has a quantized bias beside a float weight"
        return
    s_data, s_weight, s_bias = (np.asarray(scale, np.float64).reshape(-1) for scale in scales)
    if s_bias.size not in (1, s_weight.size) and s_weight.size != 1:
        yield f"has {s_bias.size} bias scales for {s_weight.size} weight scales"
        return
    product = s_data * s_weight
    off = float(np.max(np.abs(s_bias - product) / product))
    if off > BIAS_TOLERANCE:
        yield f"has a bias scale off the product of input and weight scale by {off:.1e}"


def no_int8_blocks(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No 8-bit DequantizeLinear has a ``block_size``."""
    for node in subject.of_type(DEQUANTIZE):
        size = node.attributes.get_int("block_size", 0)
        if size and quantized_type(node) in ("int8", "uint8"):
            yield at_node(node, f"has block_size {size} over {quantized_type(node)}")


def no_bool_values(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No value is bool."""
    for value in subject.values:
        if value.dtype == ir.DataType.BOOL:
            yield at_value(value, "is bool")


def _weights(subject: Subject) -> Iterator[Quantized]:
    return (use for use in subject.constants if use.role == "weight")
