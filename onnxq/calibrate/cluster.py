"""A collection spread over a Ray cluster."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

from onnxq import __version__
from onnxq.calibrate.collect import Job
from onnxq.calibrate.gather import Executor
from onnxq.calibrate.spread import AHEAD, TRIES, Load, Spread, Task, collector_of
from onnxq.errors import MissingExtraError, OnnxqError, RuntimeFailureError, UsageError
from onnxq.provenance import versions

__all__ = ["on_ray"]

_PATIENCE_SECONDS = 30.0  # for a cluster to answer
_CONNECT_SECONDS = 5.0  # for the port of its head to open
_GIST_CHARACTERS = 300
_SAME_EVERYWHERE = ("numpy", "onnx", "onnxruntime")  # packages that decide the bits, beside onnxq


@contextmanager
def on_ray(job: Job, address: str) -> Iterator[Executor]:
    """An existing Ray cluster, by the ``host:port`` of its head or ``auto``; none is ever started.

    This machine is a node of the cluster, and onnxq is installed on all of them, in the same
    version and with the same numpy, onnx and onnxruntime. Runs are tasks of ``job.threads`` CPUs;
    one whose worker or node is lost is done again elsewhere, three times at most. On processors of
    different instruction sets ONNX Runtime computes floats that may differ in their last bits:
    only nodes of one kind give the bits of one process.

    Raises MissingExtraError without Ray, UsageError if the cluster cannot be reached within half a
    minute or is not as said, RuntimeFailureError if runs are lost again and again, and what
    ``Collector`` raises, as it was raised there.
    """
    ray = _ray()
    _connect(ray, address)
    try:
        yield _Cluster(ray, job, address)
    finally:
        ray.shutdown()


class _Cluster(Spread):
    def __init__(self, ray: ModuleType, job: Job, address: str) -> None:
        alive = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        slots = sum(int(cpus // job.threads) for cpus in alive)
        if slots == 0:
            raise UsageError(
                f"no node has {job.threads} CPUs for one task; they have {alive}",
                where=f"--ray {address}",
                do="add a node to the cluster that has them",
            )
        super().__init__(slots, job.threads)
        self._ray = ray
        self._job = ray.put(job)
        self._run = ray.remote(num_cpus=job.threads, max_retries=TRIES - 1)(_on_node)

    def _each(self, task: Task, loads: Iterator[Load]) -> Iterator[tuple[Load, Any]]:
        key, facts = self._job.hex(), _facts()
        flying: dict[Any, Load] = {}
        while True:
            while len(flying) < AHEAD * self._workers and (load := next(loads, None)) is not None:
                flying[self._run.remote([self._job], key, facts, task, load)] = load
            if not flying:
                return
            (done,), _ = self._ray.wait(list(flying), num_returns=1)
            load = flying.pop(done)
            yield load, self._result(done, load)

    def _result(self, done: Any, load: Load) -> Any:
        try:
            return self._ray.get(done)
        except self._ray.exceptions.RayError as fault:
            cause = getattr(fault, "cause", None)
            if isinstance(cause, OnnxqError):
                raise cause from fault
            kind = type(cause or fault).__name__
            raise RuntimeFailureError(
                f"Ray could not have these samples run ({kind}: {_gist(str(cause or fault))})",
                where=load.place,
                do=f"see that onnxq {__version__} is installed on every node, and that nodes have "
                "the memory (`ray memory`, `ray status`)",
            ) from fault


# --- on a node of the cluster --------------------------------------------------------------------


def _on_node(job: list[Any], key: str, facts: Mapping[str, str], task: Task, load: Load) -> Any:
    """What runs on a node of a cluster; ``job`` holds a reference, so that it is fetched once."""
    _refuse_other_versions(facts)
    import ray

    return task(collector_of(key, lambda: ray.get(job[0])), load)


@cache
def _facts() -> dict[str, str]:
    """Versions that must be the same wherever a part of one result is made."""
    known = versions()
    return {"onnxq": __version__} | {name: known[name] for name in _SAME_EVERYWHERE}


def _refuse_other_versions(wanted: Mapping[str, str]) -> None:
    here = _facts()
    differing = [name for name in wanted if here.get(name) != wanted[name]]
    if differing:
        told = ", ".join(f"{name} {here.get(name)} instead of {wanted[name]}" for name in differing)
        raise UsageError(
            f"has {told}; the result would depend on which node did what",
            where=f"Ray node {socket.gethostname()}",
            do="install the same versions on every node and where `onnxq` is started",
        )


# --- connecting ----------------------------------------------------------------------------------


def _ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError as fault:
        raise MissingExtraError(
            f"running on a Ray cluster needs the package `{fault.name}`",
            do="pip install 'onnxq[ray]'",
        ) from fault
    return ray


_PROBE = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as fault:
    print(fault)
    sys.exit(1)
"""


def _connect(ray: ModuleType, address: str) -> None:
    where = f"--ray {address}"
    if ray.is_initialized():
        raise UsageError(
            "this process is connected to a Ray cluster already",
            where=where,
            do="call ray.shutdown() first",
        )
    meant = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    host, _, port = meant.rpartition(":")
    if meant != "auto" and ("/" in host or not (host and port.isdecimal())):
        raise UsageError(
            f"`{meant}` is no address of the head of a Ray cluster",
            where=where,
            do="give its host:port, or auto, and start onnxq on a node of that cluster",
        )
    _refuse_unreachable(meant, where)
    heeded = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=meant, log_to_driver=False, logging_level=logging.ERROR)
    finally:  # it has put a handler of its own in the place of ours
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, heeded)


def _refuse_unreachable(address: str, where: str) -> None:
    """Raise UsageError unless another process can connect: Ray would end this one if it cannot."""
    do = (
        "give the address that `ray start --head` printed, and start onnxq on a node of the cluster"
    )
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except OSError as fault:
            raise UsageError(f"no Ray cluster there: {fault}", where=where, do=do) from fault
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as fault:
        what = f"what is there does not answer as a Ray cluster within {_PATIENCE_SECONDS:.0f} s"
        raise UsageError(what, where=where, do=do) from fault
    if probe.returncode:
        raise UsageError(f"cannot connect: {_gist(probe.stdout)}", where=where, do=do)


def _gist(text: str) -> str:
    """The beginning of a message of Ray's, on one line."""
    return " ".join(text.split())[:_GIST_CHARACTERS] or "no reason was given"
