"""The forecast of memory is near what a process takes, and --max-memory is kept or refused."""

import subprocess
import sys

import pytest

from onnxq.calibrate.forecast import Forecast, cores, fitted, memory_mb, with_time
from onnxq.errors import UsageError

from .collecting import DETAILS, NETS, job, model

MB = 1_000_000
TEXT = "g (float[N,{n},1000] x) => (float[N,{n},1000] y) {{ a = Relu(x)  b = Neg(a)  c = Abs(b)  y = Neg(c) }}"  # noqa: E501
PEAK = r"""
import re, sys
from pathlib import Path
import numpy as np
from onnxq.calibrate.collect import Job
from onnxq.calibrate.forecast import memory_mb
from onnxq.calibrate.gather import gather
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.resources import Resources
from onnxq.samples import Samples
path, detail, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
x = np.broadcast_to(np.float32(0.5), (3, rows, 1000))
job = Job(Path(path).read_bytes(), tuple("xabcy"), detail)
one_thread = memory_mb(job, begun=True) + 1
gather(job, SampleReader(Samples("s", {"x": x})), Resources(max_memory_mb=one_thread))
print(one_thread)
status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the test before exec
print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("activation_mb", [4, 100])
def test_the_forecast_is_within_a_factor_of_two_of_what_a_process_takes(
    tmp_path, detail, activation_mb
):
    rows = activation_mb * MB // 4000
    graph = model(TEXT.format(n=rows))
    (tmp_path / "m.onnx").write_bytes(graph)
    arguments = [str(tmp_path / "m.onnx"), detail, str(rows)]
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments], capture_output=True, text=True, check=True
    )
    one_thread, peak = (float(line) for line in ended.stdout.split())
    peak /= MB
    assert one_thread / 2 <= peak <= 2 * one_thread


@pytest.mark.parametrize("detail", DETAILS)
def test_more_threads_and_larger_activations_take_more(detail):
    small, large = (model(TEXT.format(n=n)) for n in (1000, 4000))
    assert memory_mb(job(large, detail)) > memory_mb(job(small, detail)) + 20
    assert memory_mb(job(small, detail, threads=3)) > memory_mb(job(small, detail)) + 15
    assert memory_mb(job(small, "histograms")) > memory_mb(job(small, "extremes"))


def test_threads_are_given_up_first_and_then_large_groups():
    graph = model(TEXT.format(n=10_000))  # 40 MB an activation
    given = job(graph, "histograms", threads=4)
    needs = [memory_mb(job(graph, "histograms", threads=threads)) for threads in (1, 2, 3, 4)]
    assert fitted(given, None) == given
    assert fitted(given, needs[3]) == given
    assert fitted(given, needs[3] - 1).threads == 3
    assert fitted(given, needs[0]).threads == 1
    assert fitted(given, needs[0]).output_bytes == given.output_bytes
    tight = fitted(given, needs[0] - 50)
    assert tight.threads == 1
    assert tight.output_bytes < given.output_bytes
    assert memory_mb(tight) <= needs[0] - 50


@pytest.mark.parametrize("detail", DETAILS)
def test_what_cannot_be_kept_is_refused_with_what_is_needed(detail):
    graph = model(TEXT.format(n=10_000))
    with pytest.raises(UsageError, match=r"needs about \d+ MB even with one thread.* 100 MB") as no:
        fitted(job(graph, detail, threads=2), 100)
    assert no.value.where == "--max-memory"
    assert ("minmax" in no.value.do) == (detail == "histograms")


def test_a_forecast_reads_as_a_sentence():
    assert str(Forecast(7, 12, 203.4, 0.2)) == "7 tensors, about 203 MB and 1 s"
    assert str(Forecast(7, 12, 203.4, 119)) == "7 tensors, about 203 MB and 119 s"
    assert str(Forecast(7, 12, 203.4, 600)) == "7 tensors, about 203 MB and 10 min"


def test_time_is_shared_by_what_runs_side_by_side():
    graph, _ = NETS["cnn"]
    assert with_time(job(graph, "extremes"), 100, 0.5, 200, 2).seconds == 25
    assert cores() >= 1
