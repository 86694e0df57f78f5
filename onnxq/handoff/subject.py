"""The file under check: its nodes, its values, and what each quantized constant is for."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, TypeAlias

import onnx
import onnx_ir as ir

from onnxq.computed_shapes import with_computed_shapes
from onnxq.graph import WEIGHTED, constant_of, dims_of, values_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE, is_folded_at_load
from onnxq.target import Target, TargetRule

__all__ = [
    "FLOATS",
    "Check",
    "Fault",
    "Quantized",
    "Subject",
    "at_node",
    "at_value",
    "float_sides",
    "is_constant",
    "label_of",
    "size_bytes",
    "subject_of",
]

_KEEPS_CONSTANT = frozenset(
    {QUANTIZE, DEQUANTIZE, "Cast", "Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze"}
)
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE})


class Fault(NamedTuple):
    """One place that breaks a rule: the node, value or file, and what is wrong with it.

    ``node`` and ``value`` are what it is about, None for the file as a whole; ``rewrite`` is the
    step that mends this place, where it is another than the rule's, and None where none does.
    """

    where: str
    what: str
    node: ir.Node | None = None
    value: ir.Value | None = None
    rewrite: str | None = ""


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
    """A graph with inferred shapes, the name of its file, and the target it is checked against.

    Shapes are those of a batch of one; ``free_inputs`` has those of the inputs that left it, or
    another dimension, open.
    """

    model: ir.Model
    target: Target
    file_name: str
    free_inputs: Mapping[str, tuple[int | str, ...]]

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
    """The subject of ``model``, its shapes inferred for a batch of one with constants followed
    (data propagation); a value whose shape cannot be inferred has none."""
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    inputs, _ = values_of(proto)
    free = {
        value.name: value.shape
        for value in inputs
        if any(not isinstance(dim, int) for dim in value.shape)
    }
    return Subject(ir.from_proto(with_computed_shapes(proto)), target, file_name, free)


def at_node(node: ir.Node, what: str, rewrite: str | None = "") -> Fault:
    """A fault of an operator."""
    return Fault(label_of(node), what, node=node, rewrite=rewrite)


def at_value(value: ir.Value, what: str, rewrite: str | None = "") -> Fault:
    """A fault of a value: of a graph input or output, or of one between, or of a constant."""
    kind = "output" if value.is_graph_output() else "value"
    kind = "input" if value.is_graph_input() and not value.is_initializer() else kind
    return Fault(f"{kind} `{value.name}`", what, value.producer(), value, rewrite)


def label_of(node: ir.Node) -> str:
    """``Conv `name` ``, or the node's output where it has no name."""
    name = node.name or next((value.name for value in node.outputs if value.name), "")
    return f"{node.op_type} `{name}`"


def is_constant(value: ir.Value | None) -> bool:
    """True for an initializer or Constant, also behind Q, DQ, Cast or a reshape."""
    while value is not None:
        if constant_of(value) is not None:
            return True
        node = value.producer()
        if node is not None and is_folded_at_load(node):
            return True
        if node is None or node.op_type not in _KEEPS_CONSTANT:
            return False
        value = node.inputs[0]
    return False


def float_sides(node: ir.Node, target: Target) -> tuple[str, ...]:
    """What makes the node compute in float: inputs that are not from DQ, outputs that do not go to
    Q; nothing if it lies between DQ and Q, moves no floats, or computes with constants alone.

    Of a computing operator every float input counts but its bias, of any other the first. A folded
    operator (Relu, Clip) may stand between an operator and its Q, and needs no Q/DQ before it.
    """
    data = node.inputs[0] if node.inputs else None
    if data is None or data.dtype not in FLOATS:
        return ()
    if all(is_constant(value) for value in node.inputs if value is not None):
        return ()
    folded = frozenset(target.folded_ops)
    above = folded.union(target.integer_ops, target.data_ops) if node.op_type in folded else ()
    taken = [
        f"takes `{value.name}` as float"
        for value in _data_inputs(node, target.integer_ops)
        if not _made_by(value, (DEQUANTIZE, *above))
    ]
    given = [
        f"gives `{value.name}` as float"
        for value in node.outputs
        if value.name and not _into_q(value, folded)
    ]
    return (*taken, *given)


def _data_inputs(node: ir.Node, computing: Collection[str]) -> list[ir.Value]:
    values = node.inputs if node.op_type in computing else node.inputs[:1]
    if node.op_type in _BIASED:
        values = values[:2]
    return [value for value in values if value is not None and value.dtype in FLOATS]


def _made_by(value: ir.Value, op_types: Collection[str]) -> bool:
    node = value.producer()
    return node is not None and node.op_type in op_types


def _into_q(value: ir.Value, folded: Collection[str]) -> bool:
    consumers = value.consumers()
    return (
        bool(consumers)
        and not value.is_graph_output()
        and all(
            node.op_type == QUANTIZE
            or (node.op_type in folded and _into_q(node.outputs[0], folded))
            for node in consumers
        )
    )


def size_bytes(value: ir.Value) -> int | None:
    """Bytes of a value; None where a dimension or the type is unknown."""
    dims = dims_of(value)
    if dims is None or value.dtype is None or any(dim is None for dim in dims):
        return None
    return math.ceil(math.prod(dim or 0 for dim in dims) * value.dtype.itemsize)
