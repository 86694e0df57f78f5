"""CastLike → Cast to the type that it stands for, or nothing where that is its own already."""

import onnx_ir as ir

from onnxq.export.rewrites.edit import substitute

__all__ = ["resolve_castlike"]


def resolve_castlike(model: ir.Model) -> int:
    """The torch exporter writes it around constants, which then cannot be folded."""
    found = 0
    for node in tuple(model.graph):
        like = node.inputs[1] if node.op_type == "CastLike" else None
        if like is None or like.dtype is None:
            continue
        same = node.inputs[0] is not None and node.inputs[0].dtype == like.dtype
        new = (
            ir.node("Identity", [node.inputs[0]])
            if same
            else ir.node("Cast", [node.inputs[0]], {"to": like.dtype.value})
        )
        substitute(model.graph, node, [new])
        found += 1
    return found
