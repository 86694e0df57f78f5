"""Where channels can be scaled on one side and scaled back on the other.

A link leads from a node that makes channels (a layer of constant weight, or the affine end of a
normalization) through operators that let a positive factor of a channel pass, to layers of constant
weight. Dividing the channels at the source and multiplying the weights that read them keeps the
function: f(x / s) · s = f(x) for s > 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf, prod

import onnx_ir as ir

from onnxq.artifacts import SkippedLayer
from onnxq.graph import VIEWS, WEIGHTED, constant_of, dims_of, input_channel_axis
from onnxq.quantize.float_steps.sources import Source, weighted

__all__ = ["Link", "links_of"]

_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})
_POINTWISE = frozenset({"Identity", "LeakyRelu", "PRelu", "Relu"})


@dataclass(frozen=True)
class Link:
    """The channels that ``source`` makes, and the ``sinks`` that multiply them by weights.

    ``ceiling`` is the lowest bound of a Clip on the way (infinite if there is none): a channel may
    be scaled only where it is never reached.
    """

    source: Source
    through: tuple[ir.Node, ...]
    sinks: tuple[ir.Node, ...]
    ceiling: float = inf


class _NoLinkError(Exception):
    """Why channels cannot be followed further; never leaves this file."""


def links_of(
    sources: Iterable[Source | SkippedLayer], kept: frozenset[str]
) -> tuple[list[Link], list[SkippedLayer]]:
    """The links from ``sources``, and why some have none; ``kept`` tensors are not scaled."""
    found, skipped = [], []
    for source in sources:
        if isinstance(source, SkippedLayer):
            skipped.append(source)
            continue
        walk = _Walk(kept)
        try:
            for node in source.nodes:
                _refuse_shared(node)
            walk.follow(source.value, source.axis)
        except _NoLinkError as fault:
            skipped.append(SkippedLayer(node=source.name, reason=str(fault)))
        else:
            found.append(Link(source, tuple(walk.through), tuple(walk.sinks), walk.ceiling))
    return found, skipped


class _Walk:
    """Follows channels from reader to reader."""

    def __init__(self, kept: frozenset[str]) -> None:
        self.kept = kept
        self.through: list[ir.Node] = []
        self.sinks: list[ir.Node] = []
        self.ceiling = inf

    def follow(self, value: ir.Value, axis: int) -> None:
        """Everything that reads ``value``. Raises _NoLinkError where one reader cannot be."""
        if value.is_graph_output():
            raise _NoLinkError(f"`{value.name}` is an output of the graph")
        if str(value.name) in self.kept:
            raise _NoLinkError(f"the graph is cut at `{value.name}`, whose numbers stay")
        uses = tuple(value.uses())
        if not uses:
            raise _NoLinkError(f"nothing reads `{value.name}`")
        for use in uses:
            if use.idx == 0 and weighted(use.node):
                self._end(use.node, axis)
            elif use.idx == 0 and self._passes(use.node, axis):
                self.through.append(use.node)
                self.follow(use.node.outputs[0], _axis_behind(use.node, axis))
            else:
                raise _NoLinkError(_obstacle(use.node))

    def _end(self, node: ir.Node, axis: int) -> None:
        dims = dims_of(node.inputs[0])
        if dims is None or input_channel_axis(node) % len(dims) != axis:
            raise _NoLinkError(f"`{node.name}` does not sum over the channels")
        _refuse_shared(node)
        self.sinks.append(node)

    def _passes(self, node: ir.Node, axis: int) -> bool:
        """Whether a positive factor of a channel comes out of the node as it went in."""
        if node.op_type == "Clip":
            return self._passes_clip(node)
        if node.op_type in _POOLS:
            return axis == 1
        return node.op_type in {*_POINTWISE, *VIEWS, "Transpose"}

    def _passes_clip(self, node: ir.Node) -> bool:
        """A Clip at 0 is a Relu; any other bound must be one that is never reached from above."""
        bounds = [*node.inputs, None, None][1:3]
        low, high = (constant_of(value) for value in bounds)
        if any(b is not None and c is None for b, c in zip(bounds, (low, high), strict=True)):
            return False
        if low is not None and low not in (0, -inf):
            return False
        if high is None or high == 0:
            return True
        bent = any(before.op_type in {"LeakyRelu", "PRelu"} for before in self.through)
        self.ceiling = min(self.ceiling, float(high))
        return bool(high > 0) and not bent


def _refuse_shared(node: ir.Node) -> None:
    weight = node.inputs[1] if node.op_type in WEIGHTED else None
    if weight is not None and len(weight.uses()) > 1:
        raise _NoLinkError(f"the weight of `{node.name}` is shared with another layer")


def _obstacle(node: ir.Node) -> str:
    what = f"{node.op_type} `{node.name}`"
    if node.op_type in WEIGHTED:
        return f"{what} multiplies it by something computed"
    if node.op_type == "Clip":
        return f"{what} cuts at other places once it is scaled"
    if len([v for v in node.inputs if v is not None and constant_of(v) is None]) > 1:
        return f"{what} joins it with another tensor: a branch"
    return f"{what} does not let factors of channels pass"


def _axis_behind(node: ir.Node, axis: int) -> int:
    """Where the axis of channels lies behind a node. Raises _NoLinkError where it is lost."""
    if node.op_type == "Transpose":
        dims = dims_of(node.inputs[0])
        order = node.attributes.get_ints("perm", tuple(range(len(dims or ())))[::-1])
        return tuple(order).index(axis)
    if node.op_type not in VIEWS:
        return axis
    before, after = dims_of(node.inputs[0]), dims_of(node.outputs[0])
    inner = () if before is None else before[axis + 1 :]
    for place in range(len(after or ()) if before is not None and None not in inner else 0):
        rest = (after or ())[place + 1 :]
        same = None not in rest and prod(d or 0 for d in rest) == prod(d or 0 for d in inner)
        if same and before is not None and (after or ())[place] == before[axis]:
            return place
    raise _NoLinkError(f"{node.op_type} `{node.name}` mixes channels with another axis")
