"""BatchNormalization → the Conv, ConvTranspose, Gemm or MatMul before it, or behind it.

With ``a = scale / sqrt(variance + epsilon)`` per channel, ``a · (w · x + b − mean) + shift`` is the
same layer with weight ``a · w`` and bias ``a · (b − mean) + shift``. Before a layer it is
``w · (a · x + s) + b`` with ``s = shift − a · mean``: weight ``a · w``, bias ``b + w · s``.
Source: Jacob et al. 2018, arXiv 1712.05877, section 3.2.
"""

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Shaped

from onnxq.export.rewrites.edit import add_constant, sole_producer, sole_reader, substitute
from onnxq.graph import WEIGHTED, constant_input, dims_of

__all__ = [
    "affine_of",
    "fold_batchnorm",
    "fold_into_next",
    "fold_into_previous",
    "is_inference",
]

Array = Shaped[np.ndarray, "..."]
Channels = Float[np.ndarray, " c"]
Affine = tuple[Channels, Channels]  # factor and shift


def fold_batchnorm(model: ir.Model) -> int:
    """Fold every BatchNormalization that alone reads a linear layer of constant weight, or that
    such a layer alone reads.

    Computed in float64, then stored in the type of the weight. A shared weight is copied. A layer
    behind that pads with zeros, or that reaches some outputs with a part of its kernel only (a
    ConvTranspose), takes in a norm without shift only: what is padded is not shifted.
    """
    graph = model.graph
    return sum(
        fold_into_previous(graph, node, node.inputs[0], affine)
        or fold_into_next(graph, node, node.inputs[0], affine)
        for node in tuple(graph)
        if is_inference(node) and (affine := affine_of(node)) is not None
    )


def is_inference(node: ir.Node) -> bool:
    """Whether the node is a BatchNormalization with fixed statistics, which alone are read."""
    return (
        node.op_type == "BatchNormalization"
        and not node.attributes.get_int("training_mode", 0)
        and not any(output.uses() for output in node.outputs[1:])
    )


def fold_into_previous(graph: ir.Graph, node: ir.Node, data: ir.Value | None, by: Affine) -> int:
    """Fold ``node``, which makes ``factor · data + shift`` by channel, into the linear layer that
    makes ``data`` for it alone; 1 if it could be done, else 0."""
    layer = sole_producer(data, WEIGHTED)
    weight = None if layer is None else constant_input(layer, 1)
    if layer is None or weight is None or not _makes_channels(layer):
        return 0
    factor, shift = by
    bias = _bias_of(layer, len(factor))
    scaled = _scale_weight(layer, weight.astype(np.float64), factor)
    if bias is None or scaled is None:
        return 0
    folded = ir.node(
        "Gemm" if layer.op_type == "MatMul" else layer.op_type,
        [
            layer.inputs[0],
            add_constant(graph, "folded", scaled.astype(weight.dtype)),
            add_constant(graph, "folded", (factor * bias + shift).astype(weight.dtype)),
        ],
        {name: value for name, value in layer.attributes.items() if name != "beta"},
    )
    substitute(graph, node, [folded])
    graph.remove(layer, safe=True)
    return 1


def fold_into_next(graph: ir.Graph, node: ir.Node, data: ir.Value | None, by: Affine) -> int:
    """Fold ``node``, which makes ``factor · data + shift`` by channel, into the linear layer that
    alone reads it; 1 if it could be done, else 0."""
    layer = sole_reader(node.outputs[0])
    weight = None if layer is None else constant_input(layer, 1)
    if layer is None or layer.op_type not in WEIGHTED or layer.inputs[0] is not node.outputs[0]:
        return 0
    if weight is None or not _contracts_channels(layer, weight):
        return 0
    factor, shift = by
    if shift.any() and not _reaches_all(layer, weight):
        return 0
    by_channel = _by_input_channel(layer, weight.astype(np.float64))
    outputs = by_channel.shape[0] * by_channel.shape[2]
    bias = _bias_of(layer, outputs)
    if bias is None or by_channel.shape[0] * by_channel.shape[1] != len(factor):
        return 0
    groups = by_channel.shape[0]
    alpha = layer.attributes.get_float("alpha", 1.0) if layer.op_type == "Gemm" else 1.0
    moved = np.einsum("gcok,gc->go", by_channel, shift.reshape(groups, -1)).reshape(-1)
    scaled = by_channel * factor.reshape(groups, -1, 1, 1)
    folded = ir.node(
        "Gemm" if layer.op_type == "MatMul" else layer.op_type,
        [
            data,
            add_constant(graph, "folded", _as_weight(layer, scaled, weight)),
            add_constant(graph, "folded", (bias + alpha * moved).astype(weight.dtype)),
        ],
        {name: value for name, value in layer.attributes.items() if name != "beta"},
    )
    substitute(graph, layer, [folded])
    graph.remove(node, safe=True)
    return 1


