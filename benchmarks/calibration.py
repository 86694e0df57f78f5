"""Calibration: time and memory of onnxq and of onnxruntime's calibrators, side by side.

    python -m benchmarks.calibration                  everything (half an hour)
    python -m benchmarks.calibration --quick          32 samples, two rounds
    python -m benchmarks.calibration --peers minmax   without onnxruntime's Entropy and Percentile

Every calibration runs in a process of its own, between two measurements of the plain forward pass
(ONNX Runtime, full optimization, its own number of threads, one sample a call), and is quoted as a
multiple of their mean: seconds differ from machine to machine and from minute to minute. What is
measured while other processes take more than a tenth of the cores is measured again, three times at
most, and the least disturbed kept. A cell is the median over rounds, or the largest peak of
resident memory as the operating system tells it.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "mobilenet": "MobileNetV2, 224 × 224",
    "transformer": "4 transformer blocks, 512 × 256",
}
ROUNDS = {32: 5, 128: 3, 1024: 1}
QUICK_ROUNDS = {32: 2}
METHODS = ("minmax", "percentile", "mse")
PEERS = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
MOST_RATIO = {"minmax": 2.5}
MOST_RATIO_OF_HISTOGRAMS = 6.0
LEAST_SPEED_UP = 11.0
MOST_PEAK_MB = 400.0
MOST_GROWTH_MB = 50.0
SHARE_OF_MEMORY = 0.85
MOST_DISTURBED = 0.1
ATTEMPTS = 3


@dataclass(frozen=True)
class System:
    """What is measured: a job of ``benchmarks.calibration_job`` and its argument."""

    what: str
    how: str

    @property
    def title(self) -> str:
        """Its row in the table."""
        if self.what != "forward":
            return f"{self.what} {self.how}"
        words = {"none": "forward pass, unoptimized", "fetch": "fetching what will carry Q/DQ"}
        return words[self.how]

    @property
    def keeps_every_tensor(self) -> bool:
        """Whether onnxruntime keeps all activations of all samples before it counts them."""
        return self.what == "onnxruntime" and self.how != "MinMax"


PLAIN = System("forward", "full")


@dataclass(frozen=True)
class Run:
    """One measurement; a forward pass has no growth of memory.

    ``disturbed`` is the largest share of the cores that other processes had meanwhile.
    """

    network: str
    samples: int
    system: str
    pass_ms: float
    plain_ms: float
    peak_mb: float
    grown_mb: float | None
    disturbed: float

    @property
    def ratio(self) -> float:
        """Time a sample in plain forward passes."""
        return self.pass_ms / self.plain_ms


class Bench:
    """The files of a benchmark, and the processes that are measured on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.sizes: dict[str, dict[str, float]] = {}

    def prepare(self, network: str, counts: tuple[int, ...]) -> None:
        """Write model and samples; ``sizes`` of the network tells of its activations."""
        (self._folder / network).mkdir()
        for count in counts:
            self.sizes[network] = self._job(System("prepare", network), network, count)

    def measure(self, system: System, network: str, count: int) -> Run:
        """The least disturbed of up to three measurements."""
        tried: list[Run] = []
        while len(tried) < ATTEMPTS:
            tried.append(self._measure(system, network, count))
            if tried[-1].disturbed <= MOST_DISTURBED:
                break
        return min(tried, key=lambda run: run.disturbed)

    def _measure(self, system: System, network: str, count: int) -> Run:
        before = self._job(PLAIN, network, count)
        if system.what == "onnxq calibrate":
            figures = self._command(system.how, network, count)
        else:
            figures = self._job(system, network, count)
        after = self._job(PLAIN, network, count)
        return Run(
            network=network,
            samples=count,
            system=system.title,
            pass_ms=figures.get("pass_ms") or figures["seconds"] * 1e3 / count,
            plain_ms=(before["pass_ms"] + after["pass_ms"]) / 2,
            peak_mb=figures["peak_mb"],
            grown_mb=figures.get("grown_mb"),
            disturbed=max(each["disturbed"] for each in (before, figures, after)),
        )

    def forecast_mb(self, network: str, count: int) -> float:
        """What onnxruntime's histogram calibrators hold: every activation of every sample, and
        three copies of the largest while they count it.
        """
        sizes = self.sizes[network]
        return count * (sizes["fetched_mb"] + 3 * sizes["largest_mb"])

    def _job(self, system: System, network: str, count: int) -> dict[str, float]:
        result = self._folder / "result.json"
        result.unlink(missing_ok=True)
        module = [sys.executable, "-m", "benchmarks.calibration_job"]
        files = [self._model(network), self._samples(network, count), result]
        _, disturbed = _run([*module, system.what, system.how, *map(str, files)])
        return json.loads(result.read_text(encoding="utf-8")) | {"disturbed": disturbed}

    def _command(self, method: str, network: str, count: int) -> dict[str, float]:
        command = [sys.executable, "-m", "onnxq", "calibrate", str(self._model(network)), "--quiet"]
        options = {
            "--data": self._samples(network, count),
            "--samples": count,
            "--method": method,
            "-o": self._folder / "out",
        }
        start = time.perf_counter()
        words = (str(word) for pair in options.items() for word in pair)
        usage, disturbed = _run([*command, *words])
        seconds = time.perf_counter() - start
        peak_mb = usage.ru_maxrss * 1024 / 1e6
        return {"seconds": seconds, "peak_mb": peak_mb, "disturbed": disturbed}

    def _model(self, network: str) -> Path:
        return self._folder / network / "model.onnx"

    def _samples(self, network: str, count: int) -> Path:
        return self._folder / network / f"{count}.npz"


