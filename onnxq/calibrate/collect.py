"""Samples stream through an instrumented graph; what is seen of the tensors is counted."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import onnx
from jaxtyping import Float32, Shaped

from onnxq.calibrate.finite import float_tensors, probes_of
from onnxq.calibrate.instrument import (
    EXTREMES,
    Outputs,
    values_graphs,
    with_reductions,
)
from onnxq.calibrate.statistics import Channels, Statistics
from onnxq.errors import DataError
from onnxq.graph import shapes_of
from onnxq.runtime import Optimization, Session, give_back_memory, in_parallel, with_outputs

if TYPE_CHECKING:
    from onnxq.calibrate.counting import Accumulator

__all__ = ["Collector", "Detail", "Job", "Runs"]

Detail = Literal["extremes", "histograms"]
Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True)
class Job:
    """What is run and what is looked at; it can be sent to another process or machine.

    ``model`` is an FP32 graph, serialized; ``tensors`` are names of float32 tensors in it.
    ``channels`` are axes of tensors whose extremes are wanted by channel as well.
    ``output_bytes`` bounds what one run gives out at once; ``threads`` samples run side by side.
    """

    model: bytes
    tensors: tuple[str, ...]
    detail: Detail
    optimization: Optimization = "none"
    threads: int = 1
    output_bytes: int = 256_000_000
    channels: Mapping[str, int] = field(default_factory=dict)


@runtime_checkable
class Runs(Protocol):
    """Inputs of successive runs of a model: of one sample each, or of one batch of fixed size."""

    def __len__(self) -> int: ...

    def run(self, index: int, /) -> Mapping[str, Array]:
        """Inputs of run ``index``, with batch axis."""
        ...

    def name(self, index: int, /) -> str:
        """What a person calls it: ``sample 17``."""
        ...


class Collector:
    """A job's sessions, ready to run. Raises RuntimeFailureError if the graph cannot be loaded."""

    _accumulators: "list[Accumulator]"

    def __init__(self, job: Job) -> None:
        self._job = job
        model = onnx.ModelProto.FromString(job.model)
        self._inputs = {value.name for value in model.graph.input}
        self._column = {name: column for column, name in enumerate(job.tensors)}
        self._shapes = shapes_of(model)
        probes = probes_of(model, job.tensors)
        self._limits = np.array([probes.limits.get(name, np.inf) for name in job.tensors])
        self._accumulators = []
        self._arena = True
        graphs: Iterable[tuple[onnx.ModelProto, Outputs]]
        if job.detail == "extremes":
            axes = {name: _others(axis, _rank(model, name)) for name, axis in job.channels.items()}
            graphs = [with_reductions(model, job.tensors, probes.sums, axes)]
        else:
            from onnxq.calibrate.counting import Accumulator  # numba takes 130 MB

            self._accumulators = [Accumulator() for _ in job.tensors]
            sizes = {name: 4 * (_elements(self._shapes.get(name)) or 0) for name in job.tensors}
            sums = [name for name in probes.sums if name not in self._column]
            graphs = values_graphs(model, job.tensors, sums, sizes, job.output_bytes)
            self._arena = sum(sizes.values()) <= job.output_bytes  # else each group held its own
        self._sessions = [(outputs, self._session(graph)) for graph, outputs in graphs]
        self._largest = max(
            (self._elements_of(outputs) for outputs, _ in self._sessions), default=0
        )
        del model, graphs
        give_back_memory()
        self._channels: dict[str, Channels] = {}
        self._locks = [threading.Lock() for _ in job.tensors]
        self._own = threading.local()

    @property
    def groups(self) -> int:
        """How many sessions share the outputs between them; each runs every sample."""
        return len(self._sessions)

    def collect(self, runs: Runs, start: int, stop: int) -> Iterator[Statistics | None]:
        """None after each of the runs from ``start`` to ``stop``, and at last their statistics.

        Raises DataError that names tensor, producing node and sample if a value is NaN, or if one
        that is looked at is infinite.
        """
        shape = (stop - start, len(self._job.tensors))
        lows, highs = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
        values = np.zeros(shape, np.int64)

        def one(place: int) -> None:
            inputs = runs.run(start + place)
            if self._run(inputs, lows[place], highs[place], values[place]):
                self._refuse_not_finite(inputs, runs.name(start + place))

        self._channels.clear()
        for accumulator in self._accumulators:
            accumulator.drain()  # what a collection that was broken off has left
        yield from in_parallel(one, len(lows), self._job.threads)
        summaries = tuple(accumulator.drain() for accumulator in self._accumulators)
        yield Statistics(
            tensors=self._job.tensors,
            lows=lows,
            highs=highs,
            values=values.sum(axis=0),
            blocks=((0, len(lows)),),
            summaries=(summaries,) if summaries else (),
            channels={name: self._channels[name] for name in sorted(self._channels)},
        )

    def _session(self, model: onnx.ModelProto) -> Session:
        data = model.SerializeToString()
        return Session(
            data, optimization=self._job.optimization, as_written=True, arena=self._arena
        )

    def _run(
        self,
        inputs: Mapping[str, Array],
        lows: Float32[np.ndarray, " t"],
        highs: Float32[np.ndarray, " t"],
        values: Shaped[np.ndarray, " t"],
    ) -> bool:
        """One run, counted; true if something may not be finite."""
        suspect = False
        for number, (graph, session) in enumerate(self._sessions):
            outputs = self._runner(number, session)(inputs)
            suspect |= any(np.isnan(outputs[f"{tensor}/sum"]) for tensor in graph.probed)
            for tensor in graph.reduced:
                low, high, size = (outputs[f"{tensor}/{kind}"] for kind in EXTREMES)
                place = self._column[tensor]
                values[place] = size
                if size:
                    lows[place], highs[place] = low + 0, high + 0  # -0 and 0 are one value
                    suspect |= not (np.isfinite(low) and np.isfinite(high))
            for tensor in graph.channels:
                if values[self._column[tensor]]:
                    pair = [outputs[f"{tensor}/channel_{kind}"] for kind in ("low", "high")]
                    self._widen(tensor, *pair)
            for tensor in graph.values:
                suspect |= self._count(tensor, outputs[tensor], (lows, highs, values))
        if self._accumulators:
            for tensor in self._inputs & self._column.keys():
                suspect |= self._count(tensor, inputs[tensor], (lows, highs, values))
        return suspect or bool((np.fmax(-lows, highs) > self._limits).any())

    def _count(self, tensor: str, array: Array, rows: tuple[Array, Array, Array]) -> bool:
        place = self._column[tensor]
        with self._locks[place]:
            rows[0][place], rows[1][place], bad = self._accumulators[place].add(array)
        rows[2][place] = array.size
        if tensor in self._job.channels and array.size:
            over = _others(self._job.channels[tensor], array.ndim)
            self._widen(tensor, array.min(axis=over), array.max(axis=over))
        return bad > 0

    def _widen(self, tensor: str, lows: Array, highs: Array) -> None:
        seen = Channels(self._job.channels[tensor], lows.copy(), highs.copy())
        with self._locks[self._column[tensor]]:
            known = self._channels.get(tensor)
            self._channels[tensor] = known.merged(seen) if known else seen

    def _runner(
        self, number: int, session: Session
    ) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """How this thread runs a session: into arrays of its own where all shapes are known."""
        graph = self._sessions[number][0]
        shapes = {name: self._shapes.get(name) for name in graph.values}
        if not shapes or any(shape is None or 0 in shape for shape in shapes.values()):
            return session.run
        runners = vars(self._own).setdefault("runners", {})
        if number not in runners:
            known = {name: shape for name, shape in shapes.items() if shape is not None}
            known |= {f"{tensor}/sum": () for tensor in graph.probed}
            runners[number] = session.bound(known, self._scratch())
        return runners[number]  # type: ignore[no-any-return]  # thread locals are untyped

    def _scratch(self) -> Float32[np.ndarray, " n"]:
        """Memory of this thread for the outputs of a session; all sessions take turns in it."""
        if "scratch" not in vars(self._own):
            self._own.scratch = np.empty(self._largest, np.float32)
        return self._own.scratch  # type: ignore[no-any-return]  # thread locals are untyped

    def _elements_of(self, outputs: Outputs) -> int:
        """Elements that a session gives out, those of unknown shape left out."""
        known = (_elements(self._shapes.get(name)) or 0 for name in outputs.values)
        return sum(known) + len(outputs.probed)

    def _refuse_not_finite(self, inputs: Mapping[str, Array], sample: str) -> None:
        """Find the first tensor that is wrong, in order of the graph, and say so.

        Infinities where nothing is quantized are let be: attention masks are full of them.
        """
        model = onnx.ModelProto.FromString(self._job.model)
        producers = {name: node for node in model.graph.node for name in node.output}
        tensors = [name for name in float_tensors(model) if name not in self._inputs]
        outputs = self._session(with_outputs(model, tensors)).run(inputs)
        for name in tensors:
            bad = ~np.isfinite(outputs[name])
            if np.isnan(outputs[name]).any() or (bad.any() and name in self._column):
                node = producers[name]
                raise DataError(
                    f"{node.op_type} `{node.name}` computes {outputs[name][bad][0]} in float",
                    where=f"{sample}, tensor `{name}`",
                    do="look at that sample: the FP32 model itself overflows on it; an attention "
                    "mask of infinities wants a large finite number instead, such as -10000",
                )


def _others(axis: int, rank: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(other for other in range(rank) if other != axis % rank)


def _rank(model: onnx.ModelProto, tensor: str) -> int:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return next(len(v.type.tensor_type.shape.dim) for v in values if v.name == tensor)


def _elements(shape: tuple[int, ...] | None) -> int | None:
    return None if shape is None else int(np.prod(shape, dtype=np.int64))
