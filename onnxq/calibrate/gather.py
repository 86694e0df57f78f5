"""All runs of a collection: in pieces, by one process or many, each kept on disk when finished."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from onnxq.calibrate.checkpoint import Checkpoint, blocks_of, pieces
from onnxq.calibrate.collect import Collector, Job, Runs
from onnxq.calibrate.forecast import Forecast, cores, fitted, memory_mb, with_time
from onnxq.calibrate.resources import Resources
from onnxq.calibrate.statistics import Builder, Statistics
from onnxq.progress import Progress, silent

__all__ = ["Executor", "Piece", "gather"]

Interval = tuple[int, int]


@dataclass(frozen=True)
class Piece:
    """A finished piece: its interval of runs, and what was seen in them."""

    interval: Interval
    statistics: Statistics


@runtime_checkable
class Executor(Protocol):
    """Who runs the pieces."""

    @property
    def at_once(self) -> int:
        """How many runs go on side by side."""
        ...

    def trial(self, runs: Runs) -> float:
        """Seconds that one run takes; nothing of it is kept."""
        ...

    def finish(self, runs: Runs, todo: Sequence[Interval]) -> Iterator[int | Piece]:
        """Pieces that together are ``todo``, in any order; between them, numbers of runs done."""
        ...


class _Here:
    """This process, with a thread for each core."""

    def __init__(self, job: Job) -> None:
        self._collector = Collector(job)
        self.at_once = job.threads

    def trial(self, runs: Runs) -> float:
        start = time.perf_counter()
        for _ in self._collector.collect(runs, 0, 1):
            pass
        return time.perf_counter() - start

    def finish(self, runs: Runs, todo: Sequence[Interval]) -> Iterator[int | Piece]:
        for start, stop in todo:
            for event in self._collector.collect(runs, start, stop):
                yield 1 if event is None else Piece((start, stop), event)


def _executor(job: Job, resources: Resources) -> AbstractContextManager[Executor]:
    if resources.ray is None and resources.workers == 1:
        return nullcontext(_Here(job))
    if resources.ray is not None:
        from onnxq.calibrate.cluster import on_ray

        return on_ray(job, resources.ray)
    from onnxq.calibrate.workers import in_processes

    return in_processes(job, resources.workers)


def gather(
    job: Job,
    runs: Runs,
    resources: Resources,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    what: str = "calibrating",
) -> Statistics:
    """Statistics of all ``runs``: the same bits however they were divided, interrupted or spread.

    Finished pieces are kept in ``checkpoint``, if one is given. Raises as ``Collector`` does,
    UsageError if ``max_memory_mb`` cannot be kept, and StaleRecordError if what is to be resumed is
    another collection.
    """
    # a Ray task takes one core, wherever it runs; here the workers share the cores
    here = 1 if resources.ray is not None else max(1, cores() // resources.workers)
    begun = resources.ray is None and resources.workers == 1
    job = fitted(replace(job, threads=here), resources.max_memory_mb, begun=begun)
    memory = memory_mb(job, begun=begun)
    blocks = blocks_of(len(runs))
    builder = Builder(job.tensors, blocks)
    done: list[Interval] = []
    if checkpoint is not None:
        done = checkpoint.begin(resume=resources.resume)
        for interval in done:
            builder.add(interval[0], checkpoint.load(interval))
    left = pieces(blocks, done, len(runs))
    if left:
        with _executor(job, resources) as executor:
            count = sum(stop - start for start, stop in left)
            forecast = with_time(job, count, executor.trial(runs), memory, executor.at_once)
            size = _piece_size(forecast, resources.checkpoint_seconds)
            steps = _steps(executor, runs, pieces(blocks, done, size), checkpoint, builder)
            for _ in progress(steps, f"{what} {forecast}", count):
                pass
    return builder.build()


def _piece_size(forecast: Forecast, checkpoint_seconds: float) -> int:
    """Runs that are finished in ``checkpoint_seconds``, if the forecast is right."""
    return max(1, int(checkpoint_seconds * forecast.runs / max(forecast.seconds, 1e-6)))


def _steps(
    executor: Executor,
    runs: Runs,
    todo: Sequence[Interval],
    checkpoint: Checkpoint | None,
    builder: Builder,
) -> Iterator[int]:
    """One item for every run that is finished."""
    number = 0
    for event in executor.finish(runs, todo):
        if isinstance(event, Piece):
            if checkpoint is not None:
                checkpoint.save(event.interval, event.statistics)
            builder.add(event.interval[0], event.statistics)
        else:
            yield from range(number, number + event)
            number += event
