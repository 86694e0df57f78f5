"""The steps of a manifest: what the host moves, which part runs when."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx

from onnxq.artifacts import HostStep, LoopStep, RunStep, Step
from onnxq.errors import ExportError, nearest
from onnxq.graph import VIEWS, constants_of, shapes_of
from onnxq.recipe import PartSection, PartValue
from onnxq.splitting.loop_body import Body, Rows

__all__ = ["MOVERS", "rows_of", "shape_of_run", "steps_of"]

_SAME_ORDER = VIEWS | {"Identity"}
MOVERS = _SAME_ORDER | {"Transpose", "Slice", "Split", "Concat", "Gather"}
Shapes = Mapping[str, tuple[int, ...]]


def rows_of(part: PartSection, shapes: Shapes) -> int:
    """How often a part runs for one sample. Raises ExportError where its inputs do not agree."""
    if not part.each_row:
        return 1
    counts = {
        value.label: shapes[value.tensor][0]
        if value.shape is None
        else prod(shapes[value.tensor]) // prod(value.shape)
        for value in part.inputs
    }
    if len(set(counts.values())) > 1:
        raise ExportError(
            f"its inputs have different numbers of rows: {counts}",
            where=f"split, part {part.name}",
            do="give inputs that have the same first axis, or leave out `each_row`",
        )
    return next(iter(counts.values()))


def shape_of_run(part: PartSection, value: PartValue, shapes: Shapes) -> tuple[int, ...]:
    """Shape of an input or output in one run. Raises ExportError if it cannot hold the tensor."""
    tensor = shapes[value.tensor]
    rows = rows_of(part, shapes)
    shape = value.shape or ((tensor[0] // rows, *tensor[1:]) if part.each_row else tensor)
    if prod(shape) * rows != prod(tensor) or (part.each_row and shape[0] != 1):
        raise ExportError(
            f"`{value.label}` {list(shape)} in {rows} runs does not hold the tensor "
            f"`{value.tensor}` {list(tensor)}",
            where=f"split, part {part.name}",
            do="correct `shape`; with `each_row` its first number is 1",
        )
    return shape


def steps_of(model: onnx.ModelProto, parts: Sequence[PartSection | Body]) -> tuple[Step, ...]:
    """Steps that compute the outputs of ``model`` from its inputs for one sample.

    What the bodies of loops give is an input of ``model``, as it has no loops itself. Raises
    ExportError for a tensor that the graph has not, and where a node that computes something lies
    in no part.
    """
    made = {name for part in parts if isinstance(part, Body) for name in part.shapes}
    router = _Router(model, made)
    for part in parts:
        if isinstance(part, Body):
            router.loop(part)
        else:
            router.add(part)
    for output in model.graph.output:
        router.reach(output.name, "the graph's outputs")
    return tuple(_tidied(router.steps, {value.name for value in model.graph.output}, router.shapes))


class _Router:
    """Follows values from the graph's inputs on."""

    def __init__(self, model: onnx.ModelProto, made: Collection[str] = ()) -> None:
        self.shapes = dict(shapes_of(model))
        self.steps: list[Step] = []
        self._constants = constants_of(model)
        self._makers = {name: node for node in model.graph.node for name in node.output}
        self._at_hand = {v.name for v in model.graph.input if v.name not in made}

    def add(self, part: PartSection) -> None:
        """The run of a part, with what the host does before and behind it."""
        where = f"part {part.name}"
        for value in (*part.inputs, *part.outputs):
            if value.tensor not in self.shapes:
                raise ExportError(
                    f"the graph has no tensor `{value.tensor}` of a known shape; "
                    f"{nearest(value.tensor, self.shapes)}",
                    where=f"split, {where}",
                )
        rows, inputs = rows_of(part, self.shapes), {}
        for value in part.inputs:
            self.reach(value.tensor, where)
            shape = shape_of_run(part, value, self.shapes)
            inputs[value.label] = f"{part.name}.{value.label}"
            self._view(value.tensor, inputs[value.label], (rows * shape[0], *shape[1:]))
        outputs = {value.label: self._joined(part, value) for value in part.outputs}
        self.steps.append(
            RunStep(
                part=part.name, inputs=inputs, outputs=outputs, times=rows, each_row=part.each_row
            )
        )
        for value in part.outputs:
            if outputs[value.label] != value.tensor:
                self._view(outputs[value.label], value.tensor, self.shapes[value.tensor])
            self._at_hand.add(value.tensor)

    def loop(self, body: Body) -> None:
        """The runs of a loop's body, with slices and results turned so that runs come first."""
        taken = [*body.inputs.values(), *(c.first for c in body.carried.values())]
        for name in (*taken, *(rows.value for rows in body.rows.values())):
            self.reach(name, f"part {body.name}")
        self.shapes.update(body.shapes)
        rows = {own: self._runs_first(body, own, cut) for own, cut in body.rows.items()}
        turned = {
            own: f"{body.name}.{own}" if joined.axis or joined.backward else joined.value
            for own, joined in body.stacked.items()
        }
        self.steps.append(
            LoopStep(
                part=body.name,
                times=body.times,
                inputs=dict(body.inputs),
                carried=dict(body.carried),
                rows=rows,
                counters=body.counters,
                outputs=dict(body.outputs),
                stacked=turned,
            )
        )
        for own, joined in body.stacked.items():
            self._runs_last(body, turned[own], joined)
        self._at_hand.update(body.shapes)

    def _runs_first(self, body: Body, own: str, cut: Rows) -> str:
        """Name of the value whose row i is what run i takes."""
        name, shape = cut.value, self.shapes[cut.value]
        if cut.axis:
            others = [axis for axis in range(len(shape)) if axis != cut.axis]
            made = f"{body.name}.{own}"
            self._host("Transpose", name, made, perm=(cut.axis, *others))
            name = made
        if cut.backward:
            made = f"{body.name}.{own}.back"
            self._host("Gather", name, made, axis=(0,), indices=_backwards(body.times))
            name = made
        return name

    def _runs_last(self, body: Body, name: str, joined: Rows) -> None:
        """The rows of all runs, in their order, to where the graph has them."""
        if name == joined.value:
            return
        rank = len(self.shapes[joined.value])
        axis = joined.axis % rank
        if joined.backward:
            made = f"{name}.back" if axis else joined.value
            self._host("Gather", name, made, axis=(0,), indices=_backwards(body.times))
            name = made
        if axis:
            perm = (*range(1, axis + 1), 0, *range(axis + 1, rank))
            self._host("Transpose", name, joined.value, perm=perm)

    def _host(self, op: str, source: str, output: str, **arguments: tuple[int, ...]) -> None:
        self.steps.append(_host(op, (source,), output, **arguments))

    def _joined(self, part: PartSection, value: PartValue) -> str:
        """Name of the rows of all runs: the tensor's own, if they have its shape."""
        first, *rest = shape_of_run(part, value, self.shapes)
        shape = (rows_of(part, self.shapes) * first, *rest)
        if shape == self.shapes[value.tensor]:
            return value.tensor
        self.shapes[f"{part.name}.{value.label}"] = shape
        return f"{part.name}.{value.label}"

    def reach(self, name: str, what: str) -> None:
        """Make a tensor from those at hand, by moving values alone."""
        if name in self._at_hand:
            return
        node = self._makers.get(name)
        if node is None or node.op_type not in MOVERS:
            found = "a constant" if node is None else f"{node.op_type} `{node.name}`"
            raise ExportError(
                f"{what} need `{name}`, which {found} makes and no part before computes",
                where="split",
                do="list it among the outputs of a part, or begin the part earlier",
            )
        data = node.input if node.op_type == "Concat" else node.input[:1]
        for value in data:
            self.reach(value, what)
        self.steps += self._moves(node)
        self._at_hand.update(node.output)

    def _view(self, source: str, name: str, shape: tuple[int, ...]) -> None:
        self.shapes[name] = shape
        self.steps.append(
            HostStep(op="Reshape", inputs=(source,), output=name, arguments={"shape": shape})
        )

    def _moves(self, node: onnx.NodeProto) -> Iterator[Step]:
        """A node that moves values, as host steps."""
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        source, output = node.input[0], node.output[0]
        rank = len(self.shapes[source])
        if node.op_type in _SAME_ORDER:
            yield _host("Reshape", (source,), output, shape=self.shapes[output])
        elif node.op_type == "Transpose":
            perm = attributes.get("perm", range(rank)[::-1])
            yield _host("Transpose", (source,), output, perm=tuple(perm))
        elif node.op_type == "Concat":
            axis = attributes["axis"] % rank
            yield _host("Concat", tuple(node.input), output, axis=(axis,))
        elif node.op_type == "Gather":
            indices = self._numbers(node, 1)
            if len(self.shapes[output]) != rank:
                raise ExportError(
                    "takes a scalar index, which the host steps do not know",
                    where=f"Gather `{node.name}`",
                    do="begin the part before it, or use Slice",
                )
            axis = attributes.get("axis", 0) % rank
            yield _host("Gather", (source,), output, axis=(axis,), indices=indices)
        elif node.op_type == "Slice":
            starts, ends = self._numbers(node, 1), self._numbers(node, 2)
            axes = self._numbers(node, 3) or tuple(range(len(starts)))
            strides = self._numbers(node, 4) or (1,) * len(starts)
            sizes = self.shapes[source]
            ends = tuple(min(end, sizes[axis]) for end, axis in zip(ends, axes, strict=True))
            yield _host(
                "Slice", (source,), output, starts=starts, ends=ends, steps=strides,
                axes=tuple(axis % rank for axis in axes),
            )  # fmt: skip
        else:
            yield from self._split(node, attributes.get("axis", 0) % rank)

    def _split(self, node: onnx.NodeProto, axis: int) -> Iterator[Step]:
        start = 0
        for output in node.output:
            end = start + self.shapes[output][axis]
            yield _host(
                "Slice", (node.input[0],), output,
                starts=(start,), ends=(end,), axes=(axis,), steps=(1,),
            )  # fmt: skip
            start = end

    def _numbers(self, node: onnx.NodeProto, index: int) -> tuple[int, ...]:
        """A constant input as integers; none where it is left out."""
        if index >= len(node.input) or not node.input[index]:
            return ()
        constant = self._constants.get(node.input[index])
        if constant is None:
            raise ExportError(
                f"`{node.input[index]}` is computed at run time",
                where=f"split, {node.op_type} `{node.name}`",
                do="begin the part before it",
            )
        return tuple(int(number) for number in np.ravel(constant))


