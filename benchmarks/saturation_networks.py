"""Networks for the saturation benchmark: worst cases of single operators, and whole networks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

from benchmarks import rppg
from benchmarks.networks import INPUT, NETWORKS, Network, TransformerSizes, transformer
from benchmarks.networks import write_samples as write_correlated
from onnxq.samples import Samples

__all__ = ["Case", "cases", "made_up"]

_CALIBRATED, _WINDOWS = 32, 200  # samples; windows of rPPG, as its recipe takes
_JUDGED = 48  # samples, other than those
_HEAD = '<ir_version: 8, opset_import: ["": 17]>\n'
_RPPG = Path("build/rppg/export/fp32.onnx")


@dataclass(frozen=True)
class Case:
    """An FP32 model, samples to calibrate on, and ``judged`` others to judge what narrowing costs;
    the first few of them are emulated."""

    name: str
    model: Path
    calibration: Path
    evaluation: Path
    target: str = "ort-x86"
    judged: int = _JUDGED

    def samples(self, count: int) -> Samples:
        """The first ``count`` samples of those to judge on, or all there are."""
        known = {value.name for value in onnx.load(self.model).graph.input}
        with np.load(self.evaluation) as archive:
            columns = {name: archive[name][:count] for name in archive.files if name in known}
        return Samples(self.name, columns)


@dataclass(frozen=True)
class _Small:
    """A graph as ONNX text, the shapes of its weights, and of a sample. Weights are spread evenly,
    the worst case: neighbours are large together more often than in a trained network; or they are
    ``normal``."""

    text: str
    weights: Mapping[str, tuple[int, ...]]
    shape: tuple[int, ...]
    target: str = "ort-x86"
    normal: bool = False


_CNN = """g (float[1,3,24,24] input) => (float[1,10] output) {
  [stem] a = Conv<pads=[1,1,1,1], strides=[2,2]>(input, w1, b1)  [relu_1] b = Relu(a)
  [depthwise] c = Conv<pads=[1,1,1,1], group=24>(b, w2)  [relu_2] d = Relu(c)
  [pointwise] e = Conv(d, w3)  [sum] f = Add(b, e)
  [grouped] g1 = Conv<group=2, pads=[1,1,1,1]>(f, w4)  [relu_3] h = Relu(g1)
  [pool] i = GlobalAveragePool(h)  [flat] j = Flatten(i)  [head] output = Gemm<transB=1>(j, w5, b5)
}"""
_CNN_WEIGHTS = {
    "w1": (24, 3, 3, 3), "b1": (24,), "w2": (24, 1, 3, 3), "w3": (24, 24, 1, 1),
    "w4": (32, 12, 3, 3), "w5": (10, 32), "b5": (10,),
}  # fmt: skip
_SMALL = {
    "conv": _Small(
        "g (float[1,64,12,12] input) => (float[1,64,12,12] output) "
        "{ [conv] output = Conv<pads=[1,1,1,1]>(input, w) }",
        {"w": (64, 64, 3, 3)}, (64, 12, 12),
    ),
    "gemm": _Small(
        "g (float[1,256] input) => (float[1,64] output) "
        "{ [gemm] output = Gemm<transB=1>(input, w, b) }",
        {"w": (64, 256), "b": (64,)}, (256,),
    ),
    "matmul": _Small(
        "g (float[1,32,128] input) => (float[1,32,64] output) "
        "{ [matmul] output = MatMul(input, w) }",
        {"w": (128, 64)}, (32, 128),
    ),
    "short": _Small(
        "g (float[1,4,12,12] input) => (float[1,32,12,12] output) "
        "{ [conv] output = Conv(input, w) }",
        {"w": (32, 4, 1, 1)}, (4, 12, 12),
    ),
    "depthwise": _Small(
        "g (float[1,32,12,12] input) => (float[1,32,12,12] output) "
        "{ [conv] output = Conv<pads=[1,1,1,1], group=32>(input, w) }",
        {"w": (32, 1, 3, 3)}, (32, 12, 12),
    ),
    "cnn": _Small(_CNN, _CNN_WEIGHTS, (3, 24, 24), normal=True),
    "cnn-s8": _Small(_CNN, _CNN_WEIGHTS, (3, 24, 24), "stm32n6", normal=True),
}  # fmt: skip
_BLOCK = TransformerSizes(blocks=1, positions=32, width=64, heads=2)


def made_up(name: str, work: Path) -> Case:
    """One of the small networks, with normal numbers as samples."""
    small = _SMALL[name]
    random = np.random.default_rng(3)
    model = onnx.parser.parse_model(_HEAD + small.text)
    for tensor, shape in small.weights.items():
        drawn = random.standard_normal(shape) if small.normal else random.uniform(-1, 1, shape)
        array = drawn * np.sqrt(2 / max(int(np.prod(shape[1:])), 1))
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), tensor))
    onnx.save(onnx.shape_inference.infer_shapes(model), work / f"{name}.onnx")
    counts = (_CALIBRATED, _JUDGED)
    drawn = [random.standard_normal((count, *small.shape), np.float32) for count in counts]
    return Case(name, work / f"{name}.onnx", *_written(work, name, drawn), small.target)


def _written(work: Path, name: str, parts: Sequence[np.ndarray]) -> tuple[Path, Path]:
    """Files of the samples to calibrate on and of those to judge on, ``parts``."""
    calibration, evaluation = (work / f"{name}-{part}.npz" for part in ("calibrate", "judge"))
    for file, samples in zip((calibration, evaluation), parts, strict=True):
        np.savez(file, **{INPUT: samples})
    return calibration, evaluation


def _of_rppg(work: Path) -> Case:
    """Judged on every window of the subjects that it is not calibrated on: its only output is one
    number, which few windows say little of."""
    windows = (rppg.samples_of("calibration").thinned(_WINDOWS), rppg.samples_of("evaluation"))
    parts = [found.batch(0, len(found))[INPUT] for found in windows]
    return Case("rppg", _RPPG, *_written(work, "rppg", parts), judged=len(windows[1]))


def cases(work: Path, given: Path | None, only: Sequence[str]) -> Iterator[Case]:
    """Every network that is there, or those named in ``only``; files are written into ``work``."""

    def wanted(name: str) -> bool:
        return not only or name in only

    for name in filter(wanted, _SMALL):
        yield made_up(name, work)
    large = {
        "transformer": Network(lambda path: transformer(path, 0, _BLOCK), (32, 64), ()),
        "mobilenet": NETWORKS["mobilenet"],
    }
    for name, network in large.items():
        if wanted(name):
            network.write(work / f"{name}.onnx")
            write_correlated(work / f"{name}.npz", network, _CALIBRATED + _JUDGED)
            with np.load(work / f"{name}.npz") as archive:
                columns = archive[INPUT]
            parts = (columns[:_CALIBRATED], columns[_CALIBRATED:])
            yield Case(name, work / f"{name}.onnx", *_written(work, name, parts))
    if wanted("rppg") and _RPPG.is_file():
        yield _of_rppg(work)
    if wanted("efficientnet") and given is not None:
        model = given / "efficientnet_lite0.onnx"
        yield Case("efficientnet", model, given / "calib.npz", given / "eval.npz")
