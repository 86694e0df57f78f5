"""What is sent to workers, what they do with it, and how it comes back.

Samples are read in this process and sent along with the work, since they may come from a generator
or an open file. What comes back is integers, extremes and their places, so that the statistics are
those of one process to the last bit, wherever and in whatever order the runs were done.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Shaped

from onnxq.calibrate.archive import decode, encode
from onnxq.calibrate.collect import Collector, Job, Runs
from onnxq.calibrate.gather import Piece

__all__ = ["AHEAD", "TRIES", "Load", "Spread", "Task", "collector_of"]

AHEAD = 2  # loads a worker has: one that it runs, and the next
TRIES = 3  # how often a load is begun whose worker dies
_LOAD_BYTES = 32_000_000  # inputs that are sent at once: with two workers some 250 MB in all
_FLYING_BYTES = 512_000_000  # inputs that are on their way to all workers, together

Array = Shaped[np.ndarray, "..."]
Interval = tuple[int, int]


@dataclass(frozen=True)
class Load:
    """Successive runs on their way to a worker: their interval, names and inputs."""

    interval: Interval
    names: tuple[str, ...]
    rows: tuple[Mapping[str, Array], ...]

    def __len__(self) -> int:
        return len(self.rows)

    def run(self, index: int) -> Mapping[str, Array]:
        """Inputs of a run; copies of those that lie in shared memory, which is not writable."""
        row = self.rows[index]
        return {name: a if a.flags.writeable else a.copy() for name, a in row.items()}

    def name(self, index: int) -> str:
        """What a person calls it, where it was read."""
        return self.names[index]

    @property
    def place(self) -> str:
        """The samples that it holds, in words."""
        first, last = self.names[0], self.names[-1]
        return first if len(self) == 1 else f"{first} to {last}"


Task = Callable[[Collector, Load], Any]
_collectors: dict[str, Collector] = {}


def collector_of(key: str, job: Callable[[], Job]) -> Collector:
    """The collector of the job that ``key`` stands for: in a worker, made for its first load."""
    if key not in _collectors:
        _collectors.clear()
        _collectors[key] = Collector(job())
    return _collectors[key]


def _statistics(collector: Collector, load: Load) -> bytes:
    *_, found = collector.collect(load, 0, len(load))
    if found is None:
        raise TypeError("a collection ends with its statistics")
    return encode(found)


def _seconds(collector: Collector, load: Load) -> float:
    start = time.perf_counter()
    for _ in collector.collect(load, 0, len(load)):
        pass
    return time.perf_counter() - start


def _loads(runs: Runs, todo: Sequence[Interval], workers: int, most_bytes: int) -> Iterator[Load]:
    """All runs of ``todo``, read as they are asked for.

    A piece is what all workers together do between two checkpoints: each has its share of it.
    """
    for start, stop in todo:
        most_runs = -(-(stop - start) // workers)
        rows: list[Mapping[str, Array]] = []
        size = 0
        for index in range(start, stop):
            rows.append(runs.run(index))
            last = sum(array.nbytes for array in rows[-1].values())
            size += last
            if len(rows) == most_runs or size + last > most_bytes or index + 1 == stop:
                numbers = range(index + 1 - len(rows), index + 1)
                names = tuple(runs.name(number) for number in numbers)
                yield Load((numbers.start, numbers.stop), names, tuple(rows))
                rows, size = [], 0


class Spread(ABC):
    """An executor that sends loads to ``workers``, each of which does ``threads`` runs at once."""

    def __init__(self, workers: int, threads: int) -> None:
        self._workers, self._threads = workers, threads

    @abstractmethod
    def _each(self, task: Task, loads: Iterator[Load]) -> Iterator[tuple[Load, Any]]:
        """Every load with what ``task`` makes of it, in the order in which they are finished."""

    @property
    def at_once(self) -> int:
        """How many runs go on side by side."""
        return self._workers * self._threads

    def trial(self, runs: Runs) -> float:
        """Seconds that one run takes the slowest worker, while all others are busy too."""
        loads = [load for load in _loads(runs, [(0, 1)], 1, 1)] * self._workers
        return max(float(seconds) for _, seconds in self._each(_seconds, iter(loads)))

    def finish(self, runs: Runs, todo: Sequence[Interval]) -> Iterator[int | Piece]:
        """Pieces that together are those of ``todo``, cut to what is sent at once."""
        most = min(_LOAD_BYTES, _FLYING_BYTES // (AHEAD * self._workers))
        for load, data in self._each(_statistics, _loads(runs, todo, self._workers, most)):
            yield len(load)
            yield Piece(load.interval, decode(data, f"what a worker sent of {load.place}"))
