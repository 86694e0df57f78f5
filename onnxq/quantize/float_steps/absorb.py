"""The float step ``absorb``: what a channel never goes below moves into the bias behind it.

Where every value before a Relu is at least c > 0, relu(x) = relu(x − c) + c, so that c leaves the
bias of the layer before and W · c joins that of the layer behind: activations lie in a smaller
range. Source: Nagel et al. 2019, arXiv 1906.04721, section 4.1.3, which takes c = β − 3γ from
BatchNorm's statistics; here c comes from samples, less a quarter of the channel's span for what
they do not show. The function is the same wherever the channel stays above c, and outputs are
compared.
"""

import numpy as np
import onnx_ir as ir

from onnxq.artifacts import SkippedLayer
from onnxq.errors import QuantizationError
from onnxq.graph import VIEWS, constant_input, constant_of
from onnxq.quantize.float_steps.equalize import row_of
from onnxq.quantize.float_steps.links import Link, links_of
from onnxq.quantize.float_steps.scaling import add_to_bias, column_sums
from onnxq.quantize.float_steps.sources import layer_sources
from onnxq.quantize.float_steps.types import Given, Stepped

__all__ = ["absorb"]

MARGIN = 0.25  # of the span that a channel was seen to have


def absorb(graph: ir.Model, given: Given) -> Stepped:
    """The graph with high biases moved through Relus into the layers behind.

    Raises QuantizationError without samples.
    """
    if given.extremes is None:
        raise QuantizationError(
            "looks at activations on samples, and none are given",
            where="float step `absorb`",
            do="give the samples of the calibration, or leave the step out",
        )
    copy = ir.from_proto(ir.to_proto(graph))
    links, skipped = links_of(layer_sources(copy.graph), given.kept)
    able = []
    for link in links:
        reason = _obstacle(link)
        if reason:
            skipped.append(SkippedLayer(node=link.source.name, reason=reason))
        else:
            able.append(link)
    axes = {str(link.source.value.name): link.source.axis for link in able}
    seen = given.extremes(graph, axes) if able else {}
    rows = []
    for link in able:
        low, high = seen[str(link.source.value.name)]
        shift = np.maximum(low - MARGIN * (high - low), 0).astype(np.float64)
        if shift.any():
            add_to_bias(copy, link.source.nodes[0], -shift)
            for node in link.sinks:
                weight = constant_input(node, 1)
                if weight is not None:
                    add_to_bias(copy, node, column_sums(node, weight, shift) * _alpha(node))
        rows.append(row_of(link, shift, neutral=0.0))
    return Stepped(copy, tuple(rows), tuple(skipped), given.extremes.samples)


def _obstacle(link: Link) -> str:
    """Why no constant can pass the link; empty if one can."""
    acts = [node for node in link.through if node.op_type not in {*VIEWS, "Transpose", "Identity"}]
    if [node.op_type for node in acts] != ["Relu"]:
        names = ", ".join(f"{node.op_type} `{node.name}`" for node in acts) or "no activation"
        return f"a constant passes one Relu and nothing else, and here is {names}"
    if link.source.nodes[0].op_type == "MatMul":
        return "it has no bias of its own"
    nodes = (link.source.nodes[0], *link.sinks)
    if any(n.op_type == "Gemm" and not n.attributes.get_float("beta", 1.0) for n in nodes):
        return "a Gemm multiplies its bias by 0"
    return next(filter(None, map(_cannot_take, link.sinks)), "")


def _cannot_take(node: ir.Node) -> str:
    """Why the bias of a layer cannot take what its inputs are shifted by; empty if it can."""
    padded = any(node.attributes.get_ints("pads", ())) or (
        node.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    )
    if padded or node.op_type == "ConvTranspose":
        return f"{node.op_type} `{node.name}` sees zeros at the border, which are not shifted"
    if node.op_type == "MatMul":
        return f"MatMul `{node.name}` has no bias to take it"
    bias = [*node.inputs, None][2]
    if bias is not None and constant_of(bias) is None:
        return f"the bias of `{node.name}` is computed at run time"
    return ""


def _alpha(node: ir.Node) -> float:
    return node.attributes.get_float("alpha", 1.0) if node.op_type == "Gemm" else 1.0
