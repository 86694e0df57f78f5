"""How much memory and time a collection will take, told before it begins."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxq.calibrate.collect import Job
from onnxq.errors import UsageError
from onnxq.graph import shapes_of

__all__ = ["Forecast", "cores", "fitted", "memory_mb", "with_time"]

_RUNTIME_MB = 140  # Python with numpy, onnx and onnxruntime loaded; measured
_NUMBA_MB = 135  # its import, and the code that it compiles to
_PER_TENSOR_MB = {"extremes": 0.02, "histograms": 0.8}  # cells, and summaries of all blocks
_WEIGHT_COPIES = 2.2  # serialized graph, and what ONNX Runtime holds of it
_SLACK = 1.25  # ONNX Runtime's arena does not give back what lies between its blocks
_MB = 1e6


@dataclass(frozen=True)
class Forecast:
    """``memory_mb`` of one process at its peak; ``seconds`` for ``runs`` runs on all of them."""

    tensors: int
    runs: int
    memory_mb: float
    seconds: float

    def __str__(self) -> str:
        return f"{self.tensors} tensors, about {self.memory_mb:.0f} MB and {_told(self.seconds)}"


def _told(seconds: float) -> str:
    if seconds < 1:
        return "1 s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def with_time(job: Job, runs: int, seconds_a_run: float, memory: float, at_once: int) -> Forecast:
    """The forecast, from the time that one run took; ``at_once`` runs go on side by side."""
    return Forecast(len(job.tensors), runs, memory, runs * seconds_a_run / at_once)


def held_mb() -> float:
    """Memory that this process holds now; what Python and the runtime take, where Linux is not."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return _RUNTIME_MB
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


def memory_mb(job: Job, *, begun: bool = False) -> float:
    """Peak memory of one process that does ``job``; a free dimension that is no batch counts as 1.

    The process is a fresh one, or this one, ``begun`` and holding what it holds.
    Activations are followed through the graph in its order, each alive until its last use; what is
    given out is alive to the end of the run.
    """
    model = onnx.ModelProto.FromString(job.model)
    shapes = shapes_of(model)
    sizes = {name: 4 * int(np.prod(shape, dtype=np.int64)) for name, shape in shapes.items()}
    given = 0
    if job.detail == "histograms":
        all_of_them = [sizes.get(name, 0) for name in job.tensors]
        given = min(sum(all_of_them), max(job.output_bytes, *all_of_them, 0))
    activations = _SLACK * _peak_of_activations(model, sizes) + given
    weights = _WEIGHT_COPIES * len(job.model)
    tensors = _PER_TENSOR_MB[job.detail] * len(job.tensors)
    held = held_mb() if begun else _RUNTIME_MB
    if job.detail == "histograms" and not (begun and "numba" in sys.modules):
        held += _NUMBA_MB
    return held + tensors + (weights + job.threads * activations) / _MB


def _peak_of_activations(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int:
    last_use = {name: n for n, node in enumerate(model.graph.node) for name in node.input}
    constants = {tensor.name for tensor in model.graph.initializer}
    alive: dict[str, int] = {}
    peak = 0
    for number, node in enumerate(model.graph.node):
        alive |= {name: sizes.get(name, 0) for name in node.output}
        inputs = {name for name in node.input if name not in constants}
        peak = max(peak, sum((alive | {name: sizes.get(name, 0) for name in inputs}).values()))
        alive = {name: size for name, size in alive.items() if last_use.get(name, 0) > number}
    return peak


def fitted(job: Job, max_memory_mb: float | None, *, begun: bool = False) -> Job:
    """The job with as few threads and as small groups of outputs as ``max_memory_mb`` asks for.

    Raises UsageError if it cannot be kept.
    """
    if max_memory_mb is None:
        return job
    trials = [replace(job, threads=threads) for threads in range(job.threads, 0, -1)]
    for divisor in (2, 4, 8, 16, 32, 64, 256):
        trials.append(replace(job, threads=1, output_bytes=job.output_bytes // divisor))
    for trial in trials:
        if memory_mb(trial, begun=begun) <= max_memory_mb:
            return trial
    least = memory_mb(trials[-1], begun=begun)
    raise UsageError(
        f"calibration needs about {least:.0f} MB even with one thread and the smallest groups of "
        f"tensors, {max_memory_mb:.0f} MB are allowed",
        where="--max-memory",
        do="allow more"
        if job.detail == "extremes"
        else "allow more, or calibrate with --method minmax, which keeps no activation",
    )
