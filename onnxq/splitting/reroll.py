"""Copies of one body that share their weights, one behind the other → the Loop that they came from.

Exporters that trace write a sampler's loop down step by step. The copies are found by what every
node is: operator, attributes, shapes, and the weights that it multiplies by. Other constants may
differ from copy to copy, as the coefficients of a noise schedule do.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from jaxtyping import Int, Shaped
from onnx import helper, numpy_helper

from onnxq.errors import ExportError
from onnxq.graph import WEIGHTED, constants_of, shapes_of
from onnxq.splitting.known_constants import kinds_of
from onnxq.splitting.loops import LoopSplit, split_loops

__all__ = ["rerolled", "split_steps"]

_LEAST_COPIES, _COUNT = 3, "steps.count"
Array = Shaped[np.ndarray, "..."]
Copies = Sequence[Sequence[onnx.NodeProto]]
Slot = tuple[str, ...]  # what the same input of every copy reads


def split_steps(model: onnx.ModelProto) -> LoopSplit | None:
    """``split_loops`` of the graph with its copies in a Loop; None if there is no such split."""
    loop = rerolled(model)
    if loop is None:
        return None
    try:
        return split_loops(loop)
    except ExportError:  # random numbers, or a shape that changes: no loop that a host could run
        return None


def rerolled(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """``model`` with a Loop in place of the copies; None if there are no three of one body whose
    results only the next copy and, of the last, the rest of the graph reads."""
    nodes = list(model.graph.node)
    shapes, constants = shapes_of(model), constants_of(model)
    kinds = [_kind(node, shapes, constants) for node in nodes]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds))}
    for start, period, count in _repetitions(np.array([numbers[kind] for kind in kinds])):
        copies = [nodes[start + i * period : start + (i + 1) * period] for i in range(count)]
        rest = [*nodes[:start], *nodes[start + count * period :]]
        if not any(n.op_type in WEIGHTED and set(n.input) & set(constants) for n in copies[0]):
            continue
        loop = _Rolled(copies, rest, constants, model).loop()
        if loop is not None:
            made = onnx.ModelProto()
            made.CopyFrom(model)
            del made.graph.node[:], made.graph.value_info[:]
            made.graph.node.extend([*nodes[:start], loop, *nodes[start + count * period :]])
            made.graph.initializer.append(numpy_helper.from_array(np.array(count), _COUNT))
            return onnx.shape_inference.infer_shapes(made, data_prop=True)
    return None


def _kind(
    node: onnx.NodeProto, shapes: Mapping[str, tuple[int, ...]], constants: Mapping[str, Array]
) -> tuple[object, ...]:
    """What a node of every copy has in common."""

    def of(name: str) -> object:
        if name not in constants:
            return bool(name)
        same = node.op_type in WEIGHTED or constants[name].dtype.kind != "f"
        return name if same else (constants[name].shape, constants[name].dtype.str)

    attributes = tuple(sorted(a.SerializeToString(deterministic=True) for a in node.attribute))
    made = tuple(shapes.get(name) for name in node.output)
    return node.domain, node.op_type, attributes, made, tuple(of(name) for name in node.input)


def _repetitions(kinds: Int[np.ndarray, " n"]) -> Iterator[tuple[int, int, int]]:
    """Start, period and number of copies of what repeats; what covers most nodes comes first."""
    found = []
    for period in range(2, len(kinds) // _LEAST_COPIES + 1):
        same = np.concatenate([[False], kinds[:-period] == kinds[period:], [False]])
        edges = np.flatnonzero(same[1:] != same[:-1])
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            count = (end - begin) // period + 1
            if count >= _LEAST_COPIES:
                last = int(end) + period - int(count) * period
                found += [
                    (-int(count) * period, period, start) for start in range(int(begin), last + 1)
                ]
    for covered, period, start in sorted(found):
        yield start, period, -covered // period


class _Rolled:
    """Follows what every copy reads."""

    def __init__(
        self,
        copies: Copies,
        rest: Sequence[onnx.NodeProto],
        constants: Mapping[str, Array],
        model: onnx.ModelProto,
    ) -> None:
        self._copies, self._constants, self._kinds = copies, constants, kinds_of(model)
        made = [[name for node in copy for name in node.output if name] for copy in copies]
        self._then = {slot: slot[0] for slot in zip(*made, strict=True)}
        self._own = {name for names in made for name in names}
        outside = {name for node in rest for name in node.input}
        self._read = (outside | {value.name for value in model.graph.output}) & self._own
        self._last = dict(zip(made[-1], made[0], strict=True))
        self._states: dict[Slot, str] = {}
        self._rows: dict[Slot, str] = {}

    def loop(self) -> onnx.NodeProto | None:
        """The Loop; None if the copies do not hang together as its runs would."""
        nodes = []
        for number, node in enumerate(self._copies[0]):
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            for index in range(len(node.input)):
                name = self._inner(tuple(c[number].input[index] for c in self._copies))
                if name is None:
                    return None
                copy.input[index] = name
            nodes.append(copy)
        ends = {slot: self._behind(slot) for slot in self._states}
        states = {slot: ends[slot] for slot in ends if ends[slot] is not None}
        given = {end: name for name, end in self._last.items()}
        outputs = [given[str(end)] for end in states.values()]
        if len(states) < len(ends) or not self._read <= set(outputs) or not states:
            return None
        return self._node(nodes, states, outputs)

    def _inner(self, slot: Slot) -> str | None:
        """The body's name for what an input reads; None if a loop could not give it."""
        if len(set(slot)) == 1 and slot[0] not in self._own:
            return slot[0]
        if slot in self._then:
            return slot[0]
        if all(name in self._constants for name in slot):
            if len({self._constants[name].shape for name in slot}) > 1:
                return None
            return self._rows.setdefault(slot, f"steps.row_{len(self._rows)}")
        return self._states.setdefault(slot, f"steps.state_{len(self._states)}")

    def _behind(self, slot: Slot) -> str | None:
        """What the first copy makes of a state for the second one, as every copy for the next."""
        if slot[0] in self._own:
            return None
        return next((then for made, then in self._then.items() if made[:-1] == slot[1:]), None)

    def _node(
        self, nodes: Sequence[onnx.NodeProto], states: Mapping[Slot, str | None], outputs: list[str]
    ) -> onnx.NodeProto:
        info, of = helper.make_tensor_value_info, onnx.TensorProto
        cut = [
            helper.make_node("Gather", [f"{name}.all", "steps.run"], [name], axis=0)
            for name in self._rows.values()
        ]
        body = helper.make_graph(
            [helper.make_node("Identity", ["steps.on"], ["steps.still_on"]), *cut, *nodes],
            "body",
            [
                info("steps.run", of.INT64, []),
                info("steps.on", of.BOOL, []),
                *(
                    info(self._states[slot], self._kinds[str(end)], None)
                    for slot, end in states.items()
                ),
            ],
            [
                info("steps.still_on", of.BOOL, []),
                *(info(str(end), self._kinds[str(end)], None) for end in states.values()),
            ],
            [
                numpy_helper.from_array(
                    np.stack([self._constants[name] for name in slot]), f"{name}.all"
                )
                for slot, name in self._rows.items()
            ],
        )
        firsts = [slot[0] for slot in states]
        return helper.make_node("Loop", [_COUNT, "", *firsts], outputs, "steps", body=body)
