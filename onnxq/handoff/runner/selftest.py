"""Is this bundle whole, does this machine give its known answers, and how fast?

    python selftest.py [--runs 100] [--warm-up 10] [--threads 1] [--tolerance STEPS] [--json]

Needs numpy and onnxruntime. Every file is compared with SHA256SUMS, every known answer is computed
again with one thread, then one sample is run ``--runs`` times (0: not at all).

An answer may be off by ``--tolerance`` steps of its output. Unless given: 0 on a processor with the
instruction sets and an onnxruntime of the version that the answers were made with, else 1, as
another kernel may round a tie the other way. The step is the output's scale; of an output that the
file computes in float, 1/255 of the span of its known answers. What decides is the level of
optimization that the model was judged at; the other one is told.

Exit code 0: whole, and every answer within tolerance. 1: a file was changed, or an answer is off.
2: it could not be checked (a file or a package is missing).
"""
# ruff: noqa: T201  (a stand-alone script: copied into every bundle, never imported by onnxq)

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must precede the import
sys.dont_write_bytecode = True  # nothing is left in the bundle
try:
    import numpy as np
    import onnxruntime as ort
    from contract import load, parts_of
    from run import Runner
except ImportError as fault:
    print(f"{fault}: `pip install -r requirements.txt` installs what is needed", file=sys.stderr)
    raise SystemExit(2) from fault

__all__ = ["main"]

Array = np.ndarray[Any, np.dtype[Any]]
FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm"}
NO_NUMBER = 1e9  # steps, where an answer is infinite, no number, or of another type
HERE = Path(__file__).resolve().parent


class Answers:
    """The known answers of the whole bundle, or of one part of it."""

    def __init__(self, folder: Path, part: str = "") -> None:
        with np.load(folder / "known_answers.npz", allow_pickle=False) as archive:
            self.arrays: dict[str, Array] = dict(archive)
        self.about = json.loads(str(self.arrays["about"]))
        self.part, self.outputs = part, load(folder).outputs

    def row(self, kind: str, number: int) -> dict[str, Array]:
        """Inputs or outputs of one sample."""
        names = self.about["inputs" if kind == "input" else "outputs"]
        return {name: self.arrays[f"{kind}.{name}"][number] for name in names}

    def step(self, name: str) -> float:
        """The unit in which an output's departure is told."""
        known = self.outputs[name].get("quantization")
        if known is not None:
            return float(known["scale"])
        wanted = self.arrays[f"output.{name}"].astype(np.float64)
        return float(np.ptp(wanted)) / 255 or 1.0


def changed_files(folder: Path) -> list[str]:
    """Names of files that are not as SHA256SUMS says. Raises OSError if one is missing."""
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = [line.split("  ", 1) for line in lines]
    return [
        name for digest, name in sums
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]  # fmt: skip


def replay(answers: Answers, kind: str, level: str) -> dict[str, Any]:
    """How far the answers of this machine are from the known ones."""
    runner = Runner(HERE, threads=int(answers.about["intra_op_num_threads"]), level=level)
    count, worst, off = int(answers.about["vectors"]), 0.0, 0
    elements, first = 0, ""
    for number in range(count):
        fed = answers.row("input", number)
        if answers.part:
            given = runner.run_part(answers.part, fed)
        else:
            given = runner.run(fed, any_domain=True)
        for name, wanted in answers.row(kind, number).items():
            elements += wanted.size
            differing, most = departure(given[name], wanted, answers.step(name))
            if differing:
                first = first or f"vector {number}, `{name}`"
                worst, off = max(worst, most), off + differing
    return {
        "part": answers.part, "level": level, "decides": kind == "output", "vectors": count,
        "elements": elements, "differing": off, "most_steps": worst, "first": first,
    }  # fmt: skip


def departure(given: Array, wanted: Array, step: float) -> tuple[int, float]:
    """How many numbers differ in any bit, and by how many steps at most."""
    if given.dtype != wanted.dtype or given.shape != wanted.shape:
        return wanted.size, NO_NUMBER
    same = np.frombuffer(given.tobytes(), f"V{wanted.itemsize}") == np.frombuffer(
        wanted.tobytes(), f"V{wanted.itemsize}"
    )
    if same.all():
        return 0, 0.0
    with np.errstate(invalid="ignore"):
        off = np.abs(given.astype(np.float64) - wanted.astype(np.float64)) / step
    steps = np.nan_to_num(off, nan=NO_NUMBER, posinf=NO_NUMBER)
    return int(np.count_nonzero(~same)), float(np.round(steps.max(), 3))


