"""HardSigmoid and HardSwish, in the forms that targets compute on integers.

``HardSigmoid(x) = clip(α·x + β, 0, 1)`` and ``HardSwish(x) = x · clip(x + 3, 0, 6) / 6``. Behind a
layer the first is a Clip, for α and β go into the layer. The second is one operator where the
hardware has it; elsewhere Add and Mul have integer kernels, and the Clip folds into the Add.
Source: Howard et al. 2019, arXiv 1905.02244, section 5.2; ONNX, HardSigmoid and HardSwish.
"""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, opset_of, sole_producer, substitute
from onnxq.gates import HardSwish, hard_swish_at
from onnxq.graph import WEIGHTED, constant_of

__all__ = ["hard_sigmoid_to_clip", "hard_swish_to_one", "hard_swish_to_product"]

_FIRST_OPSET = 14  # of HardSwish


def hard_sigmoid_to_clip(model: ir.Model) -> int:
    """HardSigmoid that alone reads a linear layer of constant weight → Mul, Add and Clip.

    The product and the sum are folded into that layer by the rewrites behind this one.
    """
    graph = model.graph
    found = 0
    for node in tuple(graph):
        data = node.inputs[0] if node.op_type == "HardSigmoid" and not node.domain else None
        layer = sole_producer(data, WEIGHTED) if data is not None else None
        weight = layer.inputs[1] if layer is not None else None
        if data is None or weight is None or data.dtype != ir.DataType.FLOAT:
            continue
        if constant_of(weight) is None or len(weight.uses()) != 1:
            continue
        slope = node.attributes.get_float("alpha", 0.2)
        offset = node.attributes.get_float("beta", 0.5)
        product = ir.node("Mul", [data, _scalar(graph, slope)])
        total = ir.node("Add", [product.outputs[0], _scalar(graph, offset)])
        bounds = [_scalar(graph, 0.0), _scalar(graph, 1.0)]
        substitute(graph, node, [product, total, ir.node("Clip", [total.outputs[0], *bounds])])
        found += 1
    return found


def hard_swish_to_one(model: ir.Model) -> int:
    """``x · clip(x + 3, 0, 6)``, and ``x · HardSigmoid(x)`` with α = 1/6 → HardSwish, times 6 or 1.

    Nothing below opset 14, which knows no HardSwish.
    """
    if opset_of(model) < _FIRST_OPSET:
        return 0
    graph = model.graph
    found = 0
    for node in tuple(graph):
        gate = hard_swish_at(node) if node.op_type == "Mul" else None
        if gate is None or not np.allclose([gate.offset, gate.height], [3, 6], rtol=1e-6):
            continue
        one = ir.node("HardSwish", [gate.data])
        _replace(graph, gate, one, gate.factor * gate.height)
        found += 1
    return found


def hard_swish_to_product(model: ir.Model) -> int:
    """HardSwish, and ``x · HardSigmoid(x)`` → ``x · clip(x + 3, 0, 6)``, times what is left."""
    graph = model.graph
    found = 0
    for node in tuple(graph):
        gate = hard_swish_at(node)
        if gate is None or any(inner.op_type == "Clip" for inner in gate.nodes):
            continue
        total = ir.node("Add", [gate.data, _scalar(graph, gate.offset)])
        bounds = [_scalar(graph, 0.0), _scalar(graph, gate.height)]
        clip = ir.node("Clip", [total.outputs[0], *bounds])
        product = ir.node("Mul", [gate.data, clip.outputs[0]])
        _replace(graph, gate, product, gate.factor, before=[total, clip])
        found += 1
    return found


def _replace(
    graph: ir.Graph,
    gate: HardSwish,
    node: ir.Node,
    factor: float,
    before: list[ir.Node] | None = None,
) -> None:
    """Put ``node`` times ``factor`` where the last node of ``gate`` stands."""
    chain = [*(before or ()), node]
    if not np.isclose(factor, 1, rtol=1e-6):
        chain.append(ir.node("Mul", [node.outputs[0], _scalar(graph, factor)]))
    substitute(graph, gate.nodes[-1], chain)


def _scalar(graph: ir.Graph, value: float) -> ir.Value:
    return add_constant(graph, "scalar", np.array(value, np.float32))
