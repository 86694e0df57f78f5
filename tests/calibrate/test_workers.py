"""Processes give the bits of one process, whatever happens to them, and none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from calibrate.spreading import RUNS, Reader, X, collected, is_running, job, spoilt
from onnxq.calibrate import spread
from onnxq.calibrate.archive import encode
from onnxq.calibrate.collect import Collector, Runs
from onnxq.calibrate.gather import Piece, gather
from onnxq.calibrate.resources import Resources
from onnxq.calibrate.workers import in_processes
from onnxq.errors import DataError, RuntimeFailureError

pytestmark = pytest.mark.slow


def test_three_workers_give_the_bits_of_one_process():
    with in_processes(job(), 3) as executor:
        assert executor.at_once == 3
        assert 0 < executor.trial(Reader()) < 10
        found = collected(executor, Reader(), job())
    assert found == encode(gather(job(), Reader(), Resources()))
    assert multiprocessing.active_children() == []


def test_extremes_of_two_workers_are_those_of_one_process_and_of_the_data():
    statistics = gather(job("extremes"), Reader(), Resources(workers=2))
    assert encode(statistics) == encode(gather(job("extremes"), Reader(), Resources()))
    assert (statistics.of("x").low, statistics.of("x").high) == (X.min(), X.max())


def test_a_worker_that_is_killed_at_work_is_replaced_and_no_bit_changes():
    def kill() -> int:
        victim = multiprocessing.active_children()[0]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        return victim.pid

    runs = Reader(RUNS // 2, kill)
    with in_processes(job(), 2) as executor:
        found = collected(executor, runs, job())
        alive = [process.pid for process in multiprocessing.active_children()]
    assert found == encode(gather(job(), Reader(), Resources()))
    assert len(runs.seen) == 1
    assert len(alive) == 2
    assert runs.seen[0] not in alive
    assert multiprocessing.active_children() == []


def die_at_sample_6(collector: Collector, load: Runs) -> bytes:
    """What a worker does in the next test."""
    if any(load.name(place).endswith(" 6") for place in range(len(load))):
        os.kill(os.getpid(), signal.SIGKILL)
    (found,) = [found for found in collector.collect(load, 0, len(load)) if found is not None]
    return encode(found)


def test_samples_that_kill_every_worker_are_named_after_three_times(monkeypatch):
    monkeypatch.setattr(spread, "_statistics", die_at_sample_6)
    with in_processes(job(), 1) as executor:
        assert intervals(executor.finish(Reader(), [(2, 4)])) == [(2, 4)]
        with pytest.raises(RuntimeFailureError, match=r"3 times .* for want of memory") as fault:
            list(executor.finish(Reader(), [(4, 8), (8, 12)]))
    assert fault.value.where == "these.npz, sample 4 to these.npz, sample 7"
    assert "--workers" in fault.value.do
    assert multiprocessing.active_children() == []


def test_errors_arrive_as_they_were_raised_and_pieces_are_cut_to_what_is_sent_at_once(monkeypatch):
    with pytest.raises(DataError) as here:
        gather(job(), spoilt(), Resources())
    with in_processes(job(), 1) as executor:
        with pytest.raises(DataError) as there:
            list(executor.finish(spoilt(), [(0, 2), (2, 3), (3, 4)]))
        monkeypatch.setattr(spread, "_LOAD_BYTES", 2 * X[0].nbytes)
        assert intervals(executor.finish(Reader(), [(4, 9)])) == [(4, 6), (6, 8), (8, 9)]
        monkeypatch.setattr(spread, "_LOAD_BYTES", 1)  # a run that is larger goes alone
        assert intervals(executor.finish(Reader(), [(4, 6)])) == [(4, 5), (5, 6)]
    assert there.value.where == "these.npz, sample 11, tensor `r`"
    assert "Sqrt `root` computes nan" in there.value.what
    assert vars(there.value) == vars(here.value)


def intervals(events) -> list[tuple[int, int]]:
    return [event.interval for event in events if isinstance(event, Piece)]


SCRIPT_WITHOUT_GUARD = """
import os
from calibrate.spreading import Reader, job
from onnxq.calibrate.workers import in_processes
with in_processes(job(), 1) as executor:
    executor.trial(Reader())
"""


def test_a_script_that_starts_itself_again_is_told_what_it_lacks(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT_WITHOUT_GUARD)
    ended = subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    last = ended.stderr.rpartition("RuntimeFailureError")[2]
    assert "sample 0: a worker process died 3 times" in last
    assert "ended with exit code 1" in last
    assert 'under `if __name__ == "__main__":`' in last


SCRIPT = """
import multiprocessing, os, sys
from calibrate.spreading import Reader, job
from onnxq.calibrate.workers import in_processes
def say():
    print(*[process.pid for process in multiprocessing.active_children()], flush=True)
try:
    with in_processes(job(), 2) as executor:
        if sys.argv[1] == "starting":
            say()
        for _ in executor.finish(Reader(8, say), [(0, 16)] * 99):
            pass
except KeyboardInterrupt:
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("moment", "number"),
    [("starting", signal.SIGINT), ("working", signal.SIGINT), ("working", signal.SIGKILL)],
)
def test_no_worker_outlives_its_parent_and_ctrl_c_leaves_no_traceback(moment, number):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what children inherit
    try:
        parent = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, moment],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            start_new_session=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)  # to the workers too, as a terminal does
        else:
            parent.send_signal(number)
        _, said = parent.communicate(timeout=60)
    assert parent.returncode == (2 if number == signal.SIGINT else -signal.SIGKILL)
    if number == signal.SIGINT:
        assert said == ""
    end = time.monotonic() + 10
    while any(map(is_running, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, pids))