def _run(command: list[str]) -> tuple[resource.struct_rusage, float]:
    """Run a process to its end: what it used, and the share of the cores that others had. It must
    succeed.
    """
    busy, start = _busy_seconds(), time.perf_counter()
    with tempfile.TemporaryFile() as said:
        child = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)}\n{said.read().decode()}")
    others = _busy_seconds() - busy - usage.ru_utime - usage.ru_stime
    return usage, max(0.0, others) / (time.perf_counter() - start) / (os.cpu_count() or 1)


def _busy_seconds() -> float:
    """Seconds that all cores together have worked or were taken by other guests of the machine.

    Source: proc(5), /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal.
    """
    ticks = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def plan(rounds: dict[int, int], peers: str) -> Iterator[tuple[System, str, int]]:
    """What is measured, in order: rounds over everything, and last what needs much memory."""
    context = [System("forward", "none"), System("forward", "fetch")]
    onnxq = [System("onnxq", method) for method in METHODS]
    command = [System("onnxq calibrate", METHODS[1])]
    asked = {"all": list(PEERS), "minmax": ["MinMax"], "none": []}[peers]
    others = [System("onnxruntime", peer) for peer in asked]
    light = [system for system in others if not system.keeps_every_tensor]
    heavy = [system for system in others if system.keeps_every_tensor]
    smallest = min(rounds)
    for turn in range(max(rounds.values())):
        for network, count in product(NETWORKS, rounds):
            if turn < rounds[count]:
                extra = [*context, *command] if count == smallest else command
                for system in (*extra, *onnxq, *light):
                    yield system, network, count
    for network, count, system in product(NETWORKS, sorted(rounds)[:2], heavy):
        for _ in range(max(1, rounds[count] // 2)):
            yield system, network, count


def measured(
    bench: Bench, wanted: Iterator[tuple[System, str, int]]
) -> tuple[list[Run], list[str]]:
    """All runs, and sentences on what was left out."""
    runs: list[Run] = []
    left_out: list[str] = []
    for system, network, count in wanted:
        if system.keeps_every_tensor:
            needed, free = bench.forecast_mb(network, count), SHARE_OF_MEMORY * _free_mb()
            if needed > free:
                reason = f"needs about {needed / 1e3:.0f} GB, of which {free / 1e3:.0f} GB are free"
                left_out.append(f"{system.title}, {NETWORKS[network]}, {count} samples: {reason}")
                continue
        runs.append(bench.measure(system, network, count))
        last = runs[-1]
        print(
            f"{network} {count} {last.system}: {last.ratio:.2f} × {last.plain_ms:.2f} ms, "
            f"peak {last.peak_mb:.0f} MB, others had {last.disturbed:.0%} of the cores",
            file=sys.stderr,
            flush=True,
        )
    return runs, list(dict.fromkeys(left_out))


def _free_mb() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/meminfo does not tell the free memory; run with --peers minmax")


@dataclass(frozen=True)
class Row:
    """A system on a network, over numbers of samples: median ratios, largest peaks of memory."""

    title: str
    ratios: dict[int, float]
    peaks_mb: dict[int, float]


def rows_of(network: str, runs: list[Run]) -> dict[str, Row]:
    """One row for every system that was measured on ``network``."""
    here = [run for run in runs if run.network == network]
    rows = {}
    for title in dict.fromkeys(run.system for run in here):
        of_title = [run for run in here if run.system == title]
        counts = sorted({run.samples for run in of_title})
        at = {count: [run for run in of_title if run.samples == count] for count in counts}
        rows[title] = Row(
            title,
            {count: statistics.median(run.ratio for run in at[count]) for count in counts},
            {count: max(run.peak_mb for run in at[count]) for count in counts},
        )
    return rows


def judged(row: Row, rows: dict[str, Row]) -> str:
    """The goals of a row, and which are missed."""
    words = row.title.split()
    if words[:1] == ["onnxq"] and words[1:] != ["calibrate"] and len(words) == 2:
        return _judged_ours(row, MOST_RATIO.get(words[1], MOST_RATIO_OF_HISTOGRAMS))
    ours = rows.get(f"onnxq {PEERS.get(words[-1], '')}") if words[0] == "onnxruntime" else None
    if ours is None or words[-1] == "MinMax":
        return ""
    faster = [row.ratios[count] / ours.ratios[count] for count in row.ratios]
    verdict = "met" if min(faster) >= LEAST_SPEED_UP else "**missed**"
    shown = " / ".join(f"{value:.0f}" for value in faster)
    return f"{shown} times {ours.title}'s; ≥ {LEAST_SPEED_UP:g}: {verdict}"


def _judged_ours(row: Row, most: float) -> str:
    missed = []
    if max(row.ratios.values()) > most:
        missed.append("time")
    if max(row.peaks_mb.values()) > MOST_PEAK_MB:
        missed.append("peak")
    goals = [f"≤ {most:g} ×", f"≤ {MOST_PEAK_MB:g} MB"]
    if {128, 1024} <= row.peaks_mb.keys():
        goals.append(f"growing < {MOST_GROWTH_MB:g} MB")
        if row.peaks_mb[1024] - row.peaks_mb[128] >= MOST_GROWTH_MB:
            missed.append("growth")
    verdict = f"**missed: {', '.join(missed)}**" if missed else "met"
    return f"{', '.join(goals)}: {verdict}"


def table(runs: list[Run], counts: tuple[int, ...]) -> str:
    """The table of the README."""
    shown = [f"{count:,}" for count in counts]
    head = [
        "time a sample ÷ plain forward pass",
        *shown,
        *(f"MB, {word}" for word in shown),
        "goal",
    ]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (2 * len(counts)) + "---|"]
    empty = " |" * (2 * len(counts) + 1)
    for network, title in NETWORKS.items():
        rows = rows_of(network, runs)
        if not rows:
            continue
        plain = statistics.median(run.plain_ms for run in runs if run.network == network)
        lines.append(f"| **{title}**, plain forward pass {plain:.1f} ms |{empty}")
        for row in rows.values():
            ratios = [f"{row.ratios[c]:.1f}" if c in row.ratios else "–" for c in counts]
            peaks = [f"{row.peaks_mb[c]:,.0f}" if c in row.peaks_mb else "–" for c in counts]
            lines.append(f"| {' | '.join([row.title, *ratios, *peaks, judged(row, rows)])} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="32 samples, two rounds")
    parser.add_argument("--peers", choices=["all", "minmax", "none"], default="all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure")
    options = parser.parse_args()
    rounds = QUICK_ROUNDS if options.quick else ROUNDS
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for network in NETWORKS:
            bench.prepare(network, tuple(rounds))
        runs, left_out = measured(bench, plan(rounds, options.peers))
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "onnxruntime": version("onnxruntime"),
        "rounds": rounds,
    }
    said = ", ".join(f"{number} rounds of {count:,} samples" for count, number in rounds.items())
    print(f"{os.cpu_count()} cores, onnxruntime {version('onnxruntime')}; {said}\n")
    print(table(runs, tuple(rounds)))
    disturbed = sum(run.disturbed > MOST_DISTURBED for run in runs)
    print(f"\n{disturbed} of {len(runs)} measurements were disturbed every time.")
    for sentence in left_out:
        print(f"\nLeft out: {sentence}.")
    if options.json:
        figures = {"machine": machine, "left_out": left_out, "runs": [asdict(run) for run in runs]}
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
