"""A collection in pieces: the same bits, kept when broken off, and told before it begins."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate.archive import encode
from onnxq.calibrate.checkpoint import Checkpoint
from onnxq.calibrate.forecast import fitted, memory_mb
from onnxq.calibrate.gather import gather
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.resources import Resources
from onnxq.errors import DataError, UsageError
from onnxq.samples import Samples

from .collecting import DETAILS, NETS, collected, job, model, normal

OFTEN = Resources(checkpoint_seconds=1e-9)  # a piece for every run
GRAPH, INPUTS = NETS["cnn"]


def reader(inputs=INPUTS) -> SampleReader:
    return SampleReader(Samples("s", dict(inputs)))


class Fails(SampleReader):
    """As if the power went at run ``at``."""

    def __init__(self, at: int) -> None:
        super().__init__(Samples("s", INPUTS))
        self._at = at

    def run(self, index: int):
        if index == self._at:
            raise ConnectionAbortedError
        return super().run(index)


@pytest.mark.parametrize("detail", DETAILS)
@settings(max_examples=4, deadline=None)
@given(stops=st.lists(st.integers(1, 12), max_size=3))
def test_a_collection_that_is_broken_off_and_resumed_gives_the_same_bits(
    tmp_path_factory, detail, stops
):
    folder = tmp_path_factory.mktemp("resumed") / "out.partial"
    expected = encode(collected(job(GRAPH, detail), INPUTS))
    resumed = Resources(checkpoint_seconds=1e-9, resume=True)
    done = 0
    for stop in sorted(stops):
        checkpoint = Checkpoint(folder, "f")
        if stop > done:
            with pytest.raises(ConnectionAbortedError):
                gather(job(GRAPH, detail), Fails(stop), resumed, checkpoint)
            done = sum(b - a for a, b in checkpoint.begin(resume=True))
            assert 0 < done <= stop
    statistics = gather(job(GRAPH, detail), reader(), resumed, Checkpoint(folder, "f"))
    assert encode(statistics) == expected


def test_only_what_is_missing_is_run(tmp_path):
    checkpoint = Checkpoint(tmp_path / "p", "f")
    with pytest.raises(ConnectionAbortedError):
        gather(job(GRAPH, "extremes"), Fails(7), OFTEN, checkpoint)
    done = {n for a, b in checkpoint.begin(resume=True) for n in range(a, b)}
    seen: list[int] = []

    class Told(SampleReader):
        def run(self, index: int):
            seen.append(index)
            return super().run(index)

    runs = Told(Samples("s", INPUTS))
    gather(job(GRAPH, "extremes"), runs, Resources(resume=True), checkpoint)
    assert seen[0] == 0  # the trial, of which nothing is kept
    assert sorted(seen[1:]) == sorted(set(range(13)) - done)
    seen.clear()
    gather(job(GRAPH, "extremes"), runs, Resources(resume=True), checkpoint)
    assert seen == []


def test_progress_tells_the_forecast_and_every_run_once():
    told = []

    def progress(items: Iterable[int], what: str, total: int) -> Iterable[int]:
        numbers = list(items)
        told.append((what, total, numbers))
        return numbers

    gather(job(GRAPH, "histograms"), reader(), OFTEN, progress=progress)
    ((what, total, numbers),) = told
    assert what.startswith("calibrating 11 tensors, about ")
    assert total == 13
    assert numbers == list(range(13))


@pytest.mark.parametrize("detail", DETAILS)
def test_less_memory_changes_no_bit(detail):
    graph = model("g (float[N,256,256] x) => (float[N,256,256] y) { t = Relu(x)  y = Neg(t) }")
    inputs = {"x": normal(3, 256, 256)}
    least = job(graph, detail, output_bytes=1_000_000)
    allowed = memory_mb(least, begun=True) + 100  # the tests before may have left more to hold
    assert fitted(job(graph, detail, threads=1000), allowed, begun=True).threads < 1000
    assert encode(collected(job(graph, detail), inputs)) == encode(
        collected(job(graph, detail), inputs, resources=Resources(max_memory_mb=allowed))
    )


def test_too_little_memory_is_told_before_a_sample_is_read():
    with pytest.raises(UsageError, match="50 MB are allowed"):
        gather(job(GRAPH, "histograms"), Fails(0), Resources(max_memory_mb=50))


def test_an_error_keeps_the_pieces_before_it(tmp_path):
    checkpoint = Checkpoint(tmp_path / "p", "f")
    x = np.abs(normal(6, 3))
    x[5, 1] = -1
    graph = model("g (float[N,3] x) => (float[N,3] y) { [root] s = Sqrt(x)  y = Relu(s) }")
    with pytest.raises(DataError, match="sample 5"):
        gather(job(graph, "extremes"), reader({"x": x}), OFTEN, checkpoint)
    assert checkpoint.begin(resume=True)
