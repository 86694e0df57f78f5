"""A layer on joined branches → one part of the layer a branch, and the sum of the parts.

Branches of very different ranges share one scale once they are joined, so that the quiet one loses
its bits. ``W · concat(a, b) = Wa · a + Wb · b`` gives each branch a scale of its own. Ranges are
known after calibration only, so that the joins to split are named by whoever has seen them.
"""

from collections.abc import Collection
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from onnxq.errors import ExportError, nearest
from onnxq.export.rewrites.edit import add_constant, substitute
from onnxq.graph import WEIGHTED, constant_input, dims_of, input_channel_axis

__all__ = ["split_concats"]


def split_concats(model: ir.Model, concats: Collection[str]) -> int:
    """Split every layer that reads one of the Concat nodes called ``concats``; how many it were.

    A Conv, ConvTranspose, Gemm or MatMul of constant weight is split by its input channels; the
    bias stays with the first branch. Raises ExportError for a name that no Concat has, and where
    not a single layer behind a Concat can be split.
    """
    known = {str(node.name): node for node in model.graph if node.op_type == "Concat"}
    found = 0
    for name in concats:
        if name not in known:
            raise ExportError(
                f"there is no Concat `{name}`; {nearest(name, known)}", where="split concats"
            )
        layers = [use.node for use in known[name].outputs[0].uses() if use.idx == 0]
        split = sum(_split(model.graph, known[name], layer) for layer in layers)
        if not split:
            raise ExportError(
                f"no layer behind `{name}` can be split by input channels",
                where="split concats",
                do="name a Concat over channels that a Conv (one group), Gemm or MatMul reads",
            )
        found += split
    return found


def _split(graph: ir.Graph, concat: ir.Node, layer: ir.Node) -> int:
    shapes = [dims_of(value) for value in concat.inputs]
    weight = constant_input(layer, 1) if layer.op_type in WEIGHTED else None
    if weight is None or weight.ndim < 2 or layer.attributes.get_int("group", 1) != 1:
        return 0
    rank = len(concat.outputs[0].shape or ())
    channel_axis = input_channel_axis(layer) % max(rank, 1)
    if concat.attributes.get_int("axis", 0) % max(rank, 1) != channel_axis:
        return 0
    widths = [None if shape is None else shape[channel_axis] for shape in shapes]
    ends = np.cumsum([0, *(width or 0 for width in widths)])
    axis = _input_axis_of_weight(layer)
    if None in widths or ends[-1] != weight.shape[axis]:
        return 0
    parts = []
    for place, (start, end) in enumerate(pairwise(ends.tolist())):
        piece = np.take(weight, np.arange(start, end), axis)
        rest = layer.inputs[2:] if place == 0 else ()
        inputs = [concat.inputs[place], add_constant(graph, "part", piece), *rest]
        parts.append(ir.node(layer.op_type, inputs, layer.attributes))
    sums, total = [], parts[0].outputs[0]
    for part in parts[1:]:
        sums.append(ir.node("Add", [total, part.outputs[0]]))
        total = sums[-1].outputs[0]
    substitute(graph, layer, [*parts, *sums])
    return 1


def _input_axis_of_weight(layer: ir.Node) -> int:
    """Axis of the weight that runs over the layer's input channels."""
    match layer.op_type:
        case "Conv":
            return 1
        case "Gemm":
            return 1 if layer.attributes.get_int("transB", 0) else 0
    return 0 if layer.op_type == "ConvTranspose" else -2
