"""Samples and records of the small net, and the two commands that a receiver runs."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from handoff.qdq_models import images
from onnxq.artifacts import (
    Comparison,
    Coverage,
    CoverageLine,
    FileFacts,
    GateResult,
    MetricRow,
    VerificationReport,
)
from onnxq.provenance import provenance
from onnxq.samples import Samples
from onnxq.store import sha256_of_file
from onnxq.target import Target, load_target

N6, X86 = load_target("stm32n6"), load_target("ort-x86")


def samples(count: int = 12) -> Samples:
    """Made-up pictures with labels and three subjects."""
    return Samples(
        name="pictures",
        inputs={"image": images(count)},
        labels=np.arange(count) * 1.5,
        groups=np.array([f"subject{n % 3}" for n in range(count)]),
    )


def report_of(model: Path, target: Target = N6, **changes: object) -> VerificationReport:
    """A report that says that ``model`` passed, with these changes."""
    facts = FileFacts(
        name=model.name, sha256=sha256_of_file(model), size_bytes=model.stat().st_size
    )
    row = MetricRow(
        metric="mae", unit="BPM", better="lower", fp32=4.0, rewritten=4.0, int8=4.25,
        int8_other=4.5, increase=0.25, interval=None, baseline=10.0,
    )  # fmt: skip
    line = CoverageLine(integer=7, total=8)
    report = VerificationReport(
        verdict="passed",
        reasons=("the gate holds",),
        name="small",
        target=target.name,
        fp32=facts,
        int8=facts,
        gates=(
            GateResult(
                metric="mae", statement="mae rises by at most 2 BPM", allowed=2, point=0.25,
                bound=0.5, judge="bound", verdict="passed",
            ),
        ),
        comparison=Comparison(
            source="pictures", samples=12, groups=3, judged_as=target.judged_as, metrics=(row,),
            by_group=(), worst_group=None,
        ),
        audit=(),
        coverage=Coverage(operators=line, parameters=line, macs=line),
        fusion=(),
        layers=(),
        provenance=provenance({}),
    )  # fmt: skip
    return report.model_copy(update=changes)


def run_script(
    folder: Path, *arguments: object, script: str = "selftest.py"
) -> subprocess.CompletedProcess[str]:
    """``python selftest.py``, a few timed runs if nothing else is asked for."""
    given = [str(argument) for argument in arguments or ("--runs", 3, "--warm-up", 1)]
    return subprocess.run(
        [sys.executable, script, *given],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )


def sums(folder: Path) -> int:
    """Exit code of ``sha256sum -c``."""
    return subprocess.run(
        ["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=False, capture_output=True
    ).returncode


def sum_again(folder: Path) -> None:
    """Make SHA256SUMS fit the files as they are now, as if they had been handed off so."""
    names = sorted(
        line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().split("\n") if line
    )
    lines = "".join(f"{sha256_of_file(folder / name)}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(lines)
