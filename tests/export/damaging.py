"""Damage to ``.onnx`` files, and how onnxq takes it: in a process that may die or hang."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx

HUGE = (2**31, 2**62, 2**16 + 1, -5, 0)
SECONDS = 30
_EXPORT = """
from pathlib import Path
import tempfile
from onnxq.errors import OnnxqError
from onnxq.graph import load_model
from onnxq.plain.export import export_file
from onnxq.target import load_target

def judge(path):
    target = load_target("stm32n6" if int(Path(path).stem) % 2 else "ort-x86")
    try:
        with tempfile.TemporaryDirectory() as folder:
            export_file(Path(path), target, {}, Path(folder))
    except OnnxqError as fault:
        str(fault)
        return "refused"
    return "taken"
"""
_LOOP = """
import faulthandler, sys, traceback, warnings
seconds = float(sys.argv[1])
warnings.simplefilter("error")
for path in sys.argv[2:]:
    print(path, "begun", sep="\\t", flush=True)
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        verdict = judge(path)
    except BaseException as fault:
        place = traceback.extract_tb(fault.__traceback__)[-1]
        words = " ".join(str(fault).split())[:200]
        verdict = f"{type(fault).__name__} in {place.name}: {words}"
    faulthandler.cancel_dump_traceback_later()
    print(path, verdict, sep="\\t", flush=True)
"""


def judged(
    files: Sequence[Path], prelude: str = _EXPORT, seconds: float = SECONDS
) -> dict[str, str]:
    """What became of each file: ``taken``, ``refused``, ``hung``, ``died of signal n``, or the
    error that nobody caught. After a death another process goes on with the next file."""
    verdicts: dict[str, str] = {}
    waiting = list(files)
    while waiting:
        ended = subprocess.run(
            [sys.executable, "-c", prelude + _LOOP, str(seconds), *map(str, waiting)],
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split("\t") for line in ended.stdout.splitlines() if "\t" in line]
        said = {path: word for path, word in lines if word != "begun"}
        begun = [path for path, word in lines if word == "begun" and path not in said]
        assert lines, ended.stderr
        for path in begun:
            if ended.returncode < 0:
                said[path] = f"died of signal {-ended.returncode}"
            else:
                said[path] = "hung" if "Timeout" in ended.stderr else "ended"
        verdicts |= {Path(path).name: word for path, word in said.items()}
        waiting = [path for path in waiting if str(path) not in said]
    return verdicts


def damage(model: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    """The file of ``model`` with one to three faults in it; now and then cut off or with bits
    flipped."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for _ in range(int(_pick((1, 1, 1, 2, 3), rng))):
        _pick(DAMAGES, rng)(copy, rng)
    data = bytearray(copy.SerializeToString())
    kind = int(rng.integers(6))
    if kind == 0:
        data = data[: int(rng.integers(len(data)))]
    elif kind == 1:
        for _ in range(int(rng.integers(1, 20))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def _pick(items, rng: np.random.Generator):
    return items[int(rng.integers(len(items)))]


def huge_dimension(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    values = [*model.graph.input, *model.graph.output]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    if dims:
        _pick(dims, rng).dim_value = _pick(HUGE, rng)


def huge_constant_shape(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    tensors = [tensor for tensor in model.graph.initializer if tensor.dims]
    if tensors:
        tensor = _pick(tensors, rng)
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(HUGE, rng)


def huge_numbers(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    """In a shape, an axis, a bound, or whatever else is a constant of integers."""
    tensors = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64]
    if tensors:
        tensor = _pick(tensors, rng)
        array = onnx.numpy_helper.to_array(tensor).copy()
        if array.size:
            array.reshape(-1)[int(rng.integers(array.size))] = _pick(HUGE, rng)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def wrong_type(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    kinds = [kind for kind in onnx.TensorProto.DataType.values() if kind]
    if model.graph.initializer and rng.random() < 0.5:
        _pick(model.graph.initializer, rng).data_type = _pick(kinds, rng)
    else:
        value = _pick([*model.graph.input, *model.graph.output], rng)
        value.type.tensor_type.elem_type = _pick(kinds, rng)


def missing_initializer(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if model.graph.initializer:
        del model.graph.initializer[int(rng.integers(len(model.graph.initializer)))]


def cycle(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = model.graph.node
    if nodes:
        node, other = _pick(nodes, rng), _pick(nodes, rng)
        if node.input:
            node.input[int(rng.integers(len(node.input)))] = other.output[0]


def other_operator(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    if model.graph.node:
        words = [
            "Loop",
            "Tile",
            "Resize",
            "NoSuchThing",
            "ConstantOfShape",
            "Range",
            "LSTM",
            "Conv",
        ]
        words += ["Einsum", "Pad", "MaxPool", "Gather", "Transpose", "Reshape", "QuantizeLinear"]
        _pick(model.graph.node, rng).op_type = _pick(words, rng)


def huge_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    if attributes:
        attribute = _pick(attributes, rng)
        if attribute.ints:
            attribute.ints[int(rng.integers(len(attribute.ints)))] = _pick(HUGE, rng)
        else:
            attribute.i = _pick(HUGE, rng)


def lost_attribute(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    nodes = [node for node in model.graph.node if node.attribute]
    if nodes:
        node = _pick(nodes, rng)
        del node.attribute[int(rng.integers(len(node.attribute)))]


def lost_input(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    node = _pick(model.graph.node, rng)
    if node.input:
        del node.input[int(rng.integers(len(node.input)))]


def other_opset(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    model.opset_import[0].version = _pick((-1, 0, 1, 6, 9, 12, 25, 99, 2**40), rng)


def lost_rank(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    value = _pick([*model.graph.input, *model.graph.output], rng)
    value.type.tensor_type.ClearField("shape")


def twin_names(model: onnx.ModelProto, rng: np.random.Generator) -> None:
    _pick(model.graph.node, rng).output[0] = _pick(model.graph.node, rng).output[0]


DAMAGES: list[Callable[[onnx.ModelProto, np.random.Generator], None]] = [
    huge_dimension, huge_constant_shape, huge_numbers, wrong_type, missing_initializer, cycle,
    other_operator, huge_attribute, lost_attribute, lost_input, other_opset, lost_rank, twin_names,
]  # fmt: skip
