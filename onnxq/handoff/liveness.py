"""Which tensors are in memory while a graph runs, operator by operator, and for how long.

Two readings of one Q/DQ graph. *Fused*: an operator between DQ and Q reads and writes integers, a
Relu or Clip before a Q is part of the operator before it, and a Q or DQ is a step of its own only
where a float operator needs the other form. *Float*: Q and DQ are not there and every tensor has
its float type.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx_ir as ir

from onnxq.graph import constant_input, dims_of
from onnxq.handoff.subject import is_constant, label_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.target import Target

__all__ = ["Buffer", "Lives", "fused_lives", "lives_in_float", "most_at_once"]

_ON_INTEGERS = frozenset({"hardware", "software integer", "software"})


@dataclass(frozen=True)
class Buffer:
    """A tensor of ``bytes`` bytes, written by step ``born`` and needed until step ``dies``."""

    tensor: str
    bytes: int
    born: int
    dies: int


@dataclass(frozen=True)
class Lives:
    """Steps in the order of the graph, and the buffers that they need.

    ``float_nodes`` are operators that compute in float; ``unknown`` says which tensors have no
    known size, or which operators hold a graph of their own: neither is counted.
    """

    steps: tuple[str, ...]
    buffers: tuple[Buffer, ...]
    float_nodes: tuple[str, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class _Step:
    """One operator that runs, the values it reads and the values it writes, as they are stored."""

    node: ir.Node
    reads: tuple[ir.Value, ...]
    writes: tuple[ir.Value, ...]


def fused_lives(graph: ir.Graph, target: Target) -> Lives:
    """Lifetimes with one byte an element wherever operators compute on integers.

    A tensor that the graph itself takes or gives has the integers' form too, as where the compiler
    makes inputs and outputs integer.
    """
    return _lives(graph, target, _Fused(graph, target))


def lives_in_float(graph: ir.Graph, target: Target) -> Lives:
    """Lifetimes as if there were no Q and DQ."""
    return _lives(graph, target, _Float(graph, target))


def most_at_once(lives: Lives) -> tuple[int, int]:
    """The step at which most bytes are alive (the first of several), and how many; 0, 0 for none.

    Source: liveness as of Pisarchyk and Lee 2020, arXiv 2001.03288, section 3 ("operator breadth").
    """
    change = np.zeros(len(lives.steps) + 2, dtype=np.int64)
    for buffer in lives.buffers:
        change[buffer.born] += buffer.bytes
        change[buffer.dies + 1] -= buffer.bytes
    alive = np.cumsum(change)
    step = int(alive.argmax())
    return step, int(alive[step])


# --- two readings of the graph ------------------------------------------------------------------


class _Fused:
    """Integers between DQ and Q."""

    def __init__(self, graph: ir.Graph, target: Target) -> None:
        self.graph = graph
        self.folded = frozenset(target.folded_ops)
        self.integer_ops = _integer_operators(target)
        self.is_integer = cache(self._is_integer)
        self.ends_in_quantizers = cache(self._ends_in_quantizers)

    def _ends_in_quantizers(self, value: ir.Value) -> bool:
        """Whether nothing but Q takes the value, at most behind one folded operator after another.

        Then its float form need not exist.
        """
        if value.is_graph_output() or not value.uses():
            return False
        consumers = [use.node for use in value.uses()]
        if len(consumers) == 1 and consumers[0].op_type in self.folded:
            return self.ends_in_quantizers(consumers[0].outputs[0])
        return all(node.op_type == QUANTIZE for node in consumers)

    def _is_integer(self, node: ir.Node) -> bool:
        """Whether the operator computes on integers: the target can, DQ before it, Q behind."""
        data = [value for value in node.inputs if value is not None and not is_constant(value)]
        if node.op_type in self.folded and data and self._is_folded(node):
            return True
        return (
            bool(data)
            and node.op_type in self.integer_ops
            and all(_made_by(value, DEQUANTIZE) for value in data)
            and all(self.ends_in_quantizers(value) for value in node.outputs if _is_wanted(value))
        )

    def _is_folded(self, node: ir.Node) -> bool:
        """Whether the operator is part of the integer operator before it."""
        source = node.inputs[0]
        before = source.producer() if source is not None else None
        return (
            node.op_type in self.folded
            and source is not None
            and before is not None
            and before.op_type not in (QUANTIZE, DEQUANTIZE)
            and self.ends_in_quantizers(source)
            and self.is_integer(before)
        )

    def _exists_in_float(self, value: ir.Value) -> bool:
        """Whether the value is stored as it stands and not only in the form that a Q gives it."""
        node = value.producer()
        if node is not None and node.op_type == DEQUANTIZE:
            return self._float_readers(value)
        return not self.ends_in_quantizers(value) or (
            node is not None and not self.is_integer(node)
        )

    def _float_readers(self, value: ir.Value) -> bool:
        return any(not self.is_integer(use.node) for use in value.uses())

    def stored(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """What is written to memory when ``value`` is made; nothing for what an integer operator
        gives and nobody takes."""
        node = value.producer()
        if node is not None and not _is_wanted(value) and self.is_integer(node):
            return ()
        if self._exists_in_float(value):
            return (value,)
        consumers = [use.node for use in value.uses()]
        if any(node.op_type in self.folded for node in consumers):
            return self.stored(consumers[0].outputs[0])
        return tuple(node.outputs[0] for node in consumers)

    def read(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """What ``node`` reads from memory where it takes ``value``."""
        made_by = value.producer()
        if made_by is not None and made_by.op_type == DEQUANTIZE and self.is_integer(node):
            return made_by.inputs[0] or value
        return value

    def given(self, value: ir.Value) -> ir.Value:
        """What stays in memory for the graph's output ``value``."""
        made_by = value.producer()
        if made_by is None or made_by.op_type != DEQUANTIZE or self._float_readers(value):
            return value
        return made_by.inputs[0] or value

    def runs(self, node: ir.Node) -> bool:
        """Whether the node is a step of its own."""
        if node.op_type == QUANTIZE:
            source = node.inputs[0]
            return source is not None and self._exists_in_float(source)
        if node.op_type == DEQUANTIZE:
            return self._float_readers(node.outputs[0])
        return not self._is_folded(node)


