"""The whole-graph integer reference: a Q/DQ graph in numpy, with a declared rounding.

How each operator is computed:

- Conv, ConvTranspose, Gemm, MatMul, Add, Sub, Mul, MaxPool, AveragePool, GlobalAveragePool,
  ReduceMean, Concat: in integers, as far as their inputs are integers (``linear``, ``elementwise``,
  ``pools``). An accumulator is 64 bits wide and rounded once, by the QuantizeLinear that follows.
- Relu, Clip: cuts, folded into that rounding. Operators that move numbers: on the integers.
- Every other operator (Sigmoid, Softmax, LayerNormalization, …), and the above where an input is
  not integer: in float64 of the dequantized integers, by the ONNX project's numpy reference.
  float64 and not float32, so that what is rounded is the exact value.
- An operator of a foreign domain, a QLinear operator, one that neither knows: refused by name.

The runtimes differ from it where float32 moves a value across the middle between two integers:
with optimization off they sum float32 products and divide by the scale in float32; with it on they
multiply the accumulator by a float32 multiplier. That is one step, next to such a middle only (the
most seen is 6e-5 of a step away). Two fused operators have ways of their own: QLinearAveragePool
rounds half to even after the zero point is added, so that an odd one turns the middles over;
QLinearSoftmax adds up a table of whole-numbered exponentials, and is one step off anywhere.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from jaxtyping import Float64, Integer

from onnxq.affine import quantize
from onnxq.errors import DataError, ModelError, nearest
from onnxq.graph import constants_of, is_quantized_form, refuse_inner_graphs
from onnxq.handoff.reference.elementwise import add, clip, concat, mul, relu, sub
from onnxq.handoff.reference.linear import conv, conv_transpose, gemm, matmul
from onnxq.handoff.reference.network import Layer, layers_of
from onnxq.handoff.reference.pools import average_pool, global_average_pool, max_pool, reduce_mean
from onnxq.handoff.reference.rounding import Rounding, position, rounded
from onnxq.handoff.reference.single import SingleNode
from onnxq.handoff.reference.values import Array, Steps, Value, dequantized, real
from onnxq.handoff.reference.windows import attribute
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.qtypes import IntType

__all__ = ["Computed", "Reference"]

RULES: dict[str, Callable[[onnx.NodeProto, list[Value | None]], Value]] = {
    "Add": add,
    "AveragePool": average_pool,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mul": mul,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Sub": sub,
}


@dataclass(frozen=True)
class Computed:
    """A layer: its integers, and where on its grid the value lay before rounding and saturation.

    ``by`` says whether the value that was rounded was known as integers.
    """

    integers: Integer[np.ndarray, "..."]
    exact: Float64[np.ndarray, "..."]
    by: Literal["integer", "float64"]


class Reference:
    """A Q/DQ graph that is computed in integers. ``layers`` are its quantized tensors, in order.

    Raises ModelError for an operator that cannot be computed, naming node and operator.
    """

    def __init__(self, model: onnx.ModelProto, rounding: Rounding = "nearest_even") -> None:
        refuse_inner_graphs(model, "integer reference")
        self._rounding = rounding
        self._constants = constants_of(model)
        self.layers = layers_of(model, self._constants)
        self._layers = {layer.integers: layer for layer in self.layers}
        self._nodes = list(model.graph.node)
        self._outputs = [value.name for value in model.graph.output]
        self._inputs = [v.name for v in model.graph.input if v.name not in self._constants]
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
        self._singles = {
            node.output[0]: SingleNode(node, opset)
            for node in self._nodes
            if not _has_rule(node) and node.output[0] not in self._constants
        }

    def run(
        self, inputs: Mapping[str, Array], given: Mapping[str, Array] | None = None
    ) -> tuple[dict[str, Integer[np.ndarray, "..."]], dict[str, Array]]:
        """The integers of every layer, and the graph's outputs (reals as float32), by name."""
        outputs: dict[str, Array] = {}
        layers = {
            layer.name: computed.integers for layer, computed in self.each(inputs, given, outputs)
        }
        return layers, outputs

    def each(
        self,
        inputs: Mapping[str, Array],
        given: Mapping[str, Array] | None = None,
        outputs: dict[str, Array] | None = None,
    ) -> Iterator[tuple[Layer, Computed]]:
        """Every layer in turn. Values that no later node takes are forgotten.

        Where ``given`` holds integers of a layer, by its name, everything behind it is computed of
        those instead of its own. ``outputs`` is filled with the graph's outputs. Raises DataError
        if an input is missing.
        """
        wanted = {layer.name for layer in self.layers}
        return self._walk(inputs, given or {}, wanted, outputs)

    def layer(self, name: str, inputs: Mapping[str, Array], given: Mapping[str, Array]) -> Computed:
        """One layer, of ``given`` integers; only what lies between those and it is computed."""
        return next(
            computed
            for layer, computed in self._walk(inputs, given, {name}, None)
            if layer.name == name
        )

    def _walk(
        self,
        inputs: Mapping[str, Array],
        given: Mapping[str, Array],
        wanted: set[str],
        outputs: dict[str, Array] | None,
    ) -> Iterator[tuple[Layer, Computed]]:
        values: dict[str, Value] = {
            layer.integers: np.asarray(given[layer.name])
            for layer in self.layers
            if layer.name in given and layer.name not in wanted
        }
        goals = [layer.integers for layer in self.layers if layer.name in wanted]
        goals += self._outputs if outputs is not None else []
        nodes = self._needed(goals, {*values, *self._constants})
        yield from self._fed(inputs, given, goals, nodes, values)
        last = {name: place for place, node in enumerate(nodes) for name in node.input}
        for place, node in enumerate(nodes):
            layer = self._layers.get(node.output[0])
            taken = [self._value(name, values) for name in node.input]
            if layer is None:
                values.update(zip(node.output, self._computed(node, taken), strict=False))
            else:
                computed = self._quantized(layer, taken[0])
                yield layer, computed
                values[layer.integers] = np.asarray(given.get(layer.name, computed.integers))
            for name in node.input:
                if last[name] == place and name not in self._outputs:
                    values.pop(name, None)
        if outputs is not None:
            outputs.update((name, _as_written(self._value(name, values))) for name in self._outputs)

    def _needed(self, goals: Sequence[str], known: set[str]) -> list[onnx.NodeProto]:
        """The nodes, in order, that ``goals`` follow from when the tensors ``known`` are."""
        needed = set(goals)
        kept = []
        for node in reversed(self._nodes):
            if needed.intersection(node.output) - known:
                kept.append(node)
                needed.update(node.input)
        return kept[::-1]

    def _fed(
        self,
        inputs: Mapping[str, Array],
        given: Mapping[str, Array],
        goals: Sequence[str],
        nodes: Sequence[onnx.NodeProto],
        values: dict[str, Value],
    ) -> Iterator[tuple[Layer, Computed]]:
        """Put the graph's inputs among the values; those that are layers are such."""
        taken = {name for node in nodes for name in node.input}.union(goals) - set(values)
        for name in self._inputs:
            if name not in taken:
                continue
            if name not in inputs:
                raise DataError(f"is missing; {nearest(name, inputs)}", where=f"input `{name}`")
            layer = self._layers.get(name)
            values[name] = np.asarray(inputs[name])
            if layer is not None:
                integers = np.asarray(inputs[name])
                yield layer, Computed(integers, integers.astype(np.float64), "integer")
                values[name] = np.asarray(given.get(layer.name, integers))

    def _value(self, name: str, values: Mapping[str, Value]) -> Value | None:
        return None if not name else values[name] if name in values else self._constants[name]

    def _quantized(self, layer: Layer, value: Value | None) -> Computed:
        if value is None:
            raise ModelError("lacks its input", where=f"QuantizeLinear of `{layer.name}`")
        return Computed(
            integers=rounded(value, layer.grid, self._rounding),
            exact=position(value, layer.grid),
            by="integer" if isinstance(value, Steps) else "float64",
        )

    def _computed(self, node: onnx.NodeProto, taken: list[Value | None]) -> list[Value]:
        """All outputs of a node that makes no layer."""
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            return [_converted(node, taken)]
        if node.output[0] in self._singles:
            return self._singles[node.output[0]](taken)
        return [RULES[node.op_type](node, taken)]


