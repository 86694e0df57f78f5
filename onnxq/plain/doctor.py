"""Whether this installation can do its work: a fault of the tools told apart from one of a model.

Nothing here needs a model or data. What is said of ONNX Runtime is measured on graphs of one
operator, for it takes misspelt options without a word and changes its arguments between versions.
"""

import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

from onnxq.errors import OnnxqError, RuntimeFailureError
from onnxq.provenance import cpu_flags

__all__ = ["KNOWN_TO_WORK", "Check", "examine", "version_check"]

State = Literal["works", "note", "fails"]
KNOWN_TO_WORK: Mapping[str, tuple[str, str]] = {  # package → oldest and newest that were tested
    "numpy": ("2.1", "2.4"),
    "onnx": ("1.23", "1.23"),
    "onnx-ir": ("1.1", "1.1"),
    "onnxruntime": ("1.31", "1.31"),
    "onnxsim": ("0.8", "0.8"),
    "torch": ("2.13", "2.13"),
    "onnxscript": ("0.7", "0.7"),
}
_FOR_NETWORKS = frozenset({"torch", "onnxscript"})
_FEWEST_DB = 20.0  # SQNR of one 8-bit operator on numbers from 0 to 1; 30 and more are usual
_INSTALL = "pip install --force-reinstall 'onnxruntime>=1.31,<1.32' (constraints.txt has them all)"
_MODELS: Mapping[str, tuple[str, Mapping[str, tuple[int, ...]]]] = {
    "Conv": ("float[1,4,6,6] x) => (float[1,4,4,4] y) { y = Conv(x, w) }", {"w": (4, 4, 3, 3)}),
    "Gemm": ("float[1,8] x) => (float[1,4] y) { y = Gemm<transB=1>(x, w) }", {"w": (4, 8)}),
    "MatMul": ("float[1,3,8] x) => (float[1,3,4] y) { y = MatMul(x, w) }", {"w": (8, 4)}),
    "Add": ("float[1,8] x, float[1,8] z) => (float[1,8] y) { y = Add(x, z) }", {}),
    "Mul": ("float[1,8] x, float[1,8] z) => (float[1,8] y) { y = Mul(x, z) }", {}),
    "Concat": ("float[1,8] x, float[1,8] z) => (float[1,16] y) { y = Concat<axis=1>(x, z) }", {}),
    "GlobalAveragePool": (
        "float[1,4,6,6] x) => (float[1,4,1,1] y) { y = GlobalAveragePool(x) }",
        {},
    ),
    "Sigmoid": ("float[1,8] x) => (float[1,8] y) { y = Sigmoid(x) }", {}),
}
_CONV_BETWEEN_QDQ = """<ir_version: 10, opset_import: ["": 21]>
g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
    xq = QuantizeLinear(x, s, z)
    xf = DequantizeLinear(xq, s, z)
    %s
    a = Conv(xf, wf)
    aq = QuantizeLinear(a, s, z)
    af = DequantizeLinear(aq, s, z)
    %s
    yq = QuantizeLinear(b, s, z)
    y = DequantizeLinear(yq, s, z)
}"""
_INT8 = "wf = DequantizeLinear<axis=0>(w, t, u)"
_INT4 = "w8 = Cast<to=3>(w)\n    wf = DequantizeLinear<axis=0>(w8, t, u)"
_CHAIN, _BRANCH = "b = Conv(af, wf)", "c = Conv(af, wf)\n    b = Add(c, af)"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what, how it stands, what was found, what to do about it."""

    what: str
    state: State
    found: str
    do: str = ""


def examine() -> Iterator[Check]:
    """Every check, one after the other. Raises nothing: what breaks is a check that fails."""
    for package in KNOWN_TO_WORK:
        yield version_check(package)
    yield _processor()
    for what, probe in (
        ("onnxruntime's quantizer", _quantizer),
        ("opsets in onnxruntime", _opsets),
        ("session keys", _session_keys),
        ("int4 weights", _int4),
    ):
        yield _tried(what, probe, _INSTALL)
    for op_type in _MODELS:
        do = "no model with it can be trusted here; install the versions above"
        yield _tried(f"{op_type} to INT8", partial(_quantized, op_type), do)
    yield _exporter()


def version_check(package: str) -> Check:
    """Whether the installed version of ``package`` lies within those that were tested."""
    oldest, newest = KNOWN_TO_WORK[package]
    tested = f"tested with {oldest} to {newest}" if oldest != newest else f"tested with {oldest}"
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        if package in _FOR_NETWORKS:
            do = "pip install 'onnxq[torch]', if networks are to be exported"
            return Check(package, "note", "is not installed", do)
        return Check(package, "fails", "is not installed", "pip install onnxq")
    if _numbers(found) < _numbers(oldest):
        do = f"pip install '{package}>={oldest}'"
        return Check(package, "fails", f"{found} is older than what works; {tested}", do)
    if _numbers(found)[:2] > _numbers(newest)[:2]:
        do = "go by the checks below; where one fails, install a tested version"
        return Check(package, "note", f"{found} is newer than what was tested; {tested}", do)
    return Check(package, "works", f"{found}; {tested}")


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def _processor() -> Check:
    """What this processor's instructions mean for integer kernels."""
    flags = set(cpu_flags())
    known = ", ".join(cpu_flags())
    if flags & {"avx512_vnni", "avx_vnni"}:
        found = "dot products of 8 bits (VNNI): sums are exact"
        do = "quantize for ort-x86-avx2 what will also run on x86 without VNNI"
        return Check("processor", "works", f"{known}: {found}", do)
    if flags & {"x86_64", "AMD64"}:
        found = "no VNNI: sums of pairs of uint8 × int8 saturate in 16 bits, without a word"
        do = "quantize for the target ort-x86-avx2, which narrows weights that could saturate"
        return Check("processor", "note", f"{known}: {found}", do)
    if "asimddp" in flags:
        return Check("processor", "works", f"{known}: dot products of 8 bits, as Cortex-A76 has")
    found = "no dot product of 8 bits, as Cortex-A53 and A72: INT8 gains less speed, sums are exact"
    return Check("processor", "note", f"{known}: {found}", "measure the time of INT8 beside FP32")