class _Float:
    """Q and DQ taken out."""

    def __init__(self, graph: ir.Graph, target: Target) -> None:
        self.graph = graph

    def is_integer(self, node: ir.Node) -> bool:
        """Never."""
        return False

    def stored(self, value: ir.Value) -> tuple[ir.Value, ...]:
        """The value itself."""
        return (value,)

    def read(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """The real tensor that the Q and DQ before ``node`` took."""
        return self.given(value)

    def given(self, value: ir.Value) -> ir.Value:
        """The real tensor behind any Q and DQ."""
        node = value.producer()
        while node is not None and node.op_type in (QUANTIZE, DEQUANTIZE):
            source = node.inputs[0]
            if source is None:
                break
            value, node = source, source.producer()
        return value

    def runs(self, node: ir.Node) -> bool:
        """Every operator but Q and DQ."""
        return node.op_type not in (QUANTIZE, DEQUANTIZE)


# --- lifetimes ----------------------------------------------------------------------------------


def _lives(graph: ir.Graph, target: Target, reading: _Fused | _Float) -> Lives:
    steps = [
        _Step(
            node,
            tuple(
                reading.read(value, node)
                for value in node.inputs
                if value is not None and not is_constant(value)
            ),
            tuple(kept for value in node.outputs if value.name for kept in reading.stored(value)),
        )
        for node in graph
        if node.op_type != "Constant"
        and not all(is_constant(value) for value in node.outputs)
        and reading.runs(node)
    ]
    inputs = [
        kept
        for value in graph.inputs
        if value.name not in graph.initializers
        for kept in reading.stored(value)
    ]
    outputs = [reading.given(value) for value in graph.outputs if not is_constant(value)]
    buffers, unknown = _buffers(steps, inputs, outputs, target)
    return Lives(
        steps=tuple(label_of(step.node) for step in steps),
        buffers=buffers,
        float_nodes=tuple(
            label_of(step.node)
            for step in steps
            if step.node.op_type not in (QUANTIZE, DEQUANTIZE) and not reading.is_integer(step.node)
        ),
        unknown=(*unknown, *_inner_graphs(graph)),
    )


def _buffers(
    steps: Sequence[_Step],
    inputs: Iterable[ir.Value],
    outputs: Iterable[ir.Value],
    target: Target,
) -> tuple[tuple[Buffer, ...], tuple[str, ...]]:
    """Buffers in the order in which they are written, and the tensors of unknown size."""
    same: dict[ir.Value, ir.Value] = {}
    born: dict[ir.Value, int] = dict.fromkeys(inputs, 0)
    dies: dict[ir.Value, int] = dict.fromkeys(born, 0)
    for index, step in enumerate(steps):
        for value in step.reads:
            dies[same.get(value, value)] = index
        handed_on = _handed_on(step, target)
        for value in step.writes:
            if handed_on is not None:
                same[value] = same.get(handed_on, handed_on)
            else:
                born[value] = dies[value] = index
    for value in outputs:
        dies[same.get(value, value)] = max(len(steps) - 1, 0)
    buffers, unknown = [], []
    for value, start in born.items():
        size = _bytes_of(value)
        if size is None:
            unknown.append(f"the size of `{_name_of(value)}`")
        else:
            padded = math.ceil(size / target.alignment_bytes) * target.alignment_bytes
            buffers.append(Buffer(_name_of(value), padded, start, dies[value]))
    return tuple(buffers), tuple(unknown)


def _handed_on(step: _Step, target: Target) -> ir.Value | None:
    """The value whose bytes the step leaves in place as its result; None if it writes anew.

    An operator that could be folded overwrites a float that nobody else reads.
    """
    if len(step.writes) != 1 or not step.reads:
        return None
    source, result = step.reads[0], step.writes[0]
    if source.dtype != result.dtype or _parameters(source) != _parameters(result):
        return None
    if step.node.op_type in target.in_place_ops:
        return source
    alone = len(source.uses()) == 1 and not source.is_graph_output() and source.producer()
    in_float = _parameters(source) is None
    return source if step.node.op_type in target.folded_ops and alone and in_float else None


def _integer_operators(target: Target) -> frozenset[str]:
    """Operators that the target computes on integers where Q and DQ stand around them."""
    listed = {*target.integer_ops, *target.data_ops, *target.folded_ops}
    runs = {entry.op for entry in target.operators if entry.runs in _ON_INTEGERS}
    floats = {entry.op for entry in target.operators if entry.runs == "software float"}
    return frozenset((listed - floats) | runs)


def _parameters(value: ir.Value) -> tuple[bytes, bytes] | None:
    """Scale and zero point of an integer tensor, as bytes; None for a float one."""
    for node in (value.producer(), *(use.node for use in value.uses())):
        if node is not None and node.op_type in (QUANTIZE, DEQUANTIZE):
            if node.op_type == QUANTIZE and value is node.inputs[0]:
                continue
            if node.op_type == DEQUANTIZE and value is node.outputs[0]:
                continue
            scale, zero_point = constant_input(node, 1), constant_input(node, 2)
            return (
                b"" if scale is None else scale.tobytes(),
                b"" if zero_point is None else zero_point.tobytes(),
            )
    return None


def _bytes_of(value: ir.Value) -> int | None:
    """Bytes of a tensor as stored; Q and DQ keep the shape of what they take."""
    shaped: ir.Value | None = value
    dims = dims_of(value)
    while dims is None and shaped is not None:
        node = shaped.producer()
        if node is None or node.op_type not in (QUANTIZE, DEQUANTIZE):
            return None
        shaped = node.inputs[0]
        dims = dims_of(shaped)
    known = [dim for dim in dims or () if dim is not None]
    if value.dtype is None or len(known) < len(dims or ()):
        return None
    return math.ceil(math.prod(known) * value.dtype.itemsize)


def _name_of(value: ir.Value) -> str:
    """The real tensor's name: that of what a Q took."""
    node = value.producer()
    if node is not None and node.op_type == QUANTIZE and node.inputs[0] is not None:
        return str(node.inputs[0].name)
    return str(value.name)


def _is_wanted(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _made_by(value: ir.Value, op_type: str) -> bool:
    node = value.producer()
    return node is not None and node.op_type == op_type


def _inner_graphs(graph: ir.Graph) -> list[str]:
    held = ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS
    return [
        f"what {label_of(node)} holds inside it"
        for node in graph
        if any(attribute.type in held for attribute in node.attributes.values())
    ]
