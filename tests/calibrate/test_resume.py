"""Killed at random moments and resumed, a calibration gives the bytes of an undisturbed one."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.calibrate.stage import RECORD, STATISTICS

from .collecting import model

pytestmark = pytest.mark.slow
LAYERS, WIDTH, SAMPLES = 10, 128, 160


@pytest.fixture(autouse=True)
def _ctrl_c_is_heeded() -> Iterator[None]:
    """A process started in the background of a shell ignores Ctrl-C, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Task:
    """A network and samples, calibrated by the command line in a folder."""

    folder: Path

    def start(self, *more: str, output: str = "out") -> subprocess.Popen[str]:
        command = ["calibrate", "m.onnx", "--data", "x.npz", "--samples", str(SAMPLES)]
        often = () if output == "undisturbed" else ("--checkpoint", "0.05")
        options = ["--method", "percentile", *often, "-o", output, *more]
        return subprocess.Popen(
            [sys.executable, "-m", "onnxq", *command, *options],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self, *more: str, output: str = "out") -> tuple[int, str]:
        with self.start(*more, output=output) as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in out + err
        return process.returncode, out + err

    def made(self, output: str = "out") -> tuple[bytes, bytes]:
        return tuple((self.folder / output / name).read_bytes() for name in (RECORD, STATISTICS))

    def done(self, output: str) -> int:
        """How many samples are in the pieces on disk."""
        pieces = (self.folder / f"{output}.partial").glob("*-*.safetensors")
        edges = [path.stem.split("-") for path in pieces]
        return sum(int(stop) - int(start) for start, stop in edges)

    def interrupt(
        self, number: signal.Signals, seconds: float, *more: str, output: str
    ) -> tuple[int, str]:
        """Start, and send a signal ``seconds`` after a piece more, or the first, is on disk."""
        before = self.done(output)
        with self.start(*more, output=output) as process:
            while process.poll() is None and self.done(output) in (0, before):
                time.sleep(0.005)
            time.sleep(seconds)
            process.send_signal(number)
            out, err = process.communicate(timeout=60)
        return process.returncode, out + err


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("resumed")
    chain = "\n".join(f"[n{n}] t{n + 1} = MatMul(t{n}, w)" for n in range(LAYERS))
    text = f"g (float[N,{WIDTH},{WIDTH}] t0) => (float[N,{WIDTH},{WIDTH}] t{LAYERS}) {{ {chain} }}"
    normal = np.random.default_rng(0).standard_normal
    unitary = np.linalg.qr(normal((WIDTH, WIDTH)))[0].astype(np.float32)
    onnx.save(onnx.ModelProto.FromString(model(text, w=unitary)), folder / "m.onnx")
    np.savez(folder / "x.npz", t0=normal((SAMPLES, WIDTH, WIDTH)).astype(np.float32))
    code, said = Task(folder).finish(output="undisturbed")
    assert code == 0, said
    return Task(folder)


def test_ten_kills_at_random_moments_change_no_byte(task):
    moments = random.Random(4)
    kept = []
    for moment in (moments.uniform(0, 1), moments.uniform(1, 4)):
        with task.start("--resume", output="killed") as process:
            time.sleep(moment)  # the command is still loading, or about to begin
            process.kill()
            process.communicate()
    for _ in range(8):
        wait = moments.uniform(0, 0.1)
        code, said = task.interrupt(signal.SIGKILL, wait, "--resume", output="killed")
        assert code == -signal.SIGKILL, said
        kept.append(task.done("killed"))
        assert not (task.folder / "killed").exists()
    assert kept == sorted(set(kept))  # every run went on from where the last one was
    assert kept[-1] < SAMPLES

    code, said = task.finish("--resume", output="killed")

    assert code == 0, said
    assert task.made("killed") == task.made("undisturbed")
    assert not (task.folder / "killed.partial").exists()


def test_ctrl_c_keeps_pieces_and_only_the_same_calibration_goes_on_from_them(task):
    code, said = task.interrupt(signal.SIGINT, 0.05, output="out")
    assert code == 2, said
    assert "Traceback" not in said
    kept = task.done("out")
    assert 0 < kept < SAMPLES
    left = {path.name for path in task.folder.iterdir() if path.name[:4] in ("out", ".out", "out.")}
    assert left == {"out.partial"}

    code, said = task.finish("--resume", "--seed", "1", output="out")
    assert code == 2
    assert "holds pieces of another calibration" in said
    assert task.done("out") == kept
