"""A collection spread over processes of this machine."""

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from onnxq.calibrate.collect import Job
from onnxq.calibrate.gather import Executor
from onnxq.calibrate.spread import AHEAD, TRIES, Load, Spread, Task, collector_of
from onnxq.errors import RuntimeFailureError

__all__ = ["in_processes"]

_SPAWN = multiprocessing.get_context("spawn")
_jobs: list[Job] = []  # in a worker: the one that it was begun with


@contextmanager
def in_processes(job: Job, workers: int) -> Iterator[Executor]:
    """``workers`` processes of this machine, each with ``job.threads`` threads.

    One that dies is replaced and its runs are done again. Raises RuntimeFailureError if that
    happens three times over the same runs, and what ``Collector`` raises, as it was raised there.
    However the block is left, no process stays behind.
    """
    executor = _Processes(job, workers)
    try:
        executor.start()
        yield executor
    finally:
        executor.close()


class _Processes(Spread):
    def __init__(self, job: Job, workers: int) -> None:
        super().__init__(workers, job.threads)
        self._job = job
        self._deaths: Counter[tuple[int, int]] = Counter()
        self._processes: list[_Process] = []

    def start(self) -> None:
        for _ in range(self._workers):
            self._processes.append(_Process(self._job))

    def close(self) -> None:
        for process in self._processes:
            process.end()

    def _each(self, task: Task, loads: Iterator[Load]) -> Iterator[tuple[Load, Any]]:
        for process in self._processes:
            process.waiting.clear()  # what a collection that was broken off has left
        while True:
            self._hand_out(task, loads)
            nearest = [process.waiting[0][1] for process in self._processes if process.waiting]
            if not nearest:
                return
            wait(nearest, return_when=FIRST_COMPLETED)
            for place, process in enumerate(self._processes):
                if process.waiting and process.waiting[0][1].done():
                    try:
                        found = process.receive()
                    except BrokenProcessPool:
                        self._replace(place, task)
                    else:
                        yield found

    def _hand_out(self, task: Task, loads: Iterator[Load]) -> None:
        """One load to everyone who has none, before anyone is given a second."""
        for ahead in range(1, AHEAD + 1):
            for process in self._processes:
                if len(process.waiting) < ahead and (load := next(loads, None)) is not None:
                    process.send(task, load)

    def _replace(self, place: int, task: Task) -> None:
        """A new process for a dead one, with the same loads."""
        dead = self._processes[place]
        code = dead.end()
        loads = [load for load, _ in dead.waiting]
        self._deaths[loads[0].interval] += 1
        if self._deaths[loads[0].interval] == TRIES:
            ended, do = _told(code)
            raise RuntimeFailureError(
                f"a worker process died {TRIES} times over these samples; the last one {ended}",
                where=loads[0].place,
                do=do,
            )
        self._processes[place] = _Process(self._job)
        for load in loads:
            self._processes[place].send(task, load)


class _Process:
    """A pool of one process, so that it is known which loads a dead one had.

    ``waiting`` are the loads that it has, in the order in which it does them.
    """

    def __init__(self, job: Job) -> None:
        self.waiting: deque[tuple[Load, Future[Any]]] = deque()
        self._pool = ProcessPoolExecutor(1, mp_context=_SPAWN, initializer=_end_with_parent)
        others = multiprocessing.active_children()
        # Ctrl-C in a terminal reaches all processes; only this one is to heed it, and a process
        # that is started while a signal is blocked never sees it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._begun = self._pool.submit(_begin, job)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        (self._process,) = set(multiprocessing.active_children()) - set(others)

    def send(self, task: Task, load: Load) -> None:
        try:
            future = self._pool.submit(_in_process, task, load)
        except BrokenProcessPool as fault:
            future = Future()
            future.set_exception(fault)
        self.waiting.append((load, future))

    def receive(self) -> tuple[Load, Any]:
        """The first load that waits, and its result. Raises BrokenProcessPool, leaving it there."""
        load, future = self.waiting[0]
        self._begun.result()
        result = future.result()
        self.waiting.popleft()
        return load, result

    def end(self) -> int:
        """End the process, at once if it has work; its exit code, as subprocess gives it."""
        if self.waiting:
            self._process.kill()
        self._pool.shutdown()
        self._process.join()
        return self._process.exitcode or 0


def _told(code: int) -> tuple[str, str]:
    """How a process ended, and what can be done about it."""
    if code == -signal.SIGKILL:
        ended = "was killed, most likely by the system for want of memory"
        return ended, "let it hold less: fewer --workers, or a smaller --max-memory"
    if code < 0:
        ended = f"was ended by {signal.Signals(-code).name}"
        return ended, "run these samples alone, with one worker, to see what ONNX Runtime does"
    do = 'if a script of yours calls onnxq, it must do so under `if __name__ == "__main__":`'
    return f"ended with exit code {code}", f"see what it has printed; {do}"


# --- in a worker ---------------------------------------------------------------------------------


def _end_with_parent() -> None:
    """Let this process not outlive the one that started it, even if that is killed."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise TypeError("a worker is started by another process")

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin(job: Job) -> None:
    _jobs[:] = [job]


def _in_process(task: Task, load: Load) -> Any:
    return task(collector_of("", lambda: _jobs[0]), load)
