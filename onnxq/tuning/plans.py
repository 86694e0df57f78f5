"""Plans of mixed precision: in what order layers take fewer bits, or more, and as a recipe says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import yaml

from onnxq.artifacts import LayerSensitivity
from onnxq.errors import TargetRuleError
from onnxq.quantize.precision import refuse_unsupported
from onnxq.recipe import NodePrecision, QuantizeSection, Step
from onnxq.target import Target

__all__ = ["Bits", "MixedPlan", "downward", "recipe_lines", "refused_bits", "upward"]

Bits = Literal["int4", "int16", "float"]  # what differs from 8 bits


@dataclass(frozen=True)
class MixedPlan:
    """What differs from 8 bits, by node; ``steps`` refine it."""

    name: str
    nodes: Mapping[str, Bits] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()

    def section(self, given: QuantizeSection) -> QuantizeSection:
        """``given`` with these bits and steps; what it says of other nodes stays."""
        mine = tuple(_precision(node, bits) for node, bits in self.nodes.items())
        others = tuple(entry for entry in given.precision if entry.weights != "int4")
        values = given.model_dump() | {"weights": "int8", "steps": self.steps}
        values["precision"] = (*others, *mine)
        if "int4" not in self.nodes.values():
            values |= {"block": None, "storage": "packed"}
        return QuantizeSection.model_validate(values)


def refused_bits(target: Target, given: QuantizeSection) -> dict[Bits, str]:
    """Bits that the target has no place for, with the reason."""
    refused: dict[Bits, str] = {}
    for bits in ("int4", "int16"):
        try:
            refuse_unsupported(MixedPlan("", {"n": bits}).section(given), [target])
        except TargetRuleError as fault:
            refused[bits] = fault.what
    return refused


def downward(
    rows: Iterable[LayerSensitivity], with_4_bits: Mapping[str, float]
) -> list[tuple[str, Bits]]:
    """Layers with weights in the order that they take 4 bits: by what that adds to the error of the
    outputs for each weight, the least first. ``with_4_bits`` is the error of each by itself."""
    costs = {
        row.layer: (with_4_bits[row.layer] - (row.only_weights or 0.0)) / row.weights
        for row in rows
        if row.weights and row.layer in with_4_bits
    }
    return [(name, "int4") for name in sorted(costs, key=lambda name: (costs[name], name))]


def upward(rows: Sequence[LayerSensitivity], refused: Iterable[str]) -> list[tuple[str, Bits]]:
    """Layers in the order that they take more bits: the costliest first. One whose activations cost
    more than its weights gets 16-bit activations where the target takes them; others are float."""
    wide = "int16" not in refused
    order = sorted(
        (row for row in rows if row.only and row.op_type != "Input"),
        key=lambda row: (-(row.only or 0.0), row.layer),
    )
    found: list[tuple[str, Bits]] = []
    for row in order:
        by_activations = (row.only_activations or 0.0) > (row.only_weights or 0.0)
        found.append((row.layer, "int16" if by_activations and wide else "float"))
    return found


def recipe_lines(section: QuantizeSection) -> str:
    """The section ``quantize`` of a recipe, as it is pasted."""
    values = section.model_dump(mode="json", exclude_defaults=True)
    for entry in values.get("precision", []):
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]
    return yaml.safe_dump({"quantize": values}, sort_keys=False, width=100)


def _precision(node: str, bits: Bits) -> NodePrecision:
    if bits == "int16":
        return NodePrecision(name=node, activations="int16")
    reason = "onnxq tune: it costs the most accuracy" if bits == "float" else None
    return NodePrecision(name=node, weights=bits, reason=reason)
