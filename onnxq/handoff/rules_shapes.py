"""Rules about shapes, over every value of the graph: inputs, constants and what lies between."""

from collections.abc import Iterator

from onnxq.handoff.subject import Fault, Subject, dims_of, label_of
from onnxq.target import TargetRule

__all__ = [
    "batch_of_one",
    "dimension_at_most",
    "no_rank_1_input",
    "rank_at_most",
    "static_shapes",
]


def static_shapes(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every dimension of every value is a number."""
    for value in subject.values:
        dims = dims_of(value)
        if dims is None:
            yield Fault(f"value `{value.name}`", "has no shape that can be inferred")
        elif None in dims:
            yield Fault(f"value `{value.name}`", f"has the shape {_text(value.shape)}")


def batch_of_one(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The first dimension is 1: of every graph input, and of what the operators in ``values`` take.

    A free one is the business of static shapes, rank 1 that of its own rule.
    """
    for value in subject.inputs:
        dims = dims_of(value)
        if dims and len(dims) > 1 and dims[0] not in (1, None):
            yield Fault(f"input `{value.name}`", f"has a batch of {dims[0]}")
    for node in subject.of_type(*rule.values):
        dims = dims_of(node.inputs[0])
        if dims and dims[0] not in (1, None):
            yield Fault(label_of(node), f"runs on a batch of {dims[0]}")


def rank_at_most(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No value has more than ``limit`` dimensions."""
    for value in subject.values:
        dims = dims_of(value)
        if dims is not None and rule.limit is not None and len(dims) > rule.limit:
            yield Fault(f"value `{value.name}`", f"has {len(dims)} dimensions {_text(value.shape)}")


def dimension_at_most(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No dimension exceeds ``limit``."""
    for value in subject.values:
        largest = max((dim for dim in dims_of(value) or () if dim is not None), default=0)
        if rule.limit is not None and largest > rule.limit:
            yield Fault(f"value `{value.name}`", f"has a dimension of {largest}")


def no_rank_1_input(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No graph input has just one dimension."""
    for value in subject.inputs:
        dims = dims_of(value)
        if dims is not None and len(dims) == 1:
            yield Fault(f"input `{value.name}`", f"has the shape {_text(value.shape)}")


def _text(shape: object) -> str:
    return str(shape).replace("[", "(").replace("]", ")")
