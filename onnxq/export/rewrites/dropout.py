"""Dropout → nothing, where it does nothing: outside of training."""

import onnx_ir as ir

from onnxq.export.rewrites.edit import substitute
from onnxq.graph import constant_input

__all__ = ["drop_dropout"]


def drop_dropout(model: ir.Model) -> int:
    """Every Dropout that is in inference mode and whose mask nobody reads.

    One in training mode draws at random; it is left, and rules of targets refuse it.
    """
    graph = model.graph
    found = [node for node in graph if node.op_type == "Dropout" and _is_idle(node)]
    for node in found:
        substitute(graph, node, [ir.node("Identity", [node.inputs[0]])])
    return len(found)


def _is_idle(node: ir.Node) -> bool:
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    training = constant_input(node, 2) if given else False
    read = any(value.uses() or value.is_graph_output() for value in node.outputs[1:])
    return training is not None and not training and not read