def _tried(what: str, probe: Callable[[], str], do: str) -> Check:
    try:
        return Check(what, "works", probe())
    except OnnxqError as fault:
        where = f"{fault.where}: " if fault.where else ""
        return Check(what, "fails", where + fault.what, fault.do or do)
    except Exception as fault:  # a broken installation raises anything; it is told, never a trace
        first = (str(fault).strip().splitlines() or [""])[0]
        return Check(what, "fails", f"{type(fault).__name__}: {first}", do)


# --- what ONNX Runtime can do ---------------------------------------------------------------------


def _quantizer() -> str:
    from onnxq.quantize.qdq import ARGUMENTS, refuse_unsuitable

    refuse_unsuitable()
    return f"takes the {len(ARGUMENTS)} arguments that onnxq gives"


def _opsets() -> str:
    import onnx

    from onnxq.runtime import Session
    from onnxq.target import load_target

    low, high = load_target("ort-x86").opset
    for opset in range(low, high + 1):
        text = f'<ir_version: 8, opset_import: ["": {opset}]> g (float[1] x) => (float[1] y)'
        model = onnx.parser.parse_model(text + "{ y = Relu(x) }")
        Session(model.SerializeToString())
    return f"{low} to {high} load"


def _session_keys() -> str:
    """Two keys that onnxq relies on change what is executed: a misspelt one would be accepted."""
    with tempfile.TemporaryDirectory() as folder:
        path = _convolutions(Path(folder), _INT8, _CHAIN)
        plain = _executed(path)
        without = _executed(path, {"session.disable_quant_qdq": "1"})
        if "QLinearConv" not in plain or "QLinearConv" in without:
            raise RuntimeFailureError(
                f"`session.disable_quant_qdq` turns {plain} into {without}", where="onnxruntime"
            )
        path = _convolutions(Path(folder), _INT8, _BRANCH)
        here, there = (_executed(path, {"session.qdqisint8allowed": flag}) for flag in "01")
        if here == there:
            raise RuntimeFailureError(
                "`session.qdqisint8allowed` changes nothing: what ARM executes cannot be told here",
                where="onnxruntime",
            )
    return "session.disable_quant_qdq and session.qdqisint8allowed change what is executed"


