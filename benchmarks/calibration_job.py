"""One measurement of ``benchmarks.calibration``, in a process of its own; the figures go to a file.

    python -m benchmarks.calibration_job WHAT METHOD OPTIMIZATION MODEL.onnx SAMPLES.npz RESULT.json

Imports are done before the clock starts, and memory before the work is told apart from the peak.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.networks import INPUT, NETWORKS, write_samples

__all__ = ["JOBS", "Rows", "Task"]

Figures = dict[str, float]
TARGET = "ort-x86"
_SECONDS_OF_FORWARD = 1.0
_FEWEST_PASSES = 15
_LEVELS = {
    "full": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


@dataclass(frozen=True)
class Task:
    """What a job works on; ``optimization`` is that of the graph it runs: none or full."""

    method: str
    optimization: str
    model: Path
    samples: Path


class Rows:
    """The rows of an uncompressed ``.npz``, each read when it is asked for and then let go.

    A data reader for onnxruntime that costs next to nothing, so that its calibrators are measured
    and not the reading of a file.
    """

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as archive, archive.open(f"{INPUT}.npy") as member:
            np.lib.format.read_magic(member)
            self.shape, _, self.dtype = np.lib.format.read_array_header_1_0(member)
            in_member = member.tell()
            place = archive.getinfo(f"{INPUT}.npy").header_offset
        with path.open("rb") as file:  # a zip's local header: 30 bytes, a name and extra fields
            file.seek(place + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
        self._start = place + 30 + int(lengths.sum()) + in_member
        self._path = path
        self._given = iter(self)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        size = int(np.prod(self.shape[1:]))
        for number in range(self.shape[0]):
            offset = self._start + number * size * self.dtype.itemsize
            row = np.fromfile(self._path, self.dtype, size, offset=offset)
            yield {INPUT: row.reshape(1, *self.shape[1:])}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """As ``onnxruntime.quantization`` reads."""
        return next(self._given, None)


def peak_mb() -> float:
    """Most memory that was resident so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def calibrated(work: Callable[[], object]) -> Figures:
    """Seconds and memory of a calibration."""
    before, start = peak_mb(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_mb(), "grown_mb": peak_mb() - before}


def prepare(task: Task) -> Figures:
    """Write the model unless it is there, and the samples, whose number is in the file's name; the
    method is the network. Tells MB of activations that onnxruntime fetches of a sample.
    """
    network = NETWORKS[task.method]
    if not task.model.exists():
        network.write(task.model)
    write_samples(task.samples, network, int(task.samples.stem))
    outputs = fetching(task.model, every_tensor(task.model))(next(iter(Rows(task.samples))))
    sizes = [value.nbytes for value in outputs]
    return {"fetched_mb": sum(sizes) / 1e6, "largest_mb": max(sizes) / 1e6}


