"""Sets of a graph's nodes, and the parts that are made of them."""

from collections.abc import Iterable, Mapping, Sequence

import onnx

from onnxq.graph import WEIGHTED, constants_of, shapes_of
from onnxq.recipe import PartSection, PartValue, SplitSection
from onnxq.splitting.route import MOVERS

__all__ = ["Pieces"]

Nodes = Sequence[onnx.NodeProto]


class Pieces:
    """A graph, and which of its nodes go together. Nodes are called by their number."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: Nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        self.shapes: Mapping[str, tuple[int, ...]] = shapes_of(model)
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]
        self._constants = set(constants_of(model))
        self._makers = {name: i for i, node in enumerate(self.nodes) for name in node.output}

    def data(self, node: onnx.NodeProto) -> list[str]:
        """What the node takes that is computed."""
        return [name for name in node.input if name and name not in self._constants]

    def has_weight(self, node: onnx.NodeProto) -> bool:
        """Whether the node multiplies by something that was learned, not by a computed value."""
        return node.op_type in WEIGHTED and len(self.data(node)) < 2

    def before(self, names: Iterable[str]) -> set[int]:
        """Numbers of all nodes that ``names`` are computed by."""
        found: set[int] = set()
        waiting = [self._makers[name] for name in names if name in self._makers]
        while waiting:
            index = waiting.pop()
            if index not in found:
                found.add(index)
                waiting += [
                    self._makers[n] for n in self.data(self.nodes[index]) if n in self._makers
                ]
        return found

    def behind(self, numbers: set[int]) -> set[int]:
        """Numbers of all nodes that take, directly or not, what ``numbers`` make."""
        reached = set(numbers)
        for index, node in enumerate(self.nodes):
            if any(self._makers.get(name) in reached for name in self.data(node)):
                reached.add(index)
        return reached - numbers

    def split(
        self, parts: Mapping[str, set[int]], each_row: frozenset[str] = frozenset()
    ) -> SplitSection | None:
        """Parts of these nodes. What only moves values at the begin of a part is the host's."""
        sections = self.sections(parts, each_row)
        if len(sections) + sum(part.each_row for part in sections) < 2:
            return None
        return SplitSection(parts=sections)

    def sections(
        self, parts: Mapping[str, set[int]], each_row: frozenset[str] = frozenset()
    ) -> tuple[PartSection, ...]:
        """Parts of these nodes, in their order, without those that only move values."""
        kept = {name: self._without_first_moves(numbers) for name, numbers in parts.items()}
        kept = {name: numbers for name, numbers in kept.items() if numbers}
        sections = []
        for name, numbers in kept.items():
            made = {output for index in numbers for output in self.nodes[index].output}
            taken = [n for index in sorted(numbers) for n in self.data(self.nodes[index])]
            elsewhere = {
                n
                for index, node in enumerate(self.nodes)
                if index not in numbers
                for n in self.data(node)
            }
            sections.append(
                PartSection(
                    name=name,
                    each_row=name in each_row,
                    inputs=_values(n for n in taken if n not in made),
                    outputs=_values(
                        output
                        for index in sorted(numbers)
                        for output in self.nodes[index].output
                        if output in elsewhere or output in self.outputs
                    ),
                )
            )
        return tuple(sections)

    def _without_first_moves(self, numbers: set[int]) -> set[int]:
        kept = set(numbers)
        for index in sorted(numbers):
            node = self.nodes[index]
            outside = all(self._makers.get(name) not in kept for name in self.data(node))
            fixed = node.op_type == "Concat" or len(self.data(node)) == 1  # not by computed indices
            if node.op_type in MOVERS and outside and fixed:
                kept.discard(index)
        return kept if any(self.nodes[i].op_type not in MOVERS for i in kept) else set()


def _values(names: Iterable[str]) -> tuple[PartValue, ...]:
    return tuple(PartValue(tensor=name) for name in dict.fromkeys(names))
