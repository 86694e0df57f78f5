"""Loops and Scans of a graph as parts: the body once, run as often as the loop would.

What lies before, between and behind loops becomes ordinary parts. All of it is FP32: no stage of
the pipeline looks inside a loop, so what is quantized is either the unrolled graph, whose ranges
are those of every step, or a body by itself, as any other model, on what its runs took in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx import helper, numpy_helper

from onnxq.computed_shapes import with_computed_shapes
from onnxq.graph import constants_of, shapes_of, with_batch_of_one
from onnxq.recipe import PartSection
from onnxq.splitting.known_constants import kinds_of, with_known_constants
from onnxq.splitting.loop_body import LOOPS, Body, Outside, body_of, names_read
from onnxq.splitting.pieces import Pieces

__all__ = ["CONSTANTS", "LoopSplit", "split_loops"]

CONSTANTS = "Constants"  # the part that gives what loops begin with, where that is fixed
Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True)
class LoopSplit:
    """``model`` is the graph without its loops, whose results are inputs of it; ``parts`` in the
    order in which they run."""

    reasons: tuple[str, ...]
    model: onnx.ModelProto
    parts: tuple[PartSection | Body, ...]


def split_loops(model: onnx.ModelProto) -> LoopSplit | None:
    """The graph cut around the bodies of its loops, for one sample; None if it has no loop.

    Raises ExportError for a loop whose number of runs or shapes are not known before a run, and for
    a graph that draws random numbers.
    """
    if not any(node.op_type in LOOPS for node in model.graph.node):
        return None
    return _Loops(with_known_constants(with_batch_of_one(model))).split()


class _Loops:
    """Takes loops out of a graph, one after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._loops = [node for node in model.graph.node if node.op_type in LOOPS]
        self._outside = onnx.ModelProto()
        self._outside.CopyFrom(model)
        graph = self._outside.graph
        plain = [node for node in model.graph.node if node.op_type not in LOOPS]
        del graph.node[:], graph.value_info[:]
        graph.node.extend(plain)
        self._constants = constants_of(model)
        self._levels = dict.fromkeys((value.name for value in model.graph.input), 0)
        self._bodies: list[tuple[int, Body]] = []

    def split(self) -> LoopSplit:
        for number, node in enumerate(self._loops, 1):
            body = self._body(node, f"Body{number}")
            level = self._level(node)
            self._bodies.append((level, body))
            self._levels.update(dict.fromkeys(body.shapes, level + 1))
            kinds = kinds_of(body.model)
            given = {**body.outputs, **{own: rows.value for own, rows in body.stacked.items()}}
            self._outside.graph.input.extend(
                helper.make_tensor_value_info(name, kinds[own], body.shapes[name])
                for own, name in given.items()
            )
        reasons = [
            f"{node.op_type} `{node.name or node.output[0]}` runs its body of "
            f"{len(body.model.graph.node)} nodes {body.times} times: a part of its own, whose "
            "state the host carries"
            for node, (_, body) in zip(self._loops, self._bodies, strict=True)
        ]
        outside = onnx.shape_inference.infer_shapes(self._outside, data_prop=True)
        return LoopSplit(tuple(reasons), outside, tuple(self._ordered()))

    def _body(self, node: onnx.NodeProto, name: str) -> Body:
        shaped, fixed = with_computed_shapes(self._outside), self._constants
        types = {n: helper.np_dtype_to_tensor_dtype(array.dtype) for n, array in fixed.items()}
        shapes = shapes_of(shaped) | {n: array.shape for n, array in fixed.items()}
        return body_of(node, name, Outside(shaped, fixed, kinds_of(shaped) | types, shapes))

    def _level(self, node: onnx.NodeProto) -> int:
        """How many loops, one behind the other, lie before what a node reads."""
        makers = {n: node for node in self._outside.graph.node for n in node.output}
        waiting, seen, level = list(names_read([node])), set[str](), 0
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                level = max(level, self._levels.get(name, 0))
                waiting += names_read([makers[name]]) if name in makers else []
        return level

    def _ordered(self) -> Iterator[PartSection | Body]:
        """Constants that loops begin with or the graph gives; then, level by level, what lies
        outside of loops and the loops."""
        taken = dict.fromkeys(name for _, body in self._bodies for name in _taken(body))
        taken |= dict.fromkeys(value.name for value in self._outside.graph.output)
        fixed = {name: self._constants[name] for name in taken if name in self._constants}
        if fixed:
            yield _table(fixed, self._outside)
        graph = onnx.ModelProto()
        graph.CopyFrom(self._outside)
        known = {value.name for value in (*graph.graph.input, *graph.graph.output)} | set(fixed)
        graph.graph.output.extend(
            onnx.ValueInfoProto(name=name) for name in taken if name not in known
        )
        pieces = Pieces(graph)
        levels: dict[str, set[int]] = {}
        for number, node in enumerate(pieces.nodes):
            levels.setdefault(f"Part{self._level(node) + 1}", set()).add(number)
        sections = pieces.sections(levels)
        for level in range(1 + max(level for level, _ in self._bodies) + 1):
            yield from (part for part in sections if part.name == f"Part{level + 1}")
            yield from (body for own, body in self._bodies if own == level)


def _taken(body: Body) -> Iterator[str]:
    """Names of values of the graph that a body is given."""
    yield from body.inputs.values()
    yield from (carried.first for carried in body.carried.values())
    yield from (rows.value for rows in body.rows.values())


def _table(constants: Mapping[str, Array], around: onnx.ModelProto) -> Body:
    """A model that gives constants."""
    model = onnx.ModelProto()
    model.CopyFrom(around)
    model.graph.Clear()
    model.graph.name = CONSTANTS
    for name, array in constants.items():
        tensor = numpy_helper.from_array(array)
        model.graph.node.append(helper.make_node("Constant", [], [name], name, value=tensor))
        model.graph.output.append(
            helper.make_tensor_value_info(name, tensor.data_type, array.shape)
        )
    shapes = {name: array.shape for name, array in constants.items()}
    return Body(CONSTANTS, model, 1, outputs={name: name for name in shapes}, shapes=shapes)
