"""The rPPG recipe: time, memory, size and accuracy, beside onnxruntime's own quantizer.

    python -m benchmarks.rppg             data must be there: make rppg
    python -m benchmarks.rppg --fresh     also clones, sets up and runs from nothing (minutes)

Seconds depend on the machine and are printed with their limit; what is compared is measured in this
one run and printed as a ratio.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from onnxq.calibrate.readers import SampleReader
from onnxq.recipe_file import load_recipe
from onnxq.runtime import Session
from onnxq.samples import Samples
from onnxq.sources import open_source

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "models" / "rppg" / "recipe.yaml"
INPUTS = ("input",)


def timed(command: list[str], cwd: Path = ROOT) -> float:
    """Seconds that a command takes; it must succeed."""
    start = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def show(what: str, value: str, goal: str) -> None:
    """Print one row."""
    print(f"| {what} | {value} | {goal} |", flush=True)


def samples_of(recipe_part: str) -> Samples:
    """The recipe's calibration or evaluation samples."""
    source = getattr(load_recipe(RECIPE).data, recipe_part)
    return open_source(source.source, source.options | source.paths, INPUTS, ROOT)


def predicted(model: Path, samples: Samples) -> np.ndarray:
    """Heart rates as the Q/DQ graph says, in BPM."""
    session = Session(model, optimization="none")
    return np.array([session.run(row)["output"].item() for row in samples.rows()])


def by_onnxruntime(build: Path, folder: Path) -> Path:
    """The same FP32 file and the same 200 windows through onnxruntime's own quantizer."""
    chosen = json.loads((build / "calibrate" / "calibration.json").read_text())["choice"]["indices"]
    output = folder / "onnxruntime.onnx"
    quantize_static(
        build / "export" / "fp32.onnx",
        output,
        SampleReader(samples_of("calibration").take(np.array(chosen))),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    return output


def accuracy_and_size(build: Path, folder: Path) -> None:
    """Rows on the file that ships, and on onnxruntime's beside it."""
    report = json.loads((build / "verify" / "report.json").read_text())
    mae = report["comparison"]["metrics"][0]
    interval = mae["interval"]
    show(
        "MAE increase (BPM)",
        f"{mae['increase']:+.3f}, 95 % interval [{interval['low']:+.3f}, {interval['high']:+.3f}] "
        f"over {interval['count']} subjects",
        "≤ 2.0",
    )
    fp32, ours = build / "export" / "fp32.onnx", build / "quantize" / "int8.onnx"
    theirs = by_onnxruntime(build, folder)
    for name, path, goal in (("onnxq", ours, "≤ 0.42"), ("onnxruntime", theirs, "peer")):
        show(f"INT8 / FP32 file, {name}", f"{path.stat().st_size / fp32.stat().st_size:.3f}", goal)
    evaluation = samples_of("evaluation")
    labels = np.asarray(evaluation.labels)
    reference = predicted(fp32, evaluation)
    for name, path in (("onnxq", ours), ("onnxruntime", theirs)):
        rates = predicted(path, evaluation)
        gap = np.abs(rates - reference)
        maes = [np.abs(values - labels).mean() for values in (rates, reference)]
        show(
            f"distance to FP32, {name} (BPM)",
            f"mean {gap.mean():.3f}, worst {gap.max():.2f}",
            f"MAE {maes[0]:.3f}, FP32's {maes[1]:.3f}",
        )


def fresh_clone() -> None:
    """Seconds from `git clone` to the verdict, in a folder whose path has a space."""
    with tempfile.TemporaryDirectory(prefix="fresh clone ") as folder:
        clone = Path(folder) / "onnxq"
        seconds = timed(["git", "clone", "--quiet", str(ROOT), str(clone)])
        seconds += timed(["make", "rppg"], cwd=clone)
        show("fresh clone to verdict (s)", f"{seconds:.0f}", "≤ 300")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--fresh", action="store_true", help="also measure a fresh clone")
    options = parser.parse_args()
    onnxq = [sys.executable, "-m", "onnxq"]
    print(f"{os.cpu_count()} cores\n\n| figure | measured | goal |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        build = Path(scratch) / "rppg"
        run = [*onnxq, "run", str(RECIPE), "--build-dir", str(build), "--quiet"]
        show("onnxq run, data present (s)", f"{timed(run):.1f}", "≤ 60")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        show("peak memory (GB)", f"{peak:.2f}", "≤ 1.5")
        show("onnxq run, all up to date (s)", f"{timed(run):.1f}", "≤ 3")
        best = min(timed([*onnxq, "--help"]) for _ in range(5))
        show("onnxq --help (s)", f"{best:.2f}", "≤ 0.3")
        accuracy_and_size(build, Path(scratch))
    if options.fresh:
        fresh_clone()


if __name__ == "__main__":
    main()
