"""A Ray cluster of two real nodes gives the bits of one process; what is no cluster is refused."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from calibrate.spreading import Reader, collected, is_running, job, spoilt
from onnxq.calibrate import cluster as module
from onnxq.calibrate import spread
from onnxq.calibrate.archive import encode
from onnxq.calibrate.cluster import on_ray
from onnxq.calibrate.collect import Collector, Runs
from onnxq.calibrate.gather import Executor, gather
from onnxq.calibrate.resources import Resources
from onnxq.errors import DataError, MissingExtraError, RuntimeFailureError, UsageError


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two nodes of one CPU each."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # a path of a socket has 107 bytes at most
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100_000_000}
        two = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            two.add_node(**node)
            yield two.address
        finally:
            two.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_task_of_more_cpus_than_any_node_has_is_refused_and_the_cluster_left(cluster):
    import ray

    heeded = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UsageError, match="no node has 2 CPUs"), on_ray(job(threads=2), cluster):
        pass
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is heeded


SCRIPT = """
import sys
from calibrate.spreading import Reader, job
from onnxq.calibrate.cluster import on_ray
try:
    with on_ray(job(), sys.argv[1]) as executor:
        for number, _ in enumerate(executor.finish(Reader(), [(0, 16)] * 99)):
            if number == 2:
                print("working", flush=True)
except KeyboardInterrupt:
    sys.exit(2)
"""


@pytest.mark.slow
def test_ctrl_c_ends_work_on_a_cluster_without_a_traceback(cluster):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what children inherit
    try:
        driver = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, cluster],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "working\n"
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=30)
    assert driver.returncode == 2
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def executor(cluster: str) -> Iterator[Executor]:
    """One for the tests that follow; its workers stay between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster)
        with on_ray(job(), "auto") as executor:
            yield executor


@pytest.mark.slow
def test_two_nodes_give_the_bits_of_one_process(executor):
    assert executor.at_once == 2
    assert 0 < executor.trial(Reader()) < 10
    assert collected(executor, Reader(), job()) == encode(gather(job(), Reader(), Resources()))
    workers = ray_processes(b"ray::IDLE")
    worked = [pid for pid in workers if "onnxruntime" in Path(f"/proc/{pid}/maps").read_text()]
    assert len({parent_of(pid) for pid in worked}) == 2  # on each node


@pytest.mark.slow
def test_a_worker_that_is_killed_at_work_changes_no_bit(executor):
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 30
        while not killed and time.monotonic() < end:
            for pid in ray_processes(b"ray::_on_node")[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    expected = encode(gather(job(), Reader(), Resources()))
    killer = threading.Thread(target=kill)
    killer.start()
    while killer.is_alive():
        assert collected(executor, Reader(), job()) == expected
    killer.join()
    assert len(killed) == 1
    assert not is_running(killed[0])


def ray_processes(title: bytes) -> list[int]:
    """Processes of the cluster that was started here, by what Ray calls them at this moment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            matches = (folder / "cmdline").read_bytes().startswith(title)
            if matches and parent_of(parent_of(int(folder.name))) == os.getpid():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.slow
def test_an_error_on_a_node_arrives_as_it_was_raised(executor):
    with pytest.raises(DataError) as there:
        list(executor.finish(spoilt(), [(0, 4)]))
    assert there.value.where == "these.npz, sample 11, tensor `r`"
    assert "Sqrt `root` computes nan" in there.value.what


@pytest.mark.slow
def test_nodes_with_other_versions_are_refused(executor, monkeypatch):
    here = module._facts() | {"onnxruntime": "1.0.0"}
    monkeypatch.setattr(module, "_facts", lambda: here)
    with pytest.raises(UsageError, match=r"onnxruntime .* instead of 1\.0\.0") as fault:
        executor.trial(Reader())
    assert "Ray node" in fault.value.where
    assert "on every node" in fault.value.do


def of_a_module_that_nodes_lack(collector: Collector, load: Runs) -> None:
    """Pickled by name, as what onnxq sends is."""


@pytest.mark.slow
def test_a_node_that_cannot_load_the_work_is_told_in_words(executor, monkeypatch):
    monkeypatch.setattr(spread, "_statistics", of_a_module_that_nodes_lack)
    with pytest.raises(RuntimeFailureError, match="No module named 'calibrate'") as fault:
        list(executor.finish(Reader(), [(0, 1)]))
    assert fault.value.where == "these.npz, sample 0"
    assert "installed on every node" in fault.value.do


@pytest.mark.slow
def test_a_second_connection_of_one_process_is_refused(executor, cluster):
    with pytest.raises(UsageError, match="connected to a Ray cluster already") as fault:
        on_ray(job(), cluster).__enter__()
    assert "ray.shutdown()" in fault.value.do
    assert executor.at_once == 2


@pytest.fixture
def _not_connected() -> None:
    import ray

    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("_not_connected")
class TestRefused:
    """Addresses at which there is no cluster; none of them is waited for without end."""

    @pytest.mark.parametrize("address", ["", "local", "head", "ray://head:10001", "head:port"])
    def test_what_is_no_address(self, address):
        with pytest.raises(UsageError, match="is no address") as fault, on_ray(job(), address):
            pass
        assert "host:port" in fault.value.do

    def test_auto_where_the_environment_asks_for_a_new_cluster(self, monkeypatch):
        monkeypatch.setenv("RAY_ADDRESS", "local")
        with pytest.raises(UsageError, match="`local` is no address"), on_ray(job(), "auto"):
            pass

    @pytest.mark.parametrize("auto", [True, False])
    def test_a_closed_port(self, auto, monkeypatch):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            monkeypatch.setenv("RAY_ADDRESS", address)
            with (
                pytest.raises(UsageError, match="no Ray cluster there"),
                on_ray(job(), "auto" if auto else address),
            ):
                pass

    def test_a_server_that_is_no_cluster(self, monkeypatch):
        monkeypatch.setattr(module, "_PATIENCE_SECONDS", 4.0)
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = f"127.0.0.1:{server.getsockname()[1]}"
            start = time.monotonic()
            with pytest.raises(UsageError, match="does not answer"), on_ray(job(), address):
                pass
            assert time.monotonic() - start < 20


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match="`ray`") as fault, on_ray(job(), "auto"):
        pass
    assert "onnxq[ray]" in fault.value.do