def _backwards(count: int) -> tuple[int, ...]:
    return tuple(range(count - 1, -1, -1))


def _host(op: str, inputs: tuple[str, ...], output: str, **arguments: tuple[int, ...]) -> HostStep:
    return HostStep.model_validate(
        {"op": op, "inputs": inputs, "output": output, "arguments": arguments}
    )


def _tidied(steps: Sequence[Step], outputs: set[str], shapes: Shapes) -> list[Step]:
    """Without views of views, views that change nothing, and moves that nobody reads."""
    kept = list(steps)
    while True:
        uses = Counter(name for step in kept for name in _read(step))
        makers = {step.output: step for step in kept if isinstance(step, HostStep)}
        for index, step in enumerate(kept):
            if not isinstance(step, HostStep):
                continue
            if not uses[step.output] and step.output not in outputs:
                del kept[index]
                break
            if step.op != "Reshape":
                continue
            before = makers.get(step.inputs[0])
            if before is not None and before.op == "Reshape":
                kept[index] = step.model_copy(update={"inputs": before.inputs})
                break
            source = step.inputs[0]
            if shapes[source] == shapes[step.output] and step.output not in outputs:
                kept = [_renamed(other, step.output, source) for other in kept if other != step]
                break
        else:
            return kept


def _read(step: Step) -> tuple[str, ...]:
    if isinstance(step, HostStep):
        return step.inputs
    if isinstance(step, LoopStep):
        firsts = (carried.first for carried in step.carried.values())
        return (*step.inputs.values(), *step.rows.values(), *firsts)
    return tuple(step.inputs.values())


def _renamed(step: Step, old: str, new: str) -> Step:
    """The step, reading ``new`` where it read ``old``."""
    if isinstance(step, HostStep):
        names = tuple(new if name == old else name for name in step.inputs)
        return step.model_copy(update={"inputs": names})
    changed: dict[str, object] = {"inputs": _swapped(step.inputs, old, new)}
    if isinstance(step, LoopStep):
        changed["rows"] = _swapped(step.rows, old, new)
        changed["carried"] = {
            own: carried.model_copy(update={"first": new}) if carried.first == old else carried
            for own, carried in step.carried.items()
        }
    return step.model_copy(update=changed)


def _swapped(names: Mapping[str, str], old: str, new: str) -> dict[str, str]:
    return {own: new if name == old else name for own, name in names.items()}