def _makes_channels(layer: ir.Node) -> bool:
    """Whether the layer's output channels stand on axis 1, which is the norm's axis of channels."""
    return layer.op_type != "MatMul" or len(dims_of(layer.outputs[0]) or ()) == 2


def _contracts_channels(layer: ir.Node, weight: Array) -> bool:
    """Whether the layer sums over axis 1 of its data, which is the norm's axis of channels."""
    if layer.op_type in {"Conv", "ConvTranspose"}:
        return True
    rank = len(layer.inputs[0].shape or ()) if layer.inputs[0] is not None else 0
    return rank == 2 and weight.ndim == 2 and not layer.attributes.get_int("transA", 0)


def _reaches_all(layer: ir.Node, weight: Array) -> bool:
    """Whether every output sums over the whole kernel, so that a shift moves all of them alike."""
    if layer.op_type in {"Gemm", "MatMul"}:
        return True
    padded = any(layer.attributes.get_ints("pads", ())) or (
        layer.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    )
    if layer.op_type == "Conv":
        return not padded
    strides = layer.attributes.get_ints("strides", ())
    grown = any(name in layer.attributes for name in ("output_padding", "output_shape"))
    point = set(weight.shape[2:]) == {1} and set(strides) <= {1}
    return point and not padded and not grown


def _by_input_channel(layer: ir.Node, weight: Array) -> Shaped[np.ndarray, "g c o k"]:
    """The weight as groups, input channels of a group, output channels of a group, kernel."""
    groups = layer.attributes.get_int("group", 1)
    match layer.op_type:
        case "Conv":
            return np.moveaxis(weight.reshape(groups, -1, weight.shape[1], _kernel(weight)), 1, 2)
        case "ConvTranspose":
            return weight.reshape(groups, -1, weight.shape[1], _kernel(weight))
        case "Gemm" if layer.attributes.get_int("transB", 0):
            return weight.T[None, :, :, None]
    return weight[None, :, :, None]


def _as_weight(layer: ir.Node, values: Shaped[np.ndarray, "g c o k"], like: Array) -> Array:
    """The inverse of ``_by_input_channel``, in the shape and type of the weight ``like``."""
    transposed = layer.op_type == "Gemm" and layer.attributes.get_int("transB", 0) != 0
    if layer.op_type == "Conv" or transposed:
        values = np.moveaxis(values, 2, 1)
    return np.asarray(values.reshape(like.shape).astype(like.dtype))


def _kernel(weight: Array) -> int:
    return int(np.prod(weight.shape[2:], dtype=np.int64))


def affine_of(norm: ir.Node) -> Affine | None:
    """``(a, shift − a · mean)`` per channel, in float64; None where they are not constants, or
    where a variance is not positive."""
    constants = [constant_input(norm, index) for index in range(1, 5)]
    scale, shift, mean, variance = (
        None if array is None else array.astype(np.float64) for array in constants
    )
    if scale is None or shift is None or mean is None or variance is None:
        return None
    spread = variance + norm.attributes.get_float("epsilon", 1e-5)
    if not (spread > 0).all():
        return None  # it gives NaN, and is found by those who look for it
    factor = scale / np.sqrt(spread)
    return factor, shift - factor * mean


def _bias_of(layer: ir.Node, channels: int) -> Channels | None:
    """The layer's bias in float64, zeros if it has none, None if it is not one per channel."""
    if len(layer.inputs) < 3 or layer.inputs[2] is None:
        return np.zeros(channels)
    bias = constant_input(layer, 2)
    if bias is None or bias.size not in (1, channels) or bias.shape[-1:] != (bias.size,):
        return None
    beta = layer.attributes.get_float("beta", 1.0) if layer.op_type == "Gemm" else 1.0
    return np.broadcast_to(bias.astype(np.float64).reshape(-1) * beta, (channels,)).copy()


def _scale_weight(layer: ir.Node, weight: Array, factor: Channels) -> Array | None:
    """The weight with every output channel multiplied by its factor; None if they do not match."""
    match layer.op_type:
        case "Conv":
            axis, groups = 0, 1
        case "ConvTranspose":
            axis, groups = 1, layer.attributes.get_int("group", 1)
        case "Gemm" if layer.attributes.get_int("transB", 0):
            axis, groups = 0, 1
        case _:
            axis, groups = 1, 1
            if weight.ndim != 2:
                return None  # channels stand last there, and second in a BatchNormalization
    if weight.shape[axis] * groups != len(factor):
        return None
    if layer.op_type != "ConvTranspose":
        per_channel = factor.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        return np.asarray(weight * per_channel)
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    per_channel = factor.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    return np.asarray((grouped * per_channel).reshape(weight.shape))