def _int4() -> str:
    """int4 weights in the form Cast → DequantizeLinear are folded into integer convolutions."""
    with tempfile.TemporaryDirectory() as folder:
        found = _executed(_convolutions(Path(folder), _INT4, _CHAIN))
    if found.count("QLinearConv") != 2:
        raise RuntimeFailureError(
            f"a Conv with int4 weights is executed as {found}",
            where="onnxruntime",
            do="keep to int8 weights with this version",
        )
    return "stored as int4, cast to int8, executed as QLinearConv"


def _convolutions(folder: Path, weight: str, end: str) -> Path:
    import numpy as np
    import onnx

    integers = np.random.default_rng(0).integers(-7, 8, (4, 4, 1, 1))
    kind = onnx.TensorProto.INT4 if weight == _INT4 else onnx.TensorProto.INT8
    model = onnx.parser.parse_model(_CONV_BETWEEN_QDQ % (weight, end))
    model.graph.initializer.append(
        onnx.helper.make_tensor("w", kind, integers.shape, integers.ravel().tolist())
    )
    for name, array in (
        ("s", np.float32(0.05)), ("z", np.int8(0)),
        ("t", np.full(4, 0.01, np.float32)), ("u", np.zeros(4, np.int8)),
    ):  # fmt: skip
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(array), name))
    path = folder / "probe.onnx"
    onnx.save(model, path)
    return path


def _executed(path: Path, config: Mapping[str, str] | None = None) -> list[str]:
    from onnxq.runtime import executed_operators

    return sorted(node.op_type for node in executed_operators(path, config).graph.node)


# --- one operator through every stage -------------------------------------------------------------


def _quantized(op_type: str) -> str:
    """A graph of one operator, exported, calibrated, quantized, run and compared with itself."""
    import numpy as np
    import onnx

    from onnxq.graph import load_model, values_of
    from onnxq.plain.calibrate import Data
    from onnxq.plain.quantize import quantize_file
    from onnxq.recipe import CalibrateSection, QuantizeSection
    from onnxq.runtime import Session
    from onnxq.sample_checks import made_up_samples
    from onnxq.target import load_target
    from onnxq.verify.distances import Distance

    target = load_target("ort-x86" if platform.machine() in ("x86_64", "AMD64") else "ort-arm64")
    text, weights = _MODELS[op_type]
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": 17]> g ({text}')
    random = np.random.default_rng(0)
    for name, shape in weights.items():
        array = random.uniform(-1, 1, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    with tempfile.TemporaryDirectory() as folder:
        fp32, int8 = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, fp32)
        data = Data(None, {}, CalibrateSection())
        quantize_file(fp32, target, data, QuantizeSection(), int8)
        reference, fused = Session(fp32, optimization="none"), Session(int8)
        distance = Distance()
        for row in made_up_samples(values_of(load_model(fp32))[0], 16, seed=1).rows():
            distance += Distance.between(reference.run(row)["y"], fused.run(row)["y"])
        integer = op_type not in _executed(int8)
    if distance.sqnr_db < _FEWEST_DB or not integer:
        raise RuntimeFailureError(
            f"INT8 is {distance.sqnr_db:.1f} dB from FP32 (at least {_FEWEST_DB:g} are usual), "
            f"executed on {'integers' if integer else 'floats'}",
            where=f"onnxruntime, one {op_type}",
        )
    return f"runs on integers, {distance.sqnr_db:.0f} dB from FP32"


def _exporter() -> Check:
    """The torch exporter on a network of one layer; a note where torch is not installed."""
    do = "install the versions above; onnxq still takes a model that is an .onnx file"
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        return Check("torch exporter", "note", "torch is not installed", do)
    return _tried("torch exporter", _exported, do)


def _exported() -> str:
    import numpy as np
    import torch

    from onnxq.export.from_torch import export_network, run_network
    from onnxq.runtime import Session

    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3)
    row = {"x": np.random.default_rng(0).uniform(0, 1, (1, 3, 6, 6)).astype(np.float32)}
    model = export_network(network, row, ["y"], opset=18, batch="one")
    got = Session(model.SerializeToString(), optimization="none").run(row)["y"]
    difference = float(np.abs(run_network(network, row, ["y"])["y"] - got).max())
    if difference > 1e-5:
        raise RuntimeFailureError(
            f"one Conv2d differs by {difference:.1e} between torch and ONNX", where="torch exporter"
        )
    return f"one Conv2d differs by {difference:.1e} between torch and ONNX (limit 1e-05)"
