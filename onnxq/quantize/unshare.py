"""Constants with several consumers get one copy for each use that needs its own parameters.

A bias is quantized with its own input's and weight's scales, and a weight per output channel of its
own consumer. Where one initializer serves two of them, onnxruntime.quantization keeps a single set
of parameters and writes wrong numbers without a word.
"""

from collections import defaultdict

import onnx_ir as ir

from onnxq.graph import WEIGHTED, output_channel_axis

__all__ = ["unshare_constants"]


def unshare_constants(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of ``model`` where no initializer serves uses of different kind; what was done."""
    copy = ir.from_proto(ir.to_proto(model))
    steps = []
    for value in list(copy.graph.initializers.values()):
        by_use: dict[object, list[tuple[ir.Node, int]]] = defaultdict(list)
        for use in value.uses():
            by_use[_kind_of_use(use.node, use.idx)].append((use.node, use.idx))
        for number, users in enumerate(list(by_use.values())[1:], start=2):
            twin = ir.Value(
                name=f"{value.name}.{number}",
                type=value.type,
                shape=value.shape,
                const_value=value.const_value,
            )
            copy.graph.register_initializer(twin)
            for node, index in users:
                node.replace_input_with(index, twin)
            steps.append(f"copied the shared constant `{value.name}` for `{users[0][0].name}`")
    return copy, tuple(steps)


def _kind_of_use(node: ir.Node, index: int) -> object:
    """Uses of equal kind may share one set of quantization parameters."""
    if node.op_type in WEIGHTED and index == 1:
        return ("weight", output_channel_axis(node))
    if node.op_type in WEIGHTED and index == 2:
        return ("bias", id(node))
    return "operand"
