"""What makes channels that can be scaled: layers of constant weight, and affine ends of norms."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Float64

from onnxq.artifacts import SkippedLayer
from onnxq.graph import WEIGHTED, constant_input, constant_of, dims_of
from onnxq.quantize.float_steps.scaling import magnitudes, rescaled, set_constant

__all__ = ["Source", "affine_sources", "divide", "layer_sources", "source_magnitudes", "weighted"]

Array = Float[np.ndarray, "..."]
Channels = Float64[np.ndarray, " channels"]


@dataclass(frozen=True)
class Source:
    """``channels`` along ``axis`` of ``value``, and the ``nodes`` whose constants make them."""

    nodes: tuple[ir.Node, ...]
    value: ir.Value
    axis: int
    channels: int

    @property
    def name(self) -> str:
        """The node that has the weights."""
        return str(self.nodes[0].name)


def weighted(node: ir.Node) -> bool:
    """Whether the node is a Conv, ConvTranspose, Gemm or MatMul by a constant matrix or kernel."""
    weight = constant_input(node, 1) if node.op_type in WEIGHTED and not node.domain else None
    return weight is not None and (weight.ndim == 2 or node.op_type.startswith("Conv"))


def layer_sources(graph: ir.Graph) -> Iterator[Source | SkippedLayer]:
    """Every layer of constant weight, with the Add of a constant behind a MatMul."""
    for node in graph:
        if not weighted(node):
            continue
        if constant_input(node, 2) is None and len(node.inputs) > 2 and node.inputs[2] is not None:
            yield SkippedLayer(node=str(node.name), reason="its bias is computed at run time")
            continue
        axis = 1 if node.op_type != "MatMul" else -1
        bias = _sole_reader(node.outputs[0]) if node.op_type == "MatMul" else None
        chain = (node, bias) if bias is not None and _adds_vector(bias, axis) else (node,)
        yield _source(chain, axis)


def affine_sources(graph: ir.Graph) -> Iterator[Source | SkippedLayer]:
    """Every LayerNormalization with constants, and every Mul by one number a channel of the last
    axis, with the Add of such numbers behind it: how a decomposed one ends."""
    for node in graph:
        if node.op_type == "LayerNormalization" and not node.domain:
            if any(v is not None and constant_of(v) is None for v in node.inputs[1:]):
                yield SkippedLayer(node=str(node.name), reason="its scale or bias is computed")
            elif node.attributes.get_int("axis", -1) not in (
                -1,
                len(dims_of(node.outputs[0]) or ()) - 1,
            ):
                yield SkippedLayer(node=str(node.name), reason="it has no numbers by channel")
            else:
                yield _source((node,), -1)
        elif node.op_type == "Mul" and _vector_of(node, -1) is not None:
            bias = _sole_reader(node.outputs[0])
            chain = (node, bias) if bias is not None and _adds_vector(bias, -1) else (node,)
            yield _source(chain, -1)


def _source(nodes: tuple[ir.Node, ...], axis: int) -> Source | SkippedLayer:
    value = nodes[-1].outputs[0]
    dims = dims_of(value)
    channels = dims[axis] if dims else None
    if dims is None or channels is None:
        reason = f"the number of channels of `{value.name}` is not known"
        return SkippedLayer(node=str(nodes[0].name), reason=reason)
    return Source(nodes, value, axis % len(dims), channels)


def _sole_reader(value: ir.Value) -> ir.Node | None:
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _adds_vector(node: ir.Node, axis: int) -> bool:
    return node.op_type == "Add" and _vector_of(node, axis) is not None


def _vector_of(node: ir.Node, axis: int) -> tuple[int, Array] | None:
    """Which input of an Add or Mul is a constant with one number for each channel, and it."""
    dims = dims_of(node.outputs[0])
    for index, value in enumerate(node.inputs[:2]):
        array = constant_of(value)
        if array is None or not dims or array.ndim > len(dims):
            continue
        shape = (1,) * (len(dims) - array.ndim) + array.shape
        if shape[axis] == dims[axis] and array.size == dims[axis]:
            return index, array
    return None


def source_magnitudes(source: Source) -> Channels:
    """The largest magnitude of the constants that make each channel, biases among them."""
    node = source.nodes[0]
    weight = constant_input(node, 1)
    if weight is None:
        raise ValueError(f"{node.op_type} `{node.name}` has no constant weight")
    found = magnitudes(node, weight, "outputs")
    added = [constant_input(node, 2), *(_constant(later) for later in source.nodes[1:])]
    for array in added:
        if array is not None:
            by_channel = np.broadcast_to(np.abs(array), (*array.shape[:-1], len(found)))
            found = np.maximum(found, by_channel.reshape(-1, len(found)).max(0))
    return found


def _constant(node: ir.Node) -> Array | None:
    found = _vector_of(node, -1)
    return None if found is None else found[1]


def divide(graph: ir.Model, source: Source, factors: Channels) -> None:
    """Divide every channel of ``source`` by its factor."""
    first = source.nodes[0]
    for node in source.nodes:
        vector = _vector_of(node, source.axis) if node.op_type in {"Add", "Mul"} else None
        if vector is not None:
            index, array = vector
            shape = [1] * array.ndim
            shape[source.axis - len(source.value.shape or ())] = -1
            set_constant(graph, node, index, array / factors.reshape(shape))
    if first.op_type in WEIGHTED or first.op_type == "LayerNormalization":
        weight = constant_input(first, 1)
        if weight is None:
            raise ValueError(f"{first.op_type} `{first.name}` has no constant weight")
        exact = weight.astype(np.float64)
        scaled = (
            exact / factors if weight.ndim == 1 else rescaled(first, exact, "outputs", 1 / factors)
        )
        set_constant(graph, first, 1, scaled)
        bias = constant_input(first, 2)
        if bias is not None:
            set_constant(graph, first, 2, bias / factors)
