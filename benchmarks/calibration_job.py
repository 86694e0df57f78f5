"""One measurement of ``benchmarks.calibration``, in a process of its own; the figures go to a file.

    python -m benchmarks.calibration_job WHAT HOW MODEL.onnx SAMPLES.npz RESULT.json

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
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.networks import INPUT, NETWORKS, write_samples

__all__ = ["JOBS", "Rows"]

Figures = dict[str, float]
Work = Callable[[], object]
_SECONDS_OF_FORWARD = 1.0
_FEWEST_PASSES = 15
_LEVELS = {
    "full": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


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


def calibrated(work: Work) -> Figures:
    """Seconds and memory of a calibration."""
    before, start = peak_mb(), time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_mb": peak_mb(), "grown_mb": peak_mb() - before}


def prepare(network: str, model: Path, samples: Path) -> Figures:
    """Write the model unless it is there, and the samples, whose number is in the file's name."""
    if not model.exists():
        NETWORKS[network].write(model)
    write_samples(samples, NETWORKS[network], int(samples.stem))
    sizes = [
        value.nbytes for value in fetching(model, every_tensor(model))(next(iter(Rows(samples))))
    ]
    return {"fetched_mb": sum(sizes) / 1e6, "largest_mb": max(sizes) / 1e6}


def every_tensor(model: Path) -> list[str]:
    """What onnxruntime's calibrators ask for: all float tensors."""
    graph = onnx.load(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    computed = [name for node in graph.node for name in node.output]
    return [name for name in computed if kinds.get(name, 1) == onnx.TensorProto.FLOAT]


def wanted_tensors(model: Path) -> list[str]:
    """What will carry Q/DQ: all float tensors but those that only a Clip reads."""
    readers: dict[str, set[str]] = {}
    for node in onnx.load(model).graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    return [name for name in every_tensor(model) if readers.get(name) != {"Clip"}]


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


def forward(how: str, model: Path, samples: Path) -> Figures:
    """Median milliseconds of a pass of one sample: ``full``, ``none``, or ``fetch`` at none."""
    if how == "fetch":
        run = fetching(model, wanted_tensors(model))
    else:
        session = session_of(str(model), how)
        run = lambda row: session.run(None, row)  # noqa: E731 - beside the other way to make one
    rows = list(Rows(samples))[:8]
    for row in rows:
        run(row)
    passes: list[float] = []
    while len(passes) < _FEWEST_PASSES or sum(passes) < _SECONDS_OF_FORWARD:
        row = rows[len(passes) % len(rows)]
        start = time.perf_counter()
        run(row)
        passes.append(time.perf_counter() - start)
    return {"pass_ms": statistics.median(passes) * 1e3, "peak_mb": peak_mb()}


def by_onnxruntime(how: str, model: Path, samples: Path) -> Figures:
    """``create_calibrator`` as its documentation calls it; ``how`` is its method."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    def work() -> None:
        with tempfile.TemporaryDirectory() as folder:
            calibrator = create_calibrator(
                model,
                augmented_model_path=str(Path(folder) / "augmented.onnx"),
                calibrate_method=CalibrationMethod[how],
            )
            calibrator.collect_data(Rows(samples))
            calibrator.compute_data()

    return calibrated(work)


def by_onnxq(how: str, model: Path, samples: Path) -> Figures:
    """The whole calibrate stage: reading, hashing and checking samples included."""
    from onnxq.calibrate.stage import calibrate
    from onnxq.graph import load_model, values_of
    from onnxq.recipe import CalibrateSection
    from onnxq.sources import open_source

    def work() -> None:
        section = CalibrateSection.model_validate({"method": how, "samples": int(samples.stem)})
        opened = open_source(str(samples), {}, (INPUT,))
        with tempfile.TemporaryDirectory() as folder:
            calibrate(model, values_of(load_model(model)), opened, section, Path(folder))

    return calibrated(work)


JOBS: dict[str, Callable[[str, Path, Path], Figures]] = {
    "prepare": prepare,
    "forward": forward,
    "onnxruntime": by_onnxruntime,
    "onnxq": by_onnxq,
}


def main() -> None:
    """Do one job and write its figures."""
    what, how, model, samples, result = sys.argv[1:]
    figures = JOBS[what](how, Path(model), Path(samples))
    Path(result).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
