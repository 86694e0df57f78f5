"""A job whose runs take long enough to be killed in the middle of one, and samples for it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser

from onnxq.calibrate.archive import encode
from onnxq.calibrate.checkpoint import blocks_of, pieces
from onnxq.calibrate.collect import Detail, Job
from onnxq.calibrate.gather import Executor, Piece
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.statistics import Builder
from onnxq.samples import Samples

RUNS = 16
RANDOM = np.random.default_rng(5)
X = RANDOM.uniform(0, 1, (RUNS, 64, 96)).astype(np.float32)
UNITARY = np.linalg.qr(RANDOM.standard_normal((96, 96)))[0].astype(np.float32)


def job(detail: Detail = "histograms", threads: int = 1) -> Job:
    chain = "\n".join(f"[n{n}] t{n + 1} = MatMul(t{n}, w)" for n in range(200))
    text = f"""<ir_version: 9, opset_import: ["": 17]>
    g (float[1,64,96] x) => (float[1,384,96] t200) {{
        [root] r = Sqrt(x)
        [six] t0 = Concat<axis=1>(r, x, r, x, x, x)
        {chain}
    }}"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(UNITARY, "w"))
    whole = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return Job(whole, ("x", "t3", "t200"), detail, threads=threads)


class Reader(SampleReader):
    """All runs; where it is said, something happens once, when a given one is read."""

    def __init__(self, at: int = 0, what: Callable[[], Any] = os.getpid) -> None:
        super().__init__(Samples("these.npz", {"x": X}))
        self._at, self._what = at, what
        self.seen: list[Any] = []

    def run(self, index: int) -> dict[str, np.ndarray]:
        if index == self._at and not self.seen:
            self.seen.append(self._what())
        return super().run(index)


def spoilt() -> SampleReader:
    """Four samples; the third is number 11 of its source, and holds a value that has no root."""
    x = X.copy()
    x[11, 5, 5] = -1
    return SampleReader(Samples("these.npz", {"x": x}).take(np.array([3, 15, 11, 1])))


def collected(executor: Executor, runs: SampleReader, given: Job) -> bytes:
    """All statistics by way of ``executor``; progress must be told for every run."""
    blocks = blocks_of(len(runs))
    builder, told = Builder(given.tensors, blocks), 0
    for event in executor.finish(runs, pieces(blocks, [], len(runs))):
        if isinstance(event, Piece):
            builder.add(event.interval[0], event.statistics)
        else:
            told += event
    assert told == len(runs)
    return encode(builder.build())


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
