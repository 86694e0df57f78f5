"""Identity → nothing, but where one output of the graph is the same as another or as an input."""

import onnx_ir as ir

__all__ = ["drop_identities"]


def drop_identities(model: ir.Model) -> int:
    """Every Identity without which each output of the graph keeps its name.

    One from an input, a constant or another output to an output stays: a value has one name.
    """
    graph, found = model.graph, 0
    for node in tuple(graph):
        data = node.inputs[0] if node.op_type == "Identity" and not node.domain else None
        if data is None:
            continue
        made = node.outputs[0]
        if made.is_graph_output():
            if data.producer() is None or data.is_graph_output():
                continue
            data.name, made.name = made.name, None
        data.shape = made.shape if data.shape is None else data.shape
        data.type = made.type if data.type is None else data.type
        ir.convenience.replace_all_uses_with(made, data, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        found += 1
    return found
