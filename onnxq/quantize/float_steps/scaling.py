"""The weights of a link by channel: how large they are, and multiplied or shifted by channel."""

from typing import Literal

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float64

from onnxq.graph import constant_input, output_channel_axis
from onnxq.quantize.unshare import unused_name

__all__ = [
    "add_to_bias",
    "column_sums",
    "largest_sums",
    "magnitudes",
    "rescaled",
    "set_constant",
]

Side = Literal["outputs", "inputs"]
Array = Float[np.ndarray, "..."]
Channels = Float64[np.ndarray, " channels"]


def _by_channel(node: ir.Node, weight: Array, side: Side) -> Float[np.ndarray, "groups a b k"]:
    """A view of the weight whose axes 0 and 1, or 0 and 2, run over the channels of ``side``.

    (groups, outputs of a group, inputs of a group, kernel) for Conv; for ConvTranspose, Gemm and
    MatMul the same, transposed where their weights are.
    """
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if node.op_type == "ConvTranspose":
        groups = node.attributes.get_int("group", 1)
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        return split.transpose(0, 2, 1, 3)
    outputs_first = weight if output_channel_axis(node) == 0 else weight.T
    return outputs_first[None, :, :, None]


def magnitudes(node: ir.Node, weight: Array, side: Side) -> Channels:
    """The largest magnitude of the weights that make each output channel, or read each input."""
    split = np.abs(_by_channel(node, weight, side))
    largest = split.max((2, 3) if side == "outputs" else (1, 3), initial=0)
    return np.asarray(largest.reshape(-1), np.float64)


def rescaled(node: ir.Node, weight: Array, side: Side, factors: Channels) -> Array:
    """The weight with every channel of ``side`` multiplied by its factor; same shape and type."""
    copy = np.array(weight, order="C")
    split = _by_channel(node, copy, side)  # a view of the copy
    groups = split.shape[0]
    shape = (groups, -1, 1, 1) if side == "outputs" else (groups, 1, -1, 1)
    split *= factors.reshape(shape)
    return copy


def column_sums(node: ir.Node, weight: Array, shift: Float64[np.ndarray, " inputs"]) -> Channels:
    """What the layer gives, by output channel, where every input channel is constant ``shift``.

    Σ over inputs and kernel of weight · shift, without the bias.
    """
    split = _by_channel(node, weight.astype(np.float64), "inputs")
    by_group = shift.reshape(split.shape[0], 1, -1, 1)
    return np.asarray((split * by_group).sum((2, 3)).reshape(-1), np.float64)


def largest_sums(
    node: ir.Node,
    weight: Array,
    low: Float64[np.ndarray, " #inputs"],
    high: Float64[np.ndarray, " #inputs"],
) -> Channels:
    """The most that the layer can give, by output channel, for inputs from ``low`` to ``high``.

    Σ over inputs and kernel of the larger of weight · low and weight · high; a weight of 0 counts
    as nothing, whatever the ends.
    """
    split = _by_channel(node, weight.astype(np.float64), "outputs")
    groups, _, inputs, _ = split.shape
    ends = [
        np.broadcast_to(end, (groups * inputs,)).reshape(groups, 1, -1, 1) for end in (low, high)
    ]
    used = np.where(split > 0, ends[1], ends[0])
    products = np.where(split == 0, 0.0, split * np.where(split == 0, 0.0, used))
    return np.asarray(products.sum((2, 3)).reshape(-1), np.float64)


def set_constant(graph: ir.Model, node: ir.Node, index: int, array: Array) -> None:
    """Give the node the constant ``array`` (stored as float32); another reader keeps the old."""
    old = node.inputs[index] if index < len(node.inputs) else None
    stored = np.ascontiguousarray(array, np.float32).reshape(np.shape(array))
    if old is not None and old.is_initializer() and len(old.uses()) == 1:
        old.const_value = ir.tensor(stored, name=old.name)
        old.shape = ir.Shape(stored.shape)
        return
    base = f"{node.name}.constant" if old is None else str(old.name)
    value = ir.Value(name=unused_name(graph, base))
    value.const_value = ir.tensor(stored, name=value.name)
    value.shape, value.dtype = ir.Shape(stored.shape), ir.DataType.FLOAT
    graph.graph.register_initializer(value)
    node.resize_inputs(max(len(node.inputs), index + 1))
    node.replace_input_with(index, value)


def add_to_bias(graph: ir.Model, node: ir.Node, shift: Channels) -> None:
    """Add ``shift`` to the constant bias of a Conv, ConvTranspose or Gemm; one is made if it has
    none."""
    bias = constant_input(node, 2)
    factor = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    old = np.zeros(len(shift)) if bias is None else bias.astype(np.float64)
    set_constant(graph, node, 2, old + shift / factor)
