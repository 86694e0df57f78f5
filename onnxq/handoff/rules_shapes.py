"""Rules about shapes, over every value of the graph: inputs, constants and what lies between."""

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from onnxq.graph import dims_of
from onnxq.handoff.subject import Fault, Subject, at_node, at_value
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.target import TargetRule

__all__ = [
    "batch_of_one",
    "dimension_at_most",
    "no_rank_1_input",
    "rank_at_most",
    "static_shapes",
]

_REARRANGE = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", QUANTIZE, DEQUANTIZE}
)


def static_shapes(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every dimension of every value is a number.

    What only follows from an open dimension of an input is the fault of that input, and not named
    again.
    """
    for value in subject.inputs:
        open_shape = subject.free_inputs.get(str(value.name))
        if open_shape is not None:
            yield at_value(value, f"has the shape {_text(open_shape)}")
    follows = any(None in (dims_of(value) or ()) for value in subject.inputs)
    for value in subject.values[len(subject.inputs) :]:
        dims = dims_of(value)
        if dims is None:
            yield at_value(value, "has no shape that can be inferred")
        elif None in dims and not follows:
            yield at_value(value, f"has the shape {_text(value.shape)}")


def batch_of_one(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The first dimension is 1: of every graph input, and of what the operators in ``values`` take.

    A free one is taken as 1, as static shapes are a rule of their own; so is rank 1.
    """
    for value in subject.inputs:
        dims = dims_of(value)
        if dims and len(dims) > 1 and dims[0] not in (1, None):
            yield at_value(value, f"has a batch of {dims[0]}")
    for node in subject.of_type(*rule.values):
        dims = dims_of(node.inputs[0])
        if dims and dims[0] not in (1, None):
            yield at_node(node, f"runs on a batch of {dims[0]}")


def rank_at_most(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No value has more than ``limit`` dimensions.

    One that only rearranges a graph input is mended as that is.
    """
    for value in subject.values:
        dims = dims_of(value)
        if dims is not None and rule.limit is not None and len(dims) > rule.limit:
            fault = at_value(value, f"has {len(dims)} dimensions {_text(value.shape)}")
            rewrite = rule.input_rewrite if _rearranges_input(value) else ""
            yield fault._replace(rewrite=rewrite)


def _rearranges_input(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type in _REARRANGE and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value.is_graph_input() and not value.is_initializer()


def dimension_at_most(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No dimension exceeds ``limit``."""
    for value in subject.values:
        largest = max((dim for dim in dims_of(value) or () if dim is not None), default=0)
        if rule.limit is not None and largest > rule.limit:
            yield at_value(value, f"has a dimension of {largest}")


def no_rank_1_input(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No graph input has just one dimension."""
    for value in subject.inputs:
        dims = dims_of(value)
        if dims is not None and len(dims) == 1:
            yield at_value(value, f"has the shape {_text(value.shape)}")


def _text(shape: Iterable[object] | None) -> str:
    return f"({', '.join(map(str, shape or ()))})"
