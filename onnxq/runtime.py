"""The one door to ONNX Runtime: sessions under a named semantics, and what the runtime executes."""

import ctypes
import json
import os
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnx
import onnxruntime as ort
from jaxtyping import Float, Float32, Shaped

from onnxq.errors import RuntimeFailureError

__all__ = [
    "NodeTimes",
    "Optimization",
    "Session",
    "executed_operators",
    "give_back_memory",
    "in_parallel",
    "latencies",
    "profile",
    "with_outputs",
]

Optimization = Literal["full", "none"]
Array = Shaped[np.ndarray, "..."]
T = TypeVar("T")
_LEVELS = {
    "full": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_ERRORS_ONLY = 3
_KERNEL = "_kernel_time"  # what ends the name of a node's event in a profile


class Session:
    """A model loaded on the CPU.

    ``optimization="full"`` is how a device's ONNX Runtime executes the file; ``"none"`` computes
    what the graph says, operator by operator. One thread by default: the same bits on every run,
    and samples side by side (``in_parallel``) use the cores better than one sample's operators do.
    ``as_written`` runs nodes in the order of the graph, not in the runtime's own; without ``arena``
    no memory is held between runs.
    Raises RuntimeFailureError if the runtime refuses the model.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        optimization: Optimization = "full",
        threads: int = 1,
        as_written: bool = False,
        arena: bool = True,
        config: Mapping[str, str] | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.enable_cpu_mem_arena = arena
        if as_written:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.graph_optimization_level = _LEVELS[optimization]
        options.intra_op_num_threads = threads
        options.log_severity_level = _ERRORS_ONLY
        for key, value in (config or {}).items():
            options.add_session_config_entry(key, value)
        self._label = model.name if isinstance(model, Path) else "model"
        try:
            self._session = ort.InferenceSession(
                str(model) if isinstance(model, Path) else model,
                options,
                providers=["CPUExecutionProvider"],
            )
        except Exception as fault:  # the runtime's exception types share no base but Exception
            raise RuntimeFailureError(
                f"ONNX Runtime {ort.__version__} refuses it: {_first_line(fault)}",
                where=self._label,
                do="check the model with `onnxq inspect`",
            ) from fault
        self.input_names = tuple(value.name for value in self._session.get_inputs())
        self.output_names = tuple(value.name for value in self._session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one batch. Raises RuntimeFailureError."""
        try:
            values = self._session.run(None, dict(inputs))
        except Exception as fault:  # see above
            raise RuntimeFailureError(_first_line(fault), where=self._label) from fault
        return dict(zip(self.output_names, values, strict=True))

    def bound(
        self, shapes: Mapping[str, tuple[int, ...]], scratch: Float32[np.ndarray, " n"]
    ) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """Like ``run``, but float32 outputs of ``shapes`` land in ``scratch``, one after the other.

        What is returned is overwritten by the next call; nothing is allocated or copied. One thread
        may call it at a time. Raises RuntimeFailureError, also if an output has another shape.
        """
        binding = self._session.io_binding()
        arrays, start = {}, 0
        for name in self.output_names:
            stop = start + int(np.prod(shapes[name], dtype=np.int64))
            arrays[name] = scratch[start:stop].reshape(shapes[name])
            start = stop
        for name, array in arrays.items():
            binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

        def run(inputs: Mapping[str, Array]) -> dict[str, Array]:
            try:
                for name, array in inputs.items():
                    binding.bind_cpu_input(name, np.ascontiguousarray(array))
                self._session.run_with_iobinding(binding)
            except Exception as fault:  # see above
                raise RuntimeFailureError(_first_line(fault), where=self._label) from fault
            return arrays

        return run

    def run_each(self, rows: Iterator[Mapping[str, Array]]) -> Iterator[dict[str, Array]]:
        """All outputs for every row, one at a time."""
        return (self.run(row) for row in rows)


def give_back_memory() -> None:
    """Return to the system what the C library has kept of memory that was freed.

    Loading a graph leaves several times its size behind. Does nothing where the C library is not
    glibc and has no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def in_parallel(
    function: Callable[[int], T], count: int, threads: int | None = None
) -> Iterator[T]:
    """``function(0)``, ``function(1)``, … in order, by as many threads as there are cores.

    At most two results a thread are waiting, so memory does not depend on ``count``.
    """
    threads = threads or os.cpu_count() or 1
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for index in range(count):
                waiting.append(pool.submit(function, index))
                if len(waiting) >= 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of ``model`` whose graph outputs are ``tensors`` (float32), in that order."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    del copy.graph.output[:]
    for name in tensors:
        value = known.get(name)
        copy.graph.output.append(
            value
            if value is not None
            else onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        )
    return copy


def executed_operators(path: Path, config: Mapping[str, str] | None = None) -> onnx.ModelProto:
    """The graph that ONNX Runtime really executes here with full optimization.

    Of weights that lie in a file of their own it names the place, and holds no numbers.
    """
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "optimized.onnx"
        options = _full(config)
        options.optimized_model_filepath = str(saved)
        _opened(path, options)
        return onnx.load(saved, load_external_data=False)


@dataclass(frozen=True)
class NodeTimes:
    """How long one node of the executed graph took in each run, in microseconds."""

    name: str
    op_type: str
    microseconds: Float[np.ndarray, " runs"]


def profile(
    path: Path, config: Mapping[str, str], rows: Sequence[Mapping[str, Array]], rounds: int
) -> tuple[NodeTimes, ...]:
    """ONNX Runtime's own profile of the nodes that it executes, with full optimization.

    One thread; after one round that is not counted every row is run ``rounds`` times.
    Raises RuntimeFailureError.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = _full(config)
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = _opened(path, options)
        for row in (*rows, *list(rows) * rounds):
            _run(session, row, path)
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            name = event["name"].removesuffix(_KERNEL)
            nodes[name, event["args"]["op_name"]].append(event["dur"])
    return tuple(
        NodeTimes(*key, np.array(times[len(rows) :], float)) for key, times in nodes.items()
    )


def latencies(
    files: Sequence[tuple[Path, Mapping[str, str]]],
    rows: Sequence[Mapping[str, Array]],
    rounds: int,
) -> Float[np.ndarray, "files runs"]:
    """Seconds of every run of each file under its configuration, with full optimization.

    One thread; after one round that is not counted every row is run ``rounds`` times. The files
    take turns, so that a change of the machine's speed meets all of them: their ratios are worth
    more than the seconds. Raises RuntimeFailureError.
    """
    sessions = []
    for path, config in files:
        options = _full(config)
        options.intra_op_num_threads = 1
        sessions.append(_opened(path, options))
    seconds = []
    for row in (*rows, *list(rows) * rounds):
        for session, (path, _) in zip(sessions, files, strict=True):
            start = time.perf_counter()
            _run(session, row, path)
            seconds.append(time.perf_counter() - start)
    return np.array(seconds, float).reshape(-1, len(files)).T[:, len(rows) :]


def _run(session: ort.InferenceSession, row: Mapping[str, Array], path: Path) -> None:
    try:
        session.run(None, dict(row))
    except Exception as fault:  # see above
        raise RuntimeFailureError(_first_line(fault), where=path.name) from fault


def _full(config: Mapping[str, str] | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS["full"]
    options.log_severity_level = _ERRORS_ONLY + 1  # saving warns that the file is machine specific
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    return options


def _opened(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as fault:  # see above
        raise RuntimeFailureError(_first_line(fault), where=path.name) from fault


def _first_line(fault: Exception) -> str:
    return str(fault).strip().splitlines()[0] if str(fault).strip() else type(fault).__name__
