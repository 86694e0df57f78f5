"""The file under check: its nodes, its values, and what each quantized constant is for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.graph import WEIGHTED, constant_of
from onnxq.target import Target, TargetRule

__all__ = [
    "DEQUANTIZE",
    "FLOATS",
    "QUANTIZE",
    "Check",
    "Fault",
    "Quantized",
    "Subject",
    "dims_of",
    "is_constant",
    "label_of",
    "parameter_of",
    "quantized_type",
    "size_bytes",
    "subject_of",
]

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_KEEPS_CONSTANT = frozenset(
    {QUANTIZE, DEQUANTIZE, "Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze"}
)
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


class Fault(NamedTuple):
    """One place that breaks a rule: the node, value or file, and what is wrong with it."""

    where: str
    what: str


class Quantized(NamedTuple):
    """A constant behind a DequantizeLinear, and one node that takes it as input ``position``."""

    dequantize: ir.Node
    consumer: ir.Node
    position: int

    @property
    def role(self) -> Literal["weight", "bias", "operand"]:
        """``weight`` and ``bias`` of Conv, ConvTranspose, Gemm, MatMul; else ``operand``."""
        if self.consumer.op_type not in WEIGHTED or self.position == 0:
            return "operand"
        return "weight" if self.position == 1 else "bias"


@dataclass(frozen=True)
class Subject:
    """A graph with inferred shapes, the name of its file, and the target it is checked against."""

    model: ir.Model
    target: Target
    file_name: str

    @cached_property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Every node, those of subgraphs too, in order."""
        return tuple(ir.traversal.RecursiveGraphIterator(self.model.graph))

    @cached_property
    def inputs(self) -> tuple[ir.Value, ...]:
        """Graph inputs that are no initializers."""
        return tuple(
            value
            for value in self.model.graph.inputs
            if value.name not in self.model.graph.initializers
        )

    @cached_property
    def values(self) -> tuple[ir.Value, ...]:
        """Inputs, constants and node outputs. What Q/DQ return is left out: it has the shape of
        what they take."""
        graphs = (self.model.graph, *self.model.graph.subgraphs())
        constants = [value for graph in graphs for value in graph.initializers.values()]
        made = [
            value
            for node in self.nodes
            if node.op_type not in (QUANTIZE, DEQUANTIZE)
            for value in node.outputs
            if value.name
        ]
        return (*self.inputs, *constants, *made)

    def of_type(self, *op_types: str) -> Iterator[ir.Node]:
        """Nodes of these operators."""
        return (node for node in self.nodes if node.op_type in op_types)

    @cached_property
    def quantizers(self) -> tuple[ir.Node, ...]:
        """Every QuantizeLinear of a value that is computed at run time."""
        return tuple(node for node in self.of_type(QUANTIZE) if not is_constant(node.inputs[0]))

    @cached_property
    def constants(self) -> tuple[Quantized, ...]:
        """Every use of a constant that a DequantizeLinear makes real."""
        return tuple(
            Quantized(node, use.node, use.idx)
            for node in self.of_type(DEQUANTIZE)
            if is_constant(node.inputs[0])
            for use in node.outputs[0].uses()
        )


Check: TypeAlias = Callable[[Subject, TargetRule], Iterator[Fault]]


def subject_of(model: ir.Model | onnx.ModelProto, target: Target, file_name: str) -> Subject:
    """The subject of ``model``, its shapes inferred with constants followed (data propagation);
    a value whose shape cannot be inferred has none."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return Subject(ir.from_proto(inferred), target, file_name)


def label_of(node: ir.Node) -> str:
    """``Conv `name` ``, or the node's output where it has no name."""
    name = node.name or next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type} `{name}`"


def dims_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Dimensions, None for a free one; None altogether if the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer or Constant, also behind Q, DQ, Cast or a reshape."""
    while value is not None:
        if constant_of(value) is not None:
            return True
        node = value.producer()
        if node is None or node.op_type not in _KEEPS_CONSTANT:
            return False
        value = node.inputs[0]
    return False


def quantized_type(node: ir.Node) -> str:
    """Integer type that a Q makes or a DQ takes, as ``int8``; ONNX's default is uint8."""
    if node.op_type == DEQUANTIZE:
        taken = node.inputs[0].dtype if node.inputs[0] is not None else None
    else:
        taken = node.outputs[0].dtype
    if taken is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        taken = node.inputs[2].dtype
    return "uint8" if taken is None else taken.name.lower()


def parameter_of(node: ir.Node, index: int) -> Shaped[np.ndarray, "..."] | None:
    """Scale (1) or zero point (2) of a Q/DQ node; None if it is absent or computed."""
    return constant_of(node.inputs[index]) if len(node.inputs) > index else None


def size_bytes(value: ir.Value) -> int | None:
    """Bytes of a value; None where a dimension or the type is unknown."""
    dims = dims_of(value)
    if dims is None or value.dtype is None or any(dim is None for dim in dims):
        return None
    return math.ceil(math.prod(dim or 0 for dim in dims) * value.dtype.itemsize)
