"""Pad of zeros → the padding of the Conv behind it, which costs nothing; a Pad runs in float."""

import onnx_ir as ir

from onnxq.export.rewrites.edit import sole_producer, substitute
from onnxq.export.rewrites.pad import pads_of
from onnxq.graph import constant_input, dims_of

__all__ = ["fold_pad"]


def fold_pad(model: ir.Model) -> int:
    """Every Pad that only a Conv reads, and that puts zeros around the picture alone.

    Left alone: another mode or value, negative paddings, those of batch or channels, and a Conv
    that derives its padding from the size of its input.
    """
    graph = model.graph
    return sum(_fold(graph, node) for node in tuple(graph) if node.op_type == "Conv")


def _fold(graph: ir.Graph, layer: ir.Node) -> int:
    pad = sole_producer(layer.inputs[0], frozenset({"Pad"}))
    pads = None if pad is None else pads_of(pad)
    rank = 0 if pad is None else len(dims_of(pad.inputs[0]) or ())
    if pad is None or pads is None or not rank or not _is_zero(pad) or min(pads) < 0:
        return 0
    around = [*pads[2:rank], *pads[rank + 2 :]]
    if sum(around) != sum(pads) or layer.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return 0
    own = layer.attributes.get_ints("pads") or [0] * len(around)
    both = [inner + outer for inner, outer in zip(own, around, strict=True)]
    attributes = {**layer.attributes, "pads": ir.AttrInt64s("pads", both)}
    folded = ir.node("Conv", [pad.inputs[0], *layer.inputs[1:]], attributes)
    substitute(graph, layer, [folded])
    graph.remove(pad, safe=True)
    return 1


def _is_zero(pad: ir.Node) -> bool:
    if pad.attributes.get_string("mode", "constant") != "constant":
        return False
    given = len(pad.inputs) > 2 and pad.inputs[2] is not None
    value = constant_input(pad, 2) if given else None
    return not given or (value is not None and not value.any())
