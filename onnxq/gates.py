"""Gated activations as they stand in a graph: ``x · gate(x)`` with a gate of one or two operators.

Told by their numbers, not by names: a framework writes hard-swish as HardSwish, as
``x · HardSigmoid(x)``, or as Add, Clip and Mul.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.graph import constant_of

__all__ = ["HardSwish", "Swish", "gates_of", "hard_swish_at", "swish_at", "useful_from"]


@dataclass(frozen=True)
class HardSwish:
    """``factor · x · clip(x + offset, 0, height)``; ``nodes`` in their order, the last gives it."""

    data: ir.Value
    nodes: tuple[ir.Node, ...]
    offset: float
    height: float
    factor: float = 1.0

    @property
    def name(self) -> str:
        """What a report calls it."""
        return "hard-swish"

    @property
    def lowest(self) -> float:
        """Below this ``x`` the result is 0 whatever ``x`` is."""
        return -self.offset


@dataclass(frozen=True)
class Swish:
    """``x · Sigmoid(x)``; ``nodes`` in their order, the last gives it."""

    data: ir.Value
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """What a report calls it."""
        return "swish"

    @property
    def lowest(self) -> float:
        """Below this ``x`` the result is within 0.0008 of 0, and falls off exponentially."""
        return -9.0


def gates_of(nodes: Iterable[ir.Node]) -> list[HardSwish | Swish]:
    """Every gated activation among ``nodes``, in their order."""
    return [gate for node in nodes if (gate := hard_swish_at(node) or swish_at(node)) is not None]


def useful_from(nodes: Iterable[ir.Node]) -> dict[str, float]:
    """Tensors that only a gated activation reads → the value below which its result is 0."""
    return {
        str(gate.data.name): gate.lowest
        for gate in gates_of(nodes)
        if not gate.data.is_graph_output()
        and all(use.node in gate.nodes for use in gate.data.uses())
    }


def swish_at(node: ir.Node) -> Swish | None:
    """The swish that ends in the Mul ``node``."""
    for data, gate in _factors(node):
        maker = _alone(gate)
        if maker is not None and maker.op_type == "Sigmoid" and maker.inputs[0] is data:
            return Swish(data, (maker, node))
    return None


def hard_swish_at(node: ir.Node) -> HardSwish | None:
    """The hard-swish that ends in ``node``: a HardSwish, or the Mul of ``x`` by its gate."""
    if node.op_type == "HardSwish" and not node.domain and node.inputs[0] is not None:
        return HardSwish(node.inputs[0], (node,), 3.0, 6.0, 1 / 6)
    for data, gate in _factors(node):
        maker = _alone(gate)
        if maker is None:
            continue
        if maker.op_type == "HardSigmoid" and maker.inputs[0] is data:
            slope = maker.attributes.get_float("alpha", 0.2)
            offset = maker.attributes.get_float("beta", 0.5)
            if slope > 0 and offset > 0:
                return HardSwish(data, (maker, node), offset / slope, 1 / slope, slope)
        if maker.op_type == "Clip":
            total = _alone(maker.inputs[0])
            offset, height = _shift(total, data), _height(maker)
            if total is not None and offset > 0 and height > 0:
                return HardSwish(data, (total, maker, node), offset, height)
    return None


def _factors(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    if node.op_type != "Mul" or node.domain or len(node.inputs) != 2:
        return []
    one, other = node.inputs
    return [] if one is None or other is None or one is other else [(one, other), (other, one)]


def _alone(value: ir.Value | None) -> ir.Node | None:
    """What makes ``value``, if it is read in one place."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    maker = value.producer()
    return maker if maker is not None and not maker.domain else None


def _shift(node: ir.Node | None, data: ir.Value) -> float:
    """``c`` of a node that makes ``data + c``; 0 for any other."""
    if node is None or node.op_type != "Add":
        return 0.0
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        constant = constant_of(other)
        if value is data and constant is not None and constant.size == 1:
            return float(constant.reshape(-1)[0])
    return 0.0


def _height(clip: ir.Node) -> float:
    """The upper bound of a Clip whose lower one is 0; else 0."""
    bounds = [constant_of(value) for value in (*clip.inputs[1:], None, None)[:2]]
    if bounds[0] is None or bounds[1] is None or float(bounds[0].reshape(-1)[0]) != 0:
        return 0.0
    return float(bounds[1].reshape(-1)[0])