def latency(answers: Answers, runs: int, warm_up: int, threads: int) -> dict[str, Any]:
    """Median and quartiles of one sample's time, at the level the model was judged at."""
    runner, fed = Runner(HERE, threads=threads), answers.row("input", 0)
    times = []
    for _ in range(warm_up + runs):
        start = time.perf_counter()
        runner.run(fed, any_domain=True)
        times.append((time.perf_counter() - start) * 1e3)
    low, median, high = np.percentile(times[warm_up:], [25, 50, 75])
    return {
        "median_ms": float(median), "q1_ms": float(low), "q3_ms": float(high), "runs": runs,
        "warm_up": warm_up, "threads": threads,
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """The processor, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    told = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    named = {key.strip().lower(): value.strip() for key, value in told.items()}
    keys = ("model name", "hardware", "cpu part")
    name = next((named[key] for key in keys if named.get(key)), platform.processor())
    return {
        "cpu": name or platform.machine(),
        "flags": [platform.machine(), *sorted(FLAGS & set(text.split()))],
        "system": platform.system(),
        "python": platform.python_version(),
        "onnxruntime": ort.__version__,
        "numpy": np.__version__,
    }


def every_answer() -> list[Answers]:
    """Those of the whole, where there are any, and those of every part."""
    parts = [Answers(HERE / name, name) for name in parts_of(HERE) if name]
    whole = (HERE / "known_answers.npz").is_file() or not parts
    return ([Answers(HERE)] if whole else []) + parts


def check(given: argparse.Namespace, found: dict[str, Any], say: Any) -> int:
    """Everything that is asked for goes into ``found``; the exit code."""
    found["machine"] = machine()
    found["changed"] = changed_files(HERE)
    for name in found["changed"]:
        say(f"CHANGED: {name} is not the file that was handed off")
    if found["changed"]:
        return 1
    answers = every_answer()
    made = answers[0].about
    same = [made["onnxruntime"], made["cpu"]] == [ort.__version__, found["machine"]["flags"]]
    allowed = given.tolerance if given.tolerance is not None else 0.0 if same else 1.0
    found |= {"same_machine": same, "tolerance_steps": allowed, "answers": []}
    say(f"{found['machine']['cpu']}, onnxruntime {ort.__version__}")
    if not same:
        say(f"  the answers are of {' '.join(made['cpu'])}, onnxruntime {made['onnxruntime']}")
    code = 0
    for known in answers:
        for kind, level in known.about["levels"].items():
            line = replay(known, kind, level)
            found["answers"].append(line)
            wrong = line["decides"] and line["most_steps"] > allowed
            say(told(line, wrong, allowed))
            code = 1 if wrong else code
    if given.runs:
        whole = next((known for known in answers if not known.part), None)
        if whole is not None:
            found["latency"] = time_of = latency(whole, given.runs, given.warm_up, given.threads)
            say(f"latency {time_of['median_ms']:.4g} ms, quartiles {time_of['q1_ms']:.4g} to "
                f"{time_of['q3_ms']:.4g} ms: {given.runs} runs after {given.warm_up} to warm up, "
                f"{given.threads} threads")  # fmt: skip
    return code


def told(line: Mapping[str, Any], wrong: bool, allowed: float) -> str:
    """One line on one set of answers."""
    head = (
        f"{line['part'] + ', ' if line['part'] else ''}{line['level']}: {line['vectors']} vectors"
    )
    if not line["differing"]:
        return f"{head}, every answer is bit for bit the same"
    mark = "DIFFERS: " if wrong else "" if line["decides"] else "for information: "
    return (
        f"{mark}{head}, {line['differing']} of {line['elements']} numbers differ by up to "
        f"{line['most_steps']:g} output steps (allowed {allowed:g}), first in {line['first']}"
    )


def main() -> int:
    """Parse, check, print; the exit code."""
    parser = argparse.ArgumentParser(description="Check this bundle on this machine.")
    parser.add_argument("--runs", type=int, default=100, help="timed runs; 0: no timing")
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="of the timed runs")
    parser.add_argument("--tolerance", type=float, help="output steps that an answer may be off")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    found: dict[str, Any] = {}

    def say(line: str) -> None:
        print(line, file=sys.stderr if given.json else sys.stdout)

    try:
        code = check(given, found, say)
    except Exception as fault:  # the runtime's exception types share no other base
        found["error"] = str(fault)
        say(f"could not check: {fault}")
        code = 2
    if given.json:
        print(json.dumps({"exit_code": code, **found}))
    return code


if __name__ == "__main__":
    sys.exit(main())
