"""With how many bits each node computes: what a recipe asks for, and what is kept at 8 bits.

Asked for 4-bit weights, a network's ends, its depthwise convolutions and what makes an embedding of
a number are kept at 8. Depthwise weights are few and cost most: EfficientNet-Lite0, 4 bits rounded
to nearest, agrees with FP32 on 0.21 of 500 pictures with them at 4 bits and on 0.42 with them at 8,
for 3 % more bytes.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxq.artifacts import WeightPrecision
from onnxq.errors import QuantizationError, TargetRuleError, nearest
from onnxq.graph import WEIGHTED, constant_input, dims_of
from onnxq.qtypes import IntType
from onnxq.quantize.blocks import block_view
from onnxq.recipe import NodePrecision, QuantizeSection
from onnxq.target import Target

__all__ = ["AS_THE_TARGET", "Precision", "left_float", "precision_of", "refuse_unsupported"]

FIRST, LAST = "first weighted node", "last weighted node"
EMBEDS, DEPTHWISE = "embeds a number", "depthwise"
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Precision:
    """``weights`` says for nodes by name what differs from the target's own weights, ``wide`` names
    the nodes whose activations have 16 bits; 4-bit weights lie in blocks of ``block``, if any."""

    weights: Mapping[str, WeightPrecision] = field(default_factory=dict)
    wide: Collection[str] = frozenset()
    block: int = 0

    @property
    def needs_opset_21(self) -> bool:
        """Whether a type is used that older opsets' Q and DQ have not."""
        return bool(self.wide) or any(w.stored is IntType.INT4 for w in self.weights.values())

    def view_of(
        self, node: ir.Node, shape: Sequence[int], axis: int | None
    ) -> tuple[int, ...] | None:
        """The shape of the node's weight with its blocks apart; None if it has none."""
        bits = self.weights.get(str(node.name))
        if not self.block or bits is None or bits.type is not IntType.INT4:
            return None
        return block_view(shape, axis, self.block)


AS_THE_TARGET = Precision()


def left_float(model: ir.Model, section: QuantizeSection) -> dict[str, str]:
    """Nodes that the section keeps float, by name, with the reason.

    Raises QuantizationError if ``precision`` names a node that there is not.
    """
    found = {waiver.name: waiver.reason for waiver in section.exclude}
    for name, entry in _asked(model, section.precision).items():
        if entry.weights == "float":
            found.setdefault(name, entry.reason or "precision: float weights")
    return found


def precision_of(model: ir.Model, section: QuantizeSection) -> Precision:
    """The bits of every node whose weight is constant, and whose activations are wide.

    Where the section asks for int4, 8 bits are kept by the nodes of ``_kept``, and by those that
    ``precision`` names with int8; a later entry overrules an earlier one. Nodes that share a weight
    share its bits: the more. Raises QuantizationError if ``precision`` names a node that there is
    not, or asks bits for the weight of one that has none.
    """
    asked = _asked(model, section.precision)
    weighted = list(_weighted(model.graph))
    kept = _kept(model.graph) if section.weights == "int4" else {}
    stored = IntType.INT8 if section.storage == "int8" else IntType.INT4
    found: dict[str, WeightPrecision] = {}
    for node in weighted:
        name = str(node.name)
        entry = asked.get(name)
        bits: str = section.weights
        reason = ""
        if entry is not None and entry.weights is not None:
            bits, reason = entry.weights, entry.reason or "precision"
        elif name in kept:
            bits, reason = "int8", kept[name]
        if bits == "int4":
            found[name] = WeightPrecision(type=IntType.INT4, stored=stored, reason=reason)
        elif reason:
            found[name] = WeightPrecision(type=IntType.INT8, stored=IntType.INT8, reason=reason)
    wide = {name for name, entry in asked.items() if entry.activations == "int16"}
    return Precision(_as_shared(weighted, found), frozenset(wide), section.block or 0)


def refuse_unsupported(section: QuantizeSection, targets: Iterable[Target]) -> None:
    """Raise TargetRuleError if one of ``targets`` has no place for the bits that are asked for."""
    four = section.has_4_bits
    wide = any(entry.activations == "int16" for entry in section.precision)
    for target in targets:
        if four and section.storage == "packed" and IntType.INT4 not in target.weight_types:
            raise TargetRuleError(
                f"4-bit weights cannot be stored for it: {_says(target, 'weight_types')}",
                where=f"{target.name}, quantize: weights: int4",
                do="say `storage: int8` (--storage int8): the numbers keep to the 4-bit grid, a "
                "byte each",
            )
        if wide and target.wide_activations == "refused":
            raise TargetRuleError(
                f"16-bit activations: {_says(target, 'wide_activations')}",
                where=f"{target.name}, quantize: precision",
                do="leave `activations: int16` out, or keep those nodes float by `weights: float`",
            )


def _says(target: Target, what: str) -> str:
    fact = target.facts.get(what)
    return fact.says if fact is not None else "its profile names no such type"


# --- what is kept at 8 bits ---------------------------------------------------------------------


