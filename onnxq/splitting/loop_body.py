"""The body of a Loop or Scan as a model of its own, and what the host passes from run to run.

A sampler of a diffusion model runs one denoiser hundreds of times. Unrolled, its graph is as many
times as long; as a part it is one model that is compiled, quantized and measured once, and the
host carries the state.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx import helper, numpy_helper

from onnxq.artifacts import Carried
from onnxq.computed_shapes import with_computed_shapes
from onnxq.errors import ExportError
from onnxq.graph import cut_to, shapes_of

__all__ = ["LOOPS", "Body", "Outside", "Rows", "body_of", "names_read"]

LOOPS = frozenset({"Loop", "Scan"})
_MOST_RUNS = 100_000
_KEEPS_TRUTH = frozenset({"Identity", "Cast"})
Array = Shaped[np.ndarray, "..."]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """A value of the graph that is cut along ``axis``, a slice for each run, the last one first
    where ``backward``."""

    value: str
    axis: int = 0
    backward: bool = False


@dataclass(frozen=True)
class Body:
    """A model that is run ``times`` times; names of its own to what they stand for in the graph.

    ``shapes`` are those of the values that it gives to the graph. Fields as in ``LoopStep``.
    """

    name: str
    model: onnx.ModelProto
    times: int
    inputs: Mapping[str, str] = field(default_factory=dict)
    carried: Mapping[str, Carried] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    counters: tuple[str, ...] = ()
    outputs: Mapping[str, str] = field(default_factory=dict)
    stacked: Mapping[str, Rows] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)


@dataclass(frozen=True)
class Outside:
    """What a body sees of the graph around it: constants, and types and shapes of the rest."""

    model: onnx.ModelProto
    constants: Mapping[str, Array]
    kinds: Mapping[str, int]
    shapes: Mapping[str, Shape]


def body_of(node: onnx.NodeProto, name: str, outside: Outside) -> Body:
    """The body of a Loop or Scan called ``name``.

    Raises ExportError if the number of runs is not known before a run, if it is 0, or if a state
    changes its shape from run to run.
    """
    where = f"{node.op_type} `{node.name or node.output[0]}`"
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    graph = onnx.GraphProto()
    graph.CopyFrom(attributes["body"])
    maker = _Loop(graph, outside, where)
    return maker.loop(node, name) if node.op_type == "Loop" else maker.scan(node, name, attributes)


class _Loop:
    """Makes the model of a body, step by step."""

    def __init__(self, graph: onnx.GraphProto, outside: Outside, where: str) -> None:
        self._graph, self._outside, self._where = graph, outside, where
        self._given = [value.name for value in graph.input]
        self._made = [value.name for value in graph.output]
        self._inputs: dict[str, onnx.ValueInfoProto] = {}

    def loop(self, node: onnx.NodeProto, name: str) -> Body:
        """Of a Loop: (count, condition, states…) → (condition, states…, rows…)."""
        count, condition, *states = (*node.input, "", "")[: max(2, len(node.input))]
        times = self._times(count, condition)
        counter, on, *own = self._given
        _, *made = self._made
        self._constant(on, np.array(True))
        carried = self._carried(states, own, made)
        counters = (self._counter(counter),) if self._reads(counter) else ()
        kept = len(states)
        return self._body(
            Body(
                name, onnx.ModelProto(), times,
                carried=carried,
                counters=counters,
                outputs=_named(made[:kept], node.output),
                stacked={
                    inner: Rows(outer)
                    for inner, outer in zip(made[kept:], node.output[kept:], strict=False)
                    if outer
                },
            )
        )  # fmt: skip

    def scan(self, node: onnx.NodeProto, name: str, attributes: Mapping[str, Any]) -> Body:
        """Of a Scan: (states…, what is cut…) → (states…, rows…)."""
        cut = attributes["num_scan_inputs"]
        kept = len(node.input) - cut
        rows, times = {}, set()
        axes = attributes.get("scan_input_axes", [0] * cut)
        ways = attributes.get("scan_input_directions", [0] * cut)
        for outer, inner, axis, way in zip(
            node.input[kept:], self._given[kept:], axes, ways, strict=True
        ):
            shape = self._shape(outer)
            place = axis % len(shape)
            rows[inner] = Rows(outer, place, bool(way))
            times.add(shape[place])
            self._input(inner, outer, (*shape[:place], *shape[place + 1 :]))
        if len(times) != 1 or times == {0}:
            raise self._refused(f"cuts {sorted(times)} slices: no run, or not as many of each")
        joined = len(node.output) - kept
        out_axes = attributes.get("scan_output_axes", [0] * joined)
        out_ways = attributes.get("scan_output_directions", [0] * joined)
        ends = zip(self._made[kept:], node.output[kept:], out_axes, out_ways, strict=False)
        return self._body(
            Body(
                name, onnx.ModelProto(), times.pop(),
                carried=self._carried(node.input[:kept], self._given[:kept], self._made[:kept]),
                rows=rows,
                outputs=_named(self._made[:kept], node.output),
                stacked={i: Rows(o, axis, bool(way)) for i, o, axis, way in ends if o},
            )
        )  # fmt: skip

    def _times(self, count: str, condition: str) -> int:
        constants = self._outside.constants
        number = constants.get(count)
        if number is None:
            raise self._refused("runs as often as is computed at run time")
        if condition and condition not in constants:
            raise self._refused("runs on a condition that is computed at run time")
        on = not condition or bool(np.all(constants[condition]))
        if not on or int(number.item()) < 1:
            raise self._refused("never runs")
        if int(number.item()) > _MOST_RUNS:
            raise self._refused(f"runs {number.item():,} times: the file may be damaged")
        if not self._stays_true(self._made[0]):
            raise self._refused("ends when its body says so, which is known at run time alone")
        return int(number.item())

    def _stays_true(self, name: str) -> bool:
        """Whether a condition is true in every run: a constant, or the one of the run before."""
        makers = {output: node for node in self._graph.node for output in node.output}
        while name in makers and makers[name].op_type in _KEEPS_TRUTH:
            name = makers[name].input[0]
        if name == self._given[1]:
            return True
        inner = {t.name: numpy_helper.to_array(t) for t in self._graph.initializer}
        node = makers.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            inner[name] = numpy_helper.to_array(node.attribute[0].t)
        known = inner.get(name, self._outside.constants.get(name))
        return known is not None and bool(np.all(known))

    def _carried(
        self, outer: Iterable[str], own: Iterable[str], made: Iterable[str]
    ) -> dict[str, Carried]:
        found = {}
        for first, inner, then in zip(outer, own, made, strict=False):
            self._input(inner, first, self._shape(first))
            found[inner] = Carried(first=first, then=then)
        return found

    def _counter(self, name: str) -> str:
        """The number of the run, in a vector of one as other inputs; a body wants a scalar."""
        declared = next(value for value in self._graph.input if value.name == name)
        if not declared.type.tensor_type.shape.dim:
            self._constant(f"{name}.shape", np.array([], np.int64))
            view = helper.make_node("Reshape", [f"{name}.run", f"{name}.shape"], [name])
            self._graph.node.insert(0, view)
            name = f"{name}.run"
        self._inputs[name] = helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [1])
        return name

    def _input(self, inner: str, outer: str, shape: Shape) -> None:
        kind = self._outside.kinds[outer]
        self._inputs[inner] = helper.make_tensor_value_info(inner, kind, shape)

    def _constant(self, name: str, array: Array) -> None:
        self._graph.initializer.append(numpy_helper.from_array(array, name))

    def _reads(self, name: str) -> bool:
        return name in self._made or name in set(names_read(self._graph.node))

    def _shape(self, name: str) -> Shape:
        if name not in self._outside.shapes:
            raise self._refused(f"takes `{name}`, whose shape is not known before a run")
        return self._outside.shapes[name]

    def _seen(self) -> dict[str, str]:
        """What the body takes from around it without being given it; constants are copied."""
        own = {output for node in self._graph.node for output in node.output}
        own |= {tensor.name for tensor in self._graph.initializer} | set(self._inputs)
        found = {}
        for name in dict.fromkeys((*names_read(self._graph.node), *self._made)):
            if name in self._outside.constants and name not in own:
                self._constant(name, self._outside.constants[name])
            elif name in self._outside.kinds and name not in own:
                self._input(name, name, self._shape(name))
                found[name] = name
        return found

    def _body(self, body: Body) -> Body:
        """``body`` with its model, whose outputs are those that are used."""
        seen = self._seen()
        wanted = {c.then for c in body.carried.values()} | {*body.outputs, *body.stacked}
        model = onnx.ModelProto()
        model.CopyFrom(self._outside.model)
        graph = model.graph
        graph.Clear()
        graph.CopyFrom(self._graph)
        del graph.input[:], graph.output[:], graph.value_info[:]
        graph.name = body.name
        graph.input.extend(self._inputs.values())
        for name in dict.fromkeys(n for n in self._made if n in wanted):
            if name in self._inputs or any(t.name == name for t in graph.initializer):
                raise self._refused(f"gives `{name}` on as it came: nothing is computed")
            graph.output.append(onnx.ValueInfoProto(name=name))
        cut_to(model)
        model.CopyFrom(self._checked(model))
        shapes = shapes_of(model)
        for inner, state in body.carried.items():
            if shapes.get(state.then) != shapes[inner]:
                raise self._refused(f"changes the shape of `{inner}` from run to run")
        gives = {outer: shapes[inner] for inner, outer in body.outputs.items()}
        for inner, rows in body.stacked.items():
            shape = list(shapes[inner])
            shape.insert(rows.axis % (len(shape) + 1), body.times)
            gives[rows.value] = tuple(shape)
        return Body(**{**vars(body), "model": model, "inputs": seen, "shapes": gives})

    def _checked(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The model with the shapes of its outputs. Raises ExportError where they stay open, or
        where the model is not sound."""
        for value in model.graph.output:  # a type is needed before shapes can be inferred
            value.type.CopyFrom(self._type_of(value.name))
        shaped = with_computed_shapes(model)
        known = shapes_of(shaped)
        for value in shaped.graph.output:
            if value.name not in known:
                raise self._refused(f"gives `{value.name}`, whose shape is not known before a run")
        try:
            onnx.checker.check_model(shaped, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
            raise self._refused(f"has a body that is no sound model: {fault}") from fault
        return shaped

    def _type_of(self, name: str) -> onnx.TypeProto:
        """As declared, which a loop inside the body needs: inference gives its states no shape."""
        declared = next(value for value in self._graph.output if value.name == name)
        kind = onnx.TypeProto()
        kind.tensor_type.elem_type = declared.type.tensor_type.elem_type
        dims = declared.type.tensor_type.shape.dim
        if dims and all(dim.HasField("dim_value") for dim in dims):
            kind.tensor_type.shape.CopyFrom(declared.type.tensor_type.shape)
        return kind

    def _refused(self, what: str) -> ExportError:
        return ExportError(
            what, where=self._where, do="export what lies inside the loop as a model of its own"
        )


def names_read(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Names that nodes read, those of the graphs inside them among them."""
    for node in nodes:
        yield from (name for name in node.input if name)
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from names_read(graph.node)
                yield from (value.name for value in graph.output)


def _named(inner: Iterable[str], outer: Iterable[str]) -> dict[str, str]:
    return {own: name for own, name in zip(inner, outer, strict=False) if name}
