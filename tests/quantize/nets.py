"""Small float networks as ONNX text, calibrated and quantized in a temporary folder."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser

from onnxq.artifacts import CalibrationResult, QuantizedModel
from onnxq.calibrate.stage import Subject, calibrate
from onnxq.graph import load_model, values_of
from onnxq.quantize.stage import quantize
from onnxq.recipe import CalibrateSection, QuantizeSection, Waiver
from onnxq.runtime import Session
from onnxq.samples import Samples
from onnxq.target import load_target
from tests.onnx_text import model_of

TARGETS = ("ort-x86", "ort-arm64", "stm32n6")
HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'


def weights(*shape: int, seed: int = 0, size: float = 0.3) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def save(path: Path, text: str, **constants: np.ndarray) -> Path:
    """Write a graph given as ONNX text, with its constants."""
    model = model_of(text, **constants)
    onnx.save(model, path)
    return path


@dataclass(frozen=True)
class Net:
    """A float model on disk with the ranges of its tensors."""

    path: Path
    samples: Samples
    ranges: CalibrationResult

    def quantize(self, target: str, *exclude: str) -> "Int8":
        """The INT8 file for ``target``."""
        output = self.path.with_name(f"{target}.onnx")
        section = QuantizeSection(
            exclude=tuple(Waiver(name=name, reason="by test") for name in exclude)
        )
        record = quantize(self.path, self.ranges, load_target(target), section, output)
        return Int8(self, output, record, onnx.load(output))


@dataclass(frozen=True)
class Int8:
    """A Q/DQ file, its record and the float model it was made from."""

    net: Net
    path: Path
    record: QuantizedModel
    model: onnx.ModelProto

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its constants."""
        return {t.name: onnx.numpy_helper.to_array(t) for t in self.model.graph.initializer}

    @property
    def float_nodes(self) -> dict[str, str]:
        """Nodes that stayed float, with the reason."""
        return {node.node: node.reason for node in self.record.float_nodes}

    def around(self, name: str) -> tuple[bool, bool]:
        """Whether the data inputs of a node come from DQ, and whether its outputs go to Q."""
        graph = self.model.graph
        makers = {output: node.op_type for node in graph.node for output in node.output}
        (node,) = (node for node in graph.node if node.name == name)
        users = [n.op_type for n in graph.node if set(n.input) & set(node.output)]
        return makers.get(node.input[0]) == "DequantizeLinear", set(users) == {"QuantizeLinear"}

    def outputs(self, optimization: str = "none") -> dict[str, np.ndarray]:
        """All outputs for all samples."""
        return outputs(self.path, self.net.samples, optimization)

    def error(self, optimization: str = "none") -> float:
        """Largest difference to FP32 in steps of each output (255ths of its range)."""
        return max(
            float(np.abs(self.outputs(optimization)[name] - exact).max() / (np.ptp(exact) / 255))
            for name, exact in outputs(self.net.path, self.net.samples).items()
        )


def outputs(path: Path, samples: Samples, optimization: str = "none") -> dict[str, np.ndarray]:
    session = Session(path, optimization=optimization)  # type: ignore[arg-type]
    rows = [session.run(row) for row in samples.rows()]
    return {name: np.concatenate([row[name] for row in rows]) for name in session.output_names}


def calibrated(
    folder: Path,
    text: str,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    domains: Mapping[str, tuple[float, float]] | None = None,
    **constants: np.ndarray,
) -> Net:
    """A network with its ranges on 16 normal samples, or on ``inputs``."""
    path = save(folder / "fp32.onnx", text, **constants)
    return calibrated_file(path, inputs=inputs, domains=domains)


def calibrated_file(
    path: Path,
    *,
    inputs: Mapping[str, np.ndarray] | None = None,
    domains: Mapping[str, tuple[float, float]] | None = None,
) -> Net:
    """The network of a file, as ``calibrated``; the ranges lie beside it."""
    values = values_of(load_model(path), domains)
    random = np.random.default_rng(7)
    columns = inputs or {
        v.name: random.standard_normal((16, *v.shape[1:])).astype(v.dtype) for v in values[0]
    }
    samples = Samples("s", columns)
    section = CalibrateSection(samples=len(samples))
    targets = tuple(load_target(name) for name in TARGETS)
    subject = Subject(path, *values, targets[0], also_for=targets)
    return Net(path, samples, calibrate(subject, samples, section, path.with_name("ranges")))


RESIDUAL = (
    HEAD
    + """g (float[1,3,8,8] x) => (float[1,10] y) {
    [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [relu_1] b = Relu(a)
    [conv_2] c = Conv<pads=[1,1,1,1], group=8>(b, w2, b2)
    [clip_1] d = Clip(c, zero, six)
    [add_1] e = Add(d, b)
    [pool_1] f = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e)
    [gap_1] g1 = GlobalAveragePool(f)
    [flat_1] h = Flatten(g1)
    [gemm_1] y = Gemm<transB=1>(h, w3, b3)
}"""
)


def residual(folder: Path, **options: object) -> Net:
    """A small network of the usual kind: convolutions, a branch, pools, a classifier."""
    return calibrated(
        folder,
        RESIDUAL,
        w1=weights(8, 3, 3, 3, seed=1),
        b1=weights(8, seed=2),
        w2=weights(8, 1, 3, 3, seed=3),
        b2=weights(8, seed=4),
        w3=weights(10, 8, seed=5),
        b3=weights(10, seed=6),
        zero=np.float32(0),
        six=np.float32(6),
        **options,  # type: ignore[arg-type]
    )


CONV = """[conv_1] c = Conv<kernel_shape=[1,1]>(x, w, b)"""


def conv_then(folder: Path, rest: str, opset: int = 17, **more: object) -> Net:
    """A 1×1 convolution ``c`` of ``x`` and what follows it, up to ``y``."""
    return calibrated(
        folder,
        HEAD.replace("17", str(opset))
        + f"g (float[1,3,4,4] x) => (float[1,4,4,4] y) {{ {CONV} {rest} }}",
        w=weights(4, 3, 1, 1),
        b=weights(4, seed=1),
        **more,  # type: ignore[arg-type]
    )