def _kept(graph: ir.Graph) -> dict[str, str]:
    """Nodes that keep 8-bit weights where 4 are asked for, by name, with the reason.

    The first on a path from an input, that is with no weighted node before it; the last on a path
    to an output; those that embed a number: what they take depends on such inputs alone as hold
    one number a sample (a timestep, a class), while the graph has others too; and convolutions
    whose every output channel reads one input channel of several.
    """
    after = _depends(graph, _weighted(graph))
    before = _leads(graph, _weighted(graph))
    numbers = {value for value in graph.inputs if _is_one_number(value)}
    on_others = _computed_from(graph, [v for v in graph.inputs if v not in numbers])
    on_numbers = _computed_from(graph, numbers)
    found = {}
    for node in _weighted(graph):
        data = node.inputs[0]
        embeds = data in on_numbers and data not in on_others
        if embeds and len(numbers) < len(graph.inputs):
            found[str(node.name)] = EMBEDS
        elif not any(value in after for value in node.inputs):
            found[str(node.name)] = FIRST
        elif not any(value in before for value in node.outputs):
            found[str(node.name)] = LAST
        elif _is_depthwise(node):
            found[str(node.name)] = DEPTHWISE
    return found


def _is_depthwise(node: ir.Node) -> bool:
    groups, weight = node.attributes.get_int("group", 1), constant_input(node, 1)
    if weight is None or groups == 1:
        return False
    one = weight.shape[1] if node.op_type == "Conv" else weight.shape[0] // groups
    return node.op_type in {"Conv", "ConvTranspose"} and one == 1


def _is_one_number(value: ir.Value) -> bool:
    """Whether a graph input holds one number for each sample, or one for all."""
    dims = dims_of(value)
    return dims is not None and all(dim == 1 for dim in dims[1:])


def _computed_from(graph: ir.Graph, values: Iterable[ir.Value]) -> set[ir.Value | None]:
    """``values``, and everything that depends on them."""
    found: set[ir.Value | None] = set(values)
    for node in graph:
        if any(value in found for value in node.inputs):
            found |= set(node.outputs)
    return found


def _depends(graph: ir.Graph, nodes: Iterable[ir.Node]) -> set[ir.Value | None]:
    """Values behind one of ``nodes``."""
    return _computed_from(graph, [value for node in nodes for value in node.outputs])


def _leads(graph: ir.Graph, nodes: Iterable[ir.Node]) -> set[ir.Value | None]:
    """Values that one of ``nodes`` is computed from."""
    wanted = set(nodes)
    found: set[ir.Value | None] = set()
    for node in reversed(list(graph)):
        if node in wanted or any(value in found for value in node.outputs):
            found |= {value for value in node.inputs if value is not None}
    return found


# --- names --------------------------------------------------------------------------------------


def _weighted(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes with a constant weight."""
    return (n for n in graph if n.op_type in WEIGHTED and constant_input(n, 1) is not None)


def _asked(model: ir.Model, entries: Iterable[NodePrecision]) -> dict[str, NodePrecision]:
    """The entry that rules for each node which one names, by its name or by a pattern of names."""
    nodes = {str(node.name): node for node in model.graph if node.op_type != "Constant"}
    with_weight = {str(node.name) for node in _weighted(model.graph)}
    found: dict[str, NodePrecision] = {}
    for entry in entries:
        if entry.name in nodes:
            named = {entry.name}
        elif _GLOB & set(entry.name):
            named = {name for name in nodes if fnmatchcase(name, entry.name)}
        else:
            named = set()
        if not named:
            what = f"no node is called `{entry.name}`; {nearest(entry.name, nodes)}"
            raise QuantizationError(what, where="quantize: precision")
        if entry.weights in ("int4", "int8"):
            named &= with_weight
        if not named:
            what = f"`{entry.name}` has no constant weight that could be {entry.weights}"
            do = "leave `weights` out, or name a Conv, ConvTranspose, Gemm or MatMul"
            raise QuantizationError(what, where="quantize: precision", do=do)
        for name in named:
            found[name] = _over(found.get(name), entry)
    return found


def _over(below: NodePrecision | None, above: NodePrecision) -> NodePrecision:
    """What ``above`` says, and where it is silent, what ``below`` does."""
    if below is None:
        return above
    said = {key: value for key, value in above.model_dump().items() if value is not None}
    return below.model_copy(update=said)


def _as_shared(
    nodes: Iterable[ir.Node], found: Mapping[str, WeightPrecision]
) -> dict[str, WeightPrecision]:
    """``found``, with 8 bits for every user of a weight that one user wants with 8 bits."""
    four = {name for name, each in found.items() if each.type is IntType.INT4}
    users: dict[ir.Value | None, list[str]] = {}
    for node in nodes:
        users.setdefault(node.inputs[1], []).append(str(node.name))
    changed = dict(found)
    for names in users.values():
        wide = [name for name in names if name not in four]
        for name in names if wide else ():
            if name in four:
                changed[name] = WeightPrecision(
                    type=IntType.INT8, stored=IntType.INT8, reason=f"shares the weight of {wide[0]}"
                )
    return changed
