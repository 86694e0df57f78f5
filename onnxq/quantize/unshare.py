"""Constants in the form that quantization needs: one for each use with parameters of its own.

A bias is quantized with its own input's and weight's scales, and a weight per output channel of its
own consumer. Where one initializer serves two of them, onnxruntime.quantization keeps a single set
of parameters and writes wrong numbers without a word. The bias of a Gemm may be any shape that
broadcasts; its scales are one for each output, so it becomes a vector.
"""

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from onnxq.graph import WEIGHTED, constant_of, output_channel_axis

__all__ = ["unshare_constants", "unused_name"]


def unshare_constants(model: ir.Model) -> tuple[ir.Model, tuple[str, ...]]:
    """A copy of ``model`` where no initializer serves uses of different kind, and the bias of every
    Gemm is a vector where it can be; what was done."""
    copy = ir.from_proto(ir.to_proto(model))
    steps = []
    for value in list(copy.graph.initializers.values()):
        by_use: dict[object, list[tuple[ir.Node, int]]] = defaultdict(list)
        for use in value.uses():
            by_use[_kind_of_use(use.node, use.idx)].append((use.node, use.idx))
        for users in list(by_use.values())[1:]:
            twin = ir.Value(
                name=unused_name(copy, str(value.name)),
                type=value.type,
                shape=value.shape,
                const_value=value.const_value,
            )
            copy.graph.register_initializer(twin)
            for node, index in users:
                node.replace_input_with(index, twin)
            steps.append(f"copied the shared constant `{value.name}` for `{users[0][0].name}`")
    spread = [_spread_bias(copy, node) for node in copy.graph if node.op_type == "Gemm"]
    return copy, (*steps, *filter(None, spread))


def _kind_of_use(node: ir.Node, index: int) -> object:
    """Uses of equal kind may share one set of quantization parameters."""
    if node.op_type in WEIGHTED and index == 1:
        return ("weight", output_channel_axis(node), node.attributes.get_int("group", 1) == 1)
    if node.op_type in WEIGHTED and index == 2:
        return ("bias", id(node))
    return "operand"


def _spread_bias(model: ir.Model, node: ir.Node) -> str:
    """Make the Gemm's constant bias one number for each output, if it is not but can be."""
    weight, bias = (constant_of(value) for value in (node.inputs[1], [*node.inputs, None, None][2]))
    if weight is None or bias is None or bias.size != np.prod(bias.shape[-1:], dtype=np.int64):
        return ""
    outputs = weight.shape[output_channel_axis(node)]
    if bias.shape == (outputs,):
        return ""
    vector = np.broadcast_to(bias.reshape(-1), (outputs,)).copy()
    value = ir.Value(name=unused_name(model, str(node.inputs[2].name)))  # type: ignore[union-attr]  # it has a bias
    value.const_value = ir.tensor(vector, name=value.name)
    value.shape, value.dtype = ir.Shape(vector.shape), value.const_value.dtype
    old = node.inputs[2]
    model.graph.register_initializer(value)
    node.replace_input_with(2, value)
    if old is not None and not old.uses():
        model.graph.initializers.pop(str(old.name), None)
    return f"spread the bias of `{node.name}` from shape {list(bias.shape)} to [{outputs}]"


def unused_name(model: ir.Model, name: str) -> str:
    """``name.2``, or the first number behind it that no value of the graph has."""
    values = (*model.graph.inputs, *(output for node in model.graph for output in node.outputs))
    taken = {*model.graph.initializers, *(value.name for value in values)}
    return next(f"{name}.{n}" for n in range(2, len(taken) + 3) if f"{name}.{n}" not in taken)
