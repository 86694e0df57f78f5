"""A run that is interrupted or killed in any stage leaves nothing half-written and resumes."""

import json
import signal
import subprocess
import sys

import pytest

from onnxq.pipeline import STAGES
from onnxq.store import sha256_of_file

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _ctrl_c_is_heeded():
    """A process started in the background of a shell ignores Ctrl-C, and so would its children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _run_until(tiny, stage: str, number: signal.Signals) -> int:
    """Start a run, send it a signal as soon as it says that ``stage`` has begun; its exit code."""
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "onnxq", *tiny.arguments()],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip() == f"… {stage}":
                process.send_signal(number)
                break
        process.stderr.read()
        return process.wait(60)


_MOMENTS = [  # killed in every stage; Ctrl-C, which is gentler, in one unless there is time
    pytest.param(
        stage, number,
        marks=[pytest.mark.long] if number == signal.SIGINT and stage != "calibrate" else [],
    )
    for stage in STAGES
    for number in (signal.SIGINT, signal.SIGKILL)
]  # fmt: skip


@pytest.mark.parametrize(("stage", "number"), _MOMENTS)
def test_the_next_run_resumes_at_the_stage_that_was_hit(tiny, onnxq, stage, number):
    code = _run_until(tiny, stage, number)

    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 2)
    done = {path.stem for path in (tiny.build / ".stages").glob("*.json")}
    assert done <= set(STAGES[: STAGES.index(stage) + 1])
    for name in done:  # whatever is taken for done is whole
        note = json.loads((tiny.build / ".stages" / f"{name}.json").read_text())
        for file, digest in note["files"].items():
            assert sha256_of_file(tiny.build / name / file) == digest

    resumed = onnxq(*tiny.arguments())

    assert resumed.code == 0, resumed.err
    assert resumed.out.count("up to date") == len(done)
    leftovers = [
        p.name for p in tiny.build.iterdir() if p.name not in {*STAGES, ".stages", ".lock"}
    ]
    assert leftovers == []
