"""Negative Pad → Slice: what a negative padding takes away is a part of the input that is kept.

No integer kernel of a Pad takes a negative number, and some compilers read it as a huge one.
"""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, substitute
from onnxq.graph import constant_input, dims_of

__all__ = ["negative_pad_to_slice", "pads_of"]


def negative_pad_to_slice(model: ir.Model) -> int:
    """Constant paddings of which some are negative, on axes whose length is known.

    Where some are positive too, a Pad of those follows; this holds for constant padding only, as
    the others would copy what was cut off. Bounds of the Slice are written from the front.
    """
    graph = model.graph
    return sum(_slice(graph, node) for node in tuple(graph) if node.op_type == "Pad")


def _slice(graph: ir.Graph, pad: ir.Node) -> int:
    dims, pads = dims_of(pad.inputs[0]), pads_of(pad)
    if dims is None or pads is None or min(pads, default=0) >= 0:
        return 0
    mode = pad.attributes.get_string("mode", "constant")
    if max(pads) > 0 and mode != "constant":
        return 0
    rank = len(dims)
    bounds = []
    for axis, dim in enumerate(dims):
        start, stop = -min(pads[axis], 0), min(pads[rank + axis], 0)
        if start or stop:
            if dim is None or start >= dim + stop:
                return 0
            bounds.append((start, dim + stop, axis))
    constants = [
        add_constant(graph, "bound", np.array(b, np.int64)) for b in zip(*bounds, strict=True)
    ]
    nodes = [ir.node("Slice", [pad.inputs[0], *constants])]
    if max(pads) > 0:
        rest = add_constant(graph, "pads", np.maximum(pads, 0).astype(np.int64))
        value = pad.inputs[2:3]
        nodes.append(ir.node("Pad", [nodes[0].outputs[0], rest, *value], pad.attributes))
    substitute(graph, pad, nodes)
    return 1


def pads_of(pad: ir.Node) -> list[int] | None:
    """All paddings, those before every axis and then those behind; None if they are computed."""
    given, rank = constant_input(pad, 1), len(dims_of(pad.inputs[0]) or ())
    if given is None or len(pad.inputs) < 4 or pad.inputs[3] is None:
        return None if given is None else [int(value) for value in given]
    axes = constant_input(pad, 3)
    if axes is None:
        return None
    spread = np.zeros((2, rank), np.int64)
    spread[:, axes.astype(np.int64) % rank] = given.reshape(2, -1)
    return [int(value) for value in spread.ravel()]
