"""Small models on disk, quantized for ort-x86."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from onnxq.artifacts import QuantizedModel
from onnxq.calibrate.stage import Subject, calibrate
from onnxq.graph import load_model, values_of
from onnxq.quantize.stage import quantize
from onnxq.recipe import CalibrateSection, QuantizeSection
from onnxq.samples import Samples
from onnxq.target import load_target

X86 = load_target("ort-x86")
HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def float_model(text: str, shapes: dict[str, tuple[int, ...]]) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in shapes.items():
        array = (0.3 * random.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def quantized(folder: Path, model: onnx.ModelProto) -> tuple[Path, Path, QuantizedModel]:
    """FP32 file, INT8 file for ort-x86, and its record."""
    fp32, int8 = saved(model, folder / "fp32.onnx"), folder / "int8.onnx"
    values = values_of(load_model(fp32))
    random = np.random.default_rng(7)
    columns = {v.name: random.standard_normal((16, *v.shape[1:])).astype("f") for v in values[0]}
    samples = Samples("s", columns)
    subject = Subject(fp32, *values, X86)
    ranges = calibrate(subject, samples, CalibrateSection(samples=16), folder / "ranges")
    return fp32, int8, quantize(fp32, ranges, X86, QuantizeSection(), int8)


def graph(path: Path) -> ir.Model:
    return ir.from_proto(load_model(path))