def _converted(node: onnx.NodeProto, taken: Sequence[Value | None]) -> Value:
    """A DequantizeLinear, or the QuantizeLinear of a constant."""
    data, scale, *rest = taken
    point = rest[0] if rest else None
    if not (isinstance(data, np.ndarray) and isinstance(scale, np.ndarray)) or isinstance(
        point, Steps
    ):
        raise ModelError("is not of plain integers", where=f"{node.op_type} `{node.name}`")
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if node.op_type == DEQUANTIZE:
        return dequantized(data, scale, point, axis, block)
    kind = IntType(str(point.dtype)) if point is not None else IntType.UINT8
    zeros = np.zeros(scale.shape, np.int64) if point is None else point
    ones = [-1 if dim == axis % data.ndim else 1 for dim in range(data.ndim)]
    shape = [1] * data.ndim if scale.size == 1 else ones
    return quantize(data, scale.reshape(shape), zeros.astype(np.int64).reshape(shape), kind)


def _as_written(value: Value | None) -> Array:
    """An output of the graph; reals as float32."""
    if value is None:
        raise ModelError("an output of the graph has no name")
    array = real(value)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _has_rule(node: onnx.NodeProto) -> bool:
    """True for an operator of ``RULES`` and Q/DQ. Raises ModelError for what is never computed."""
    if node.op_type in (QUANTIZE, DEQUANTIZE):
        return True
    foreign = node.domain not in ("", "ai.onnx")
    if foreign or is_quantized_form(node.op_type) or _has_more_outputs(node):
        domain = f"{node.domain}." if foreign else ""
        raise ModelError(
            f"the integer reference does not compute {domain}{node.op_type} of this form",
            where=f"{node.op_type} `{node.name or node.output[0]}`",
            do="compare its layers with ONNX Runtime's integers (layers.npz) alone",
        )
    return node.op_type in RULES


def _has_more_outputs(node: onnx.NodeProto) -> bool:
    return node.op_type in RULES and len([name for name in node.output if name]) > 1
