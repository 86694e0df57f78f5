"""Measurements of ``benchmarks.calibration`` → the table of the README, judged by its goals."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MOST_DISTURBED", "NETWORKS", "PEERS", "Run", "System", "table"]

NETWORKS = {
    "mobilenet": "MobileNetV2, 224 × 224",
    "transformer": "4 transformer blocks, 512 × 256",
}
PEERS = {"MinMax": "minmax", "Entropy": "entropy", "Percentile": "percentile"}
EXTREMES = ("minmax", "ema")  # the methods that need no histogram
MOST_DISTURBED = 0.1
MOST_RATIO, MOST_RATIO_OF_HISTOGRAMS = 2.5, 6.0
LEAST_SPEED_UP = 11.0
MOST_PEAK_MB = 400.0
MOST_GROWTH_MB = 50.0
_FORWARD = {
    "plain": "forward pass, unoptimized",
    "fetch": "unoptimized, fetching what carries Q/DQ",
}


@dataclass(frozen=True)
class System:
    """What is measured: a job of ``benchmarks.calibration_job``, its method, its optimization."""

    what: str
    method: str
    optimization: str = "none"

    @property
    def title(self) -> str:
        """Its row in the table."""
        if self.what == "forward":
            return _FORWARD[self.method]
        optimized = ", optimized graph" if self.optimization == "full" else ""
        return f"{self.what} {self.method}{optimized}"

    @property
    def keeps_every_tensor(self) -> bool:
        """Whether onnxruntime keeps all activations of all samples before it counts them."""
        return self.what == "onnxruntime" and self.method != "MinMax"


@dataclass(frozen=True)
class Run:
    """One measurement; a forward pass has no growth of memory.

    ``disturbed`` is the largest share of the cores that other processes had meanwhile.
    """

    system: System
    network: str
    samples: int
    pass_ms: float
    plain_ms: float
    peak_mb: float
    grown_mb: float | None
    disturbed: float

    @property
    def ratio(self) -> float:
        """Time a sample in plain forward passes."""
        return self.pass_ms / self.plain_ms


@dataclass(frozen=True)
class Row:
    """A system on a network, over numbers of samples: median ratios, largest peaks of memory."""

    system: System
    ratios: dict[int, float]
    peaks_mb: dict[int, float]


def _rows_of(runs: Sequence[Run]) -> dict[System, Row]:
    rows = {}
    for system in dict.fromkeys(run.system for run in runs):
        of_system = [run for run in runs if run.system == system]
        at = {
            count: [run for run in of_system if run.samples == count]
            for count in sorted({run.samples for run in of_system})
        }
        rows[system] = Row(
            system,
            {count: statistics.median(run.ratio for run in some) for count, some in at.items()},
            {count: max(run.peak_mb for run in some) for count, some in at.items()},
        )
    return rows


def _judged(row: Row, rows: dict[System, Row]) -> str:
    """The goals of a row, and which are missed."""
    if row.system.what == "onnxq":
        return _judged_ours(row)
    ours = rows.get(System("onnxq", PEERS.get(row.system.method, "")))
    if not row.system.keeps_every_tensor or ours is None:
        return ""
    faster = [row.ratios[count] / ours.ratios[count] for count in row.ratios]
    shown = " / ".join(f"{value:.1f}" for value in faster)
    verdict = "met" if min(faster) >= LEAST_SPEED_UP else "**missed**"
    return f"onnxq is {shown} × faster; ≥ {LEAST_SPEED_UP:g} ×: {verdict}"


def _judged_ours(row: Row) -> str:
    most = MOST_RATIO if row.system.method in EXTREMES else MOST_RATIO_OF_HISTOGRAMS
    goals = [f"≤ {most:g}", f"≤ {MOST_PEAK_MB:g} MB"]
    missed = [f"at {count:,}" for count, ratio in row.ratios.items() if ratio > most]
    if max(row.peaks_mb.values()) > MOST_PEAK_MB:
        missed.append("peak")
    if {128, 1024} <= row.peaks_mb.keys():
        goals.append(f"+ < {MOST_GROWTH_MB:g} MB")
        if row.peaks_mb[1024] - row.peaks_mb[128] >= MOST_GROWTH_MB:
            missed.append("growth")
    return f"{', '.join(goals)}: {'**missed** ' + ', '.join(missed) if missed else 'met'}"


def table(runs: Sequence[Run], counts: Sequence[int]) -> str:
    """Ratios and peaks of memory at every number of samples, network by network."""
    shown = [f"{count:,}" for count in counts]
    head = ["÷ plain forward pass, samples", *shown, *(f"{word}, MB" for word in shown), "goal"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (2 * len(counts)) + "---|"]
    for network, title in NETWORKS.items():
        here = [run for run in runs if run.network == network]
        if not here:
            continue
        plain = statistics.median(run.plain_ms for run in here)
        empty = " |" * (2 * len(counts) + 1)
        lines.append(f"| **{title}**: plain forward pass {plain:.1f} ms |{empty}")
        rows = _rows_of(here)
        for system, row in rows.items():
            ratios = [f"{row.ratios[c]:.1f}" if c in row.ratios else "–" for c in counts]
            peaks = [f"{row.peaks_mb[c]:,.0f}" if c in row.peaks_mb else "–" for c in counts]
            cells = [system.title, *ratios, *peaks, _judged(row, rows)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
