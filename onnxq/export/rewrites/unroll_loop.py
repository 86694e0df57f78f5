"""Loop and Scan with a number of runs that is known → their body, that many times.

No stage looks inside a loop, and no NPU runs one. Unrolled, every run has tensors, and so ranges,
of its own, which is what a sampler of a few steps needs: what a denoiser sees changes from step to
step. Weights are shared by all copies. A long loop grows into a graph that nobody can compile; its
body is better a model of its own, which the host runs: ``splitting/loops.py``.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped
from onnx import helper, numpy_helper

from onnxq.computed_shapes import with_computed_shapes
from onnxq.errors import ExportError
from onnxq.graph import constants_of, shapes_of
from onnxq.splitting.known_constants import kinds_of, with_known_constants
from onnxq.splitting.loop_body import LOOPS, Body, Outside, Rows, body_of

__all__ = ["is_short", "refuse_long_loops", "unroll_loops"]

MOST_RUNS, MOST_NODES = 64, 20_000


def unroll_loops(model: ir.Model) -> int:
    """The first Loop or Scan, up to 64 runs and 20,000 nodes; what the next one takes is known when
    this one is gone.

    Raises ExportError for a longer one, and where the number of runs is not known before a run.
    """
    if not any(node.op_type in LOOPS and not node.domain for node in model.graph):
        return 0
    proto = with_known_constants(ir.to_proto(model))
    shaped, fixed = with_computed_shapes(proto), constants_of(proto)
    kinds = kinds_of(shaped)
    kinds |= {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in fixed.items()}
    shapes = shapes_of(shaped) | {name: array.shape for name, array in fixed.items()}
    loop = next(node for node in proto.graph.node if node.op_type in LOOPS)
    body = body_of(loop, "body", Outside(shaped, fixed, kinds, shapes))
    _refuse_long(loop, body, proto.graph)
    unrolled = _Unrolled(loop, body)
    nodes = [
        copy for node in proto.graph.node for copy in (unrolled.nodes() if node == loop else [node])
    ]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:], proto.graph.value_info[:]
    proto.graph.node.extend(copies)
    proto.graph.initializer.extend(unrolled.constants)
    model.graph = ir.from_proto(proto).graph
    return 1


def refuse_long_loops(model: onnx.ModelProto) -> None:
    """Raise ExportError, before anything is run, for a loop that ``unroll_loops`` refuses."""
    graph = ir.from_proto(model)
    while unroll_loops(graph):
        pass


def is_short(body: Body) -> bool:
    """Whether the graph is still one that can be compiled when the body is there for each run."""
    nodes = body.times * len(body.model.graph.node)
    return body.times <= MOST_RUNS and nodes <= MOST_NODES


def _refuse_long(node: onnx.NodeProto, body: Body, graph: onnx.GraphProto) -> None:
    where = f"{node.op_type} `{node.name or node.output[0]}`"
    if not is_short(body):
        nodes = body.times * len(body.model.graph.node)
        raise ExportError(
            f"runs {body.times} times: unrolled, it would have {nodes} nodes",
            where=where,
            do="`onnxq export MODEL.onnx --propose-split` makes a model of its body",
        )
    values = (*graph.input, *graph.value_info, *graph.output)
    free = {value.name for value in values if _is_free(value)}
    for rows in body.rows.values():
        if rows.axis == 0 and rows.value in free:
            raise ExportError(
                f"runs once for every row of `{rows.value}`, whose number is free",
                where=where,
                do="declare the shape of the model's inputs, or use a target with a batch of one",
            )


def _is_free(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return bool(dims) and not dims[0].HasField("dim_value")


class _Unrolled:
    """What stands in place of a loop: copies of its body, and constants beside them."""

    def __init__(self, loop: onnx.NodeProto, body: Body) -> None:
        self._body = body
        self._prefix = next(name for name in loop.output if name)
        self._shared = {t.name: f"{self._prefix}.{t.name}" for t in body.model.graph.initializer}
        self.constants = []
        for tensor in body.model.graph.initializer:
            copy = onnx.TensorProto()
            copy.CopyFrom(tensor)
            copy.name = self._shared[tensor.name]
            self.constants.append(copy)
        self._number = 0

    def nodes(self) -> Iterator[onnx.NodeProto]:
        """All copies, in the order of the runs, and what joins their results."""
        body = self._body
        state = {own: carried.first for own, carried in body.carried.items()}
        runs: list[dict[str, str]] = []
        for number in range(body.times):
            known = {**self._shared, **body.inputs, **state}
            for own, rows in body.rows.items():
                index = body.times - 1 - number if rows.backward else number
                known[own] = self._name("row")
                inputs = [rows.value, self._constant(np.array(index))]
                yield self._node("Gather", inputs, known[own], axis=rows.axis)
            known |= {own: self._constant(np.array([number])) for own in body.counters}
            for node in body.model.graph.node:
                known |= {name: f"{self._prefix}.{number}.{name}" for name in node.output if name}
                copy = _renamed(node, known)
                copy.name = f"{self._prefix}.{number}.{node.name or node.output[0]}"
                yield copy
            runs.append(known)
            state = {own: known[carried.then] for own, carried in body.carried.items()}
        for own, outer in body.outputs.items():
            yield self._node("Identity", [runs[-1][own]], outer)
        for own, rows in body.stacked.items():
            yield from self._joined([run[own] for run in runs], rows)

    def _joined(self, names: list[str], rows: Rows) -> Iterator[onnx.NodeProto]:
        axis, wide = self._constant(np.array([rows.axis])), []
        for name in reversed(names) if rows.backward else names:
            wide.append(self._name("wide"))
            yield self._node("Unsqueeze", [name, axis], wide[-1])
        yield self._node("Concat", wide, rows.value, axis=rows.axis)

    def _node(self, op: str, inputs: list[str], output: str, **more: int) -> onnx.NodeProto:
        node = helper.make_node(op, inputs, [output], self._name("node"))
        node.attribute.extend(helper.make_attribute(key, value) for key, value in more.items())
        return node

    def _constant(self, array: Shaped[np.ndarray, "..."]) -> str:
        name = self._name("number")
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def _name(self, what: str) -> str:
        self._number += 1
        return f"{self._prefix}.{what}_{self._number}"


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node that reads and makes what ``names`` say, in the graphs inside it too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for field in (copy.input, copy.output):
        for index, name in enumerate(field):
            field[index] = names.get(name, name)
    for attribute in copy.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            inner = [_renamed(child, names) for child in graph.node]
            del graph.node[:]
            graph.node.extend(inner)
            for value in graph.output:
                value.name = names.get(value.name, value.name)
    return copy