def every_tensor(model: Path) -> list[str]:
    """What onnxruntime's calibrators ask for: all float tensors."""
    graph = onnx.load(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    computed = [name for node in graph.node for name in node.output]
    return [name for name in computed if kinds.get(name, 1) == onnx.TensorProto.FLOAT]


def observed(model: Path) -> list[str]:
    """What onnxq looks at: the tensors that will carry Q/DQ, each once; but for the input."""
    from onnxq.placement import observed_tensors
    from onnxq.target import load_target

    graph = ir.from_proto(onnx.load(model)).graph
    return [name for name in observed_tensors(graph, (load_target(TARGET),), {}) if name != INPUT]


def fetching(
    model: Path, tensors: list[str]
) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    """A pass that returns ``tensors``, at optimization "none"."""
    proto = onnx.load(model)
    kept = {value.name: value for value in (*proto.graph.value_info, *proto.graph.output)}
    del proto.graph.output[:]
    proto.graph.output.extend(kept[name] for name in tensors)
    session = session_of(proto.SerializeToString(), "none")
    return lambda row: session.run(None, row)


def session_of(model: bytes | str, optimization: str) -> ort.InferenceSession:
    """With ONNX Runtime's own number of threads."""
    options = ort.SessionOptions()
    options.graph_optimization_level = _LEVELS[optimization]
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def forward(task: Task) -> Figures:
    """Median milliseconds of a pass of one sample; the method ``fetch`` also takes out what onnxq
    looks at.
    """
    if task.method == "fetch":
        run = fetching(task.model, observed(task.model))
    else:
        session = session_of(str(task.model), task.optimization)
        run = lambda row: session.run(None, row)  # noqa: E731 - beside the other way to make one
    rows = list(islice(Rows(task.samples), 8))
    for row in rows:
        run(row)
    passes: list[float] = []
    while len(passes) < _FEWEST_PASSES or sum(passes) < _SECONDS_OF_FORWARD:
        row = rows[len(passes) % len(rows)]
        start = time.perf_counter()
        run(row)
        passes.append(time.perf_counter() - start)
    return {"pass_ms": statistics.median(passes) * 1e3, "peak_mb": peak_mb()}


def by_onnxruntime(task: Task) -> Figures:
    """``create_calibrator`` as its documentation calls it."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                task.model,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod[task.method],
            )
            calibrator.collect_data(Rows(task.samples))
            calibrator.compute_data()

    return calibrated(work)


def by_onnxq(task: Task) -> Figures:
    """The whole calibrate stage: reading, hashing and checking samples included."""
    from onnxq.calibrate.stage import Subject, calibrate
    from onnxq.graph import load_model, values_of
    from onnxq.recipe import CalibrateSection
    from onnxq.sources import open_source
    from onnxq.target import load_target

    def work() -> None:
        subject = Subject(task.model, *values_of(load_model(task.model)), load_target(TARGET))
        opened = open_source(str(task.samples), {}, (INPUT,))
        section = CalibrateSection.model_validate(
            {"method": task.method, "optimization": task.optimization, "samples": len(opened)}
        )
        with tempfile.TemporaryDirectory() as folder:
            calibrate(subject, opened, section, Path(folder))

    return calibrated(work)


def counting(task: Task) -> Figures:
    """Nanoseconds a value, on one core: medians over the activations of a sample, each counted as
    often as makes 50 million values.
    """
    from onnxq.calibrate.counting import Accumulator

    arrays = fetching(task.model, observed(task.model))(next(iter(Rows(task.samples))))
    accumulators = [Accumulator() for _ in arrays]

    def onnxq() -> None:
        for accumulator, array in zip(accumulators, arrays, strict=True):
            accumulator.add(array)

    ways: dict[str, Callable[[], object]] = {
        "numpy.histogram, 128 bins (onnxruntime)": lambda: [
            np.histogram(array, 128) for array in arrays
        ],
        "numpy.bincount of the leading 16 bits": lambda: [
            np.bincount(array.reshape(-1).view(np.uint16)[1::2], minlength=1 << 16)
            for array in arrays
        ],
        "onnxq, with sums, extremes and zeros": onnxq,
    }
    values = sum(array.size for array in arrays)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(-(-50_000_000 // values)):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(some) / values * 1e9 for name, some in times.items()}


def parts(task: Task) -> Figures:
    """Processor milliseconds a sample of the parts of onnxq's calibration, on one thread: the least
    of several rounds. What is done once, or once a piece, is told in full.
    """
    from onnxq.calibrate.collect import Collector, Job
    from onnxq.calibrate.readers import SampleReader
    from onnxq.graph import load_model, values_of
    from onnxq.runtime import Session
    from onnxq.sample_checks import check_samples
    from onnxq.sources import open_source

    model = load_model(task.model)
    opened = open_source(str(task.samples), {}, (INPUT,))
    reader, rows = SampleReader(opened), list(Rows(task.samples))
    count, data = len(rows), model.SerializeToString()
    tensors = (INPUT, *observed(task.model))
    figures: Figures = {}
    for level in _LEVELS:
        session = Session(data, optimization=level)
        seconds = _least(lambda session=session: [session.run(row) for row in rows])
        figures[f"forward pass, optimization {level}"] = seconds / count
    for detail, level in product(("extremes", "histograms"), _LEVELS):
        collector = Collector(Job(data, tensors, detail, level))
        some, one = (
            _least(lambda stop=stop, made=collector: list(made.collect(reader, 0, stop)))
            for stop in (count, 1)
        )
        a_sample = (some - one) / (count - 1)
        figures[f"forward pass and collecting {detail}, optimization {level}"] = a_sample
        figures[f"finishing a piece of {detail}, optimization {level}"] = one - a_sample
    checks = _least(lambda: check_samples(opened, values_of(model)[0]))
    hashes = _least(lambda: replace(opened).row_digests)
    figures |= {"checking a sample": checks / count, "hashing a sample": hashes / count}
    whole = _least(lambda: by_onnxq(task), rounds=2)
    often = figures[f"forward pass and collecting histograms, optimization {task.optimization}"]
    once = whole - checks - hashes - count * often
    figures[f"once: loading, sessions, pieces, ranges by {task.method}"] = once
    return {name: seconds * 1e3 for name, seconds in figures.items()}


def _least(work: Callable[[], object], rounds: int = 5) -> float:
    """Processor seconds of the quickest round, after one that warms up."""
    times = []
    for _ in range(rounds + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times[1:])


JOBS: dict[str, Callable[[Task], Figures]] = {
    "prepare": prepare,
    "forward": forward,
    "onnxruntime": by_onnxruntime,
    "onnxq": by_onnxq,
    "counting": counting,
    "parts": parts,
}


def main() -> None:
    """Do one job and write its figures."""
    what, method, optimization, model, samples, result = sys.argv[1:]
    figures = JOBS[what](Task(method, optimization, Path(model), Path(samples)))
    Path(result).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
