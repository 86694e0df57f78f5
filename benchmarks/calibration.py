"""Calibration: time and memory of onnxq and of onnxruntime's calibrators, side by side.

    python -m benchmarks.calibration                  everything (an hour); Ctrl-C ends it early
    python -m benchmarks.calibration --quick          32 samples, two rounds
    python -m benchmarks.calibration --peers minmax   without onnxruntime's Entropy and Percentile
    python -m benchmarks.calibration --parts          where onnxq's time goes, and ways to count

Every calibration runs in a process of its own, between two measurements of the plain forward pass
(ONNX Runtime, full optimization, its own number of threads, one sample a call), and is quoted as a
multiple of their mean: seconds differ from machine to machine and from minute to minute. What is
measured while other processes take more than a tenth of the cores is measured again as long as
patience lasts, and the least disturbed kept. A cell is the median over rounds, or the largest peak
of resident memory as the operating system tells it. With 1,024 samples one histogram method stands
for all: they collect the same.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import product
from pathlib import Path

from benchmarks.calibration_table import MOST_DISTURBED, NETWORKS, PEERS, Run, System, table

ROOT = Path(__file__).parents[1]
ROUNDS = {32: 3, 128: 3, 1024: 1}
QUICK_ROUNDS = {32: 2}
METHODS = ("minmax", "ema", "percentile", "mse", "entropy", "meanstd")
CONTEXT = (System("forward", "plain"), System("forward", "fetch"))
COMMAND = System("onnxq calibrate", "percentile")
LARGE = 1024
METHODS_OF_LARGE = ("minmax", "percentile")
ONNXQ = (
    *(System("onnxq", method) for method in METHODS),
    *(System("onnxq", method, "full") for method in ("minmax", "percentile")),
)
PLAIN = System("forward", "plain", "full")
SHARE_OF_MEMORY = 0.85
PATIENCE_SECONDS = 60.0

Figures = dict[str, float]


class Bench:
    """The files of a benchmark, and the processes that are measured on them."""

    def __init__(self, folder: Path, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._folder = folder
        self._patience_seconds = patience_seconds
        self._sizes: dict[str, Figures] = {}

    def prepare(self, network: str, counts: Iterable[int]) -> None:
        """Write the model, and a file of samples for each of ``counts``."""
        (self._folder / network).mkdir()
        for count in counts:
            self._sizes[network] = self.job(System("prepare", network), network, count)

    def measure(self, system: System, network: str, count: int) -> Run:
        """The least disturbed of the measurements that patience allows."""
        end = time.monotonic() + self._patience_seconds
        tried: list[Run] = []
        while not tried or (tried[-1].disturbed > MOST_DISTURBED and time.monotonic() < end):
            _wait_for_quiet(end)
            tried.append(self._measure(system, network, count))
        return min(tried, key=lambda run: run.disturbed)

    def forecast_mb(self, network: str, count: int) -> float:
        """What onnxruntime's histogram calibrators hold: every activation of every sample, and
        three copies of the largest while they count it.
        """
        sizes = self._sizes[network]
        return count * (sizes["fetched_mb"] + 3 * sizes["largest_mb"])

    def job(self, system: System, network: str, count: int) -> Figures:
        """The figures of one job, and the share of the cores that other processes had."""
        result = self._folder / "result.json"
        result.unlink(missing_ok=True)
        module = [sys.executable, "-m", "benchmarks.calibration_job"]
        files = (self._model(network), self._samples(network, count), result)
        words = (system.what, system.method, system.optimization, *map(str, files))
        _, disturbed = _run([*module, *words])
        return json.loads(result.read_text(encoding="utf-8")) | {"disturbed": disturbed}

    def _measure(self, system: System, network: str, count: int) -> Run:
        before = self.job(PLAIN, network, count)
        work = self._command if system == COMMAND else self.job
        figures = work(system, network, count)
        after = self.job(PLAIN, network, count)
        return Run(
            system=system,
            network=network,
            samples=count,
            pass_ms=figures.get("pass_ms") or figures["seconds"] * 1e3 / count,
            plain_ms=(before["pass_ms"] + after["pass_ms"]) / 2,
            peak_mb=figures["peak_mb"],
            grown_mb=figures.get("grown_mb"),
            disturbed=max(each["disturbed"] for each in (before, figures, after)),
        )

    def _command(self, system: System, network: str, count: int) -> Figures:
        out = self._folder / "out"
        shutil.rmtree(out, ignore_errors=True)  # an earlier result would be used again
        options = {
            "--data": self._samples(network, count),
            "--samples": count,
            "--method": system.method,
            "-o": out,
        }
        words = (str(word) for pair in options.items() for word in pair)
        command = [sys.executable, "-m", "onnxq", "calibrate", str(self._model(network)), "--quiet"]
        start = time.perf_counter()
        usage, disturbed = _run([*command, *words])
        seconds = time.perf_counter() - start
        peak_mb = usage.ru_maxrss * 1024 / 1e6
        return {"seconds": seconds, "peak_mb": peak_mb, "disturbed": disturbed}

    def _model(self, network: str) -> Path:
        return self._folder / network / "model.onnx"

    def _samples(self, network: str, count: int) -> Path:
        return self._folder / network / f"{count}.npz"


def _run(command: Sequence[str]) -> tuple[resource.struct_rusage, float]:
    """Run a process to its end: what it used, and the share of the cores that others had. It must
    succeed.
    """
    busy, start = _busy_seconds(), time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            child.kill()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read().decode()}")
    others = _busy_seconds() - busy - usage.ru_utime - usage.ru_stime
    return usage, max(0.0, others) / (time.perf_counter() - start) / (os.cpu_count() or 1)


def _wait_for_quiet(end: float) -> None:
    """Wait for a second in which nothing else runs, but not beyond ``end``."""
    while time.monotonic() < end:
        busy = _busy_seconds()
        time.sleep(1)
        if (_busy_seconds() - busy) / (os.cpu_count() or 1) <= MOST_DISTURBED:
            return


def _busy_seconds() -> float:
    """Seconds that all cores together have worked or were taken by other guests of the machine.

    Source: proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
    """
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def plan(
    rounds: dict[int, int], networks: Sequence[str], peers: str, methods: Sequence[str]
) -> Iterator[tuple[System, str, int]]:
    """What is measured, in order: rounds over everything, and last what needs much memory."""
    asked = {"all": list(PEERS), "minmax": ["MinMax"], "none": []}[peers]
    others = [System("onnxruntime", peer) for peer in asked]
    light = [system for system in others if not system.keeps_every_tensor]
    heavy = [system for system in others if system.keeps_every_tensor]
    for turn in range(max(rounds.values())):
        for count, network in product(rounds, networks):
            if turn >= rounds[count]:
                continue
            context = CONTEXT if count == min(rounds) else ()
            for system in (*context, *light, *(s for s in ONNXQ if s.method in methods), COMMAND):
                if count < LARGE or system in light or system.method in METHODS_OF_LARGE:
                    yield system, network, count
    counts = [count for count in rounds if count < LARGE]
    for count, network, system in product(counts, networks, heavy):
        for _ in range((rounds[count] + 1) // 2):
            yield system, network, count


def measured(
    bench: Bench, wanted: Iterator[tuple[System, str, int]]
) -> tuple[list[Run], list[str]]:
    """All runs, and sentences on what was left out."""
    runs: list[Run] = []
    left_out: list[str] = []
    try:
        for system, network, count in wanted:
            if system.keeps_every_tensor:
                needed, free = bench.forecast_mb(network, count), SHARE_OF_MEMORY * _free_mb()
                if needed > free:
                    reason = f"needs about {needed / 1e3:.0f} GB, {free / 1e3:.0f} GB are to be had"
                    place = f"{NETWORKS[network]}, {count} samples"
                    left_out.append(f"Left out: {system.title} on {place}: {reason}.")
                    continue
            runs.append(bench.measure(system, network, count))
            _show_progress(runs[-1])
    except KeyboardInterrupt:
        left_out.append("Ended early: some figures are of fewer rounds, or missing.")
    return runs, list(dict.fromkeys(left_out))


def _show_progress(run: Run) -> None:
    print(
        f"{time.strftime('%H:%M:%S')} {run.network} {run.samples} {run.system.title}: "
        f"{run.ratio:.2f} × {run.plain_ms:.2f} ms, peak {run.peak_mb:.0f} MB, "
        f"others had {run.disturbed:.0%} of the cores",
        file=sys.stderr,
        flush=True,
    )


def _free_mb() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/meminfo does not tell the free memory; run with --peers minmax")


def compare(options: argparse.Namespace) -> None:
    """Measure, print the table, write the figures."""
    rounds = QUICK_ROUNDS if options.quick else {count: ROUNDS[count] for count in options.samples}
    if options.rounds is not None:
        rounds = dict.fromkeys(rounds, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.patience)
        for network in options.networks:
            bench.prepare(network, rounds)
        runs, left_out = measured(
            bench, plan(rounds, options.networks, options.peers, options.methods)
        )
    said = ", ".join(f"{number} rounds of {count:,} samples" for count, number in rounds.items())
    machine = f"{os.cpu_count()} cores, onnxruntime {version('onnxruntime')}; {said}"
    disturbed = sum(run.disturbed > MOST_DISTURBED for run in runs)
    notes = [f"{disturbed} of {len(runs)} measurements were disturbed.", *left_out]
    print("\n\n".join([machine, table(runs, tuple(rounds)), *notes]))
    if options.json is not None:
        figures = {"machine": machine, "notes": notes, "runs": [asdict(run) for run in runs]}
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


def show_parts(networks: Sequence[str]) -> None:
    """Print processor milliseconds a sample by part, and nanoseconds a value of ways to count."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for network in networks:
            bench.prepare(network, [8])
            print(f"\n| {NETWORKS[network]} | ms, one core | ÷ forward pass |\n|---|---:|---:|")
            figures = bench.job(System("parts", "percentile", "full"), network, 8)
            plain = figures["forward pass, optimization full"]
            for name, value in figures.items():
                if name != "disturbed":
                    print(f"| {name} | {value:.1f} | {value / plain:.2f} |")
            print("\n| counting | ns a value, one core |\n|---|---:|")
            for name, value in bench.job(System("counting", "all"), network, 8).items():
                if name != "disturbed":
                    print(f"| {name} | {value:.1f} |")


def main() -> None:
    """Do what is asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32 samples, two rounds")
    parser.add_argument("--peers", choices=["all", "minmax", "none"], default="all")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument(
        "--samples", nargs="+", type=int, choices=list(ROUNDS), default=list(ROUNDS)
    )
    parser.add_argument("--rounds", type=int, help="how often each is measured")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument(
        "--patience",
        type=float,
        metavar="SECONDS",
        default=PATIENCE_SECONDS,
        help=f"how long to wait for other processes, each time ({PATIENCE_SECONDS:g})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure")
    parser.add_argument("--parts", action="store_true", help="only tell where the time goes")
    options = parser.parse_args()
    if options.parts:
        show_parts(options.networks)
    else:
        compare(options)


if __name__ == "__main__":
    main()
