"""Traps of onnxruntime's calibrators, by their row in the project's table: what onnxq does instead.

Where it is cheap, the test first shows that the trap is still there in the installed version.
"""

import inspect
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

from onnxq.calibrate import estimators
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.stage import Subject, calibrate
from onnxq.cli import main
from onnxq.errors import (
    AlreadyQuantizedError,
    DataError,
    StaleRecordError,
)
from onnxq.graph import load_model, values_of
from onnxq.plain.calibrate import Data, calibrate_file
from onnxq.quantize.stage import quantize
from onnxq.recipe import CalibrateSection, QuantizeSection
from onnxq.samples import Samples
from onnxq.target import load_target

from .collecting import DETAILS, RANDOM, collected, job, model, normal

GRAPH = model(
    """g (float[N,4] x) => (float[N,3] y) {
        [lin] h = Gemm(x, w, b)  [act] r = Relu(h)  [out] y = Gemm(r, v) }""",
    w=normal(4, 3),
    b=normal(3),
    v=normal(3, 3),
)
X = RANDOM.uniform(0.1, 1, (10, 4)).astype(np.float32)
TARGET = load_target("ort-x86")


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(onnx.ModelProto.FromString(GRAPH), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def theirs(net: Path, x: np.ndarray = X, **options: object) -> Path:
    """What ``quantize_static`` makes of the network."""
    output = net.with_name("theirs.onnx")
    quantize_static(
        net,
        output,
        SampleReader(Samples("s", {"x": x})),
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **options,  # type: ignore[arg-type]
    )
    return output


def scale_of(path: Path, tensor: str) -> float:
    for array in onnx.load(path).graph.initializer:
        if array.name == f"{tensor}_scale":
            return float(onnx.numpy_helper.to_array(array))
    raise AssertionError(f"{tensor} has no scale")


def ours(net: Path, x: np.ndarray = X, **section: object):
    values = values_of(load_model(net))
    how = CalibrateSection(**{"samples": len(x), "plan": "first"} | section)  # type: ignore[arg-type]
    samples = Samples("s.npz", {"x": x})
    return calibrate(Subject(net, *values, TARGET), samples, how, net.parent / "ranges")


def test_trap_1_entropy_differs_from_minmax_where_a_tail_is_long(net):
    x = np.random.default_rng(0).standard_t(3, (400, 4)).astype(np.float32)
    by_minmax = theirs(net, x).read_bytes()
    assert theirs(net, x, calibrate_method=CalibrationMethod.Entropy).read_bytes() == by_minmax

    entropy, minmax = ours(net, x, method="entropy").ranges, ours(net, x).ranges
    assert entropy["x"].high - entropy["x"].low < minmax["x"].high - minmax["x"].low


def test_trap_2_a_misspelt_option_is_an_error(net, tmp_path, capsys):
    theirs(net, extra_options={"CalibTensorRangeSymetric": True})  # not a word
    with pytest.raises(ValueError, match="coverge"):
        CalibrateSection(method="percentile", coverge=0.9)  # type: ignore[call-arg]
    with pytest.raises(SystemExit) as ended:
        main(["calibrate", str(net), "--data", "x.npz", "--coverge", "0.9", "-o", "out"])
    assert ended.value.code == 2
    assert "--coverage" in capsys.readouterr().err  # the nearest is named


@pytest.mark.parametrize("detail", DETAILS)
def test_trap_3_an_infinite_sample_is_refused_by_name(net, detail):
    x = X.copy()
    x[3, 1] = np.inf
    assert np.isinf(scale_of(theirs(net, x), "x"))
    with pytest.raises(DataError, match=r"s\.npz, sample 3, input `x`"):
        ours(net, x, collect=detail)


@pytest.mark.parametrize("detail", DETAILS)
def test_trap_3_an_infinity_that_arises_inside_is_refused_by_name(detail):
    graph = model("g (float[N,4] x) => (float[N,4] y) { [big] e = Exp(x)  y = Sigmoid(e) }")
    x = X.copy()
    x[7, 2] = 89
    with pytest.raises(DataError, match=r"sample 7, tensor `e`: Exp `big` computes inf"):
        collected(job(graph, detail), {"x": x})


@pytest.mark.parametrize("detail", DETAILS)
def test_trap_4_a_nan_is_refused_by_name(net, detail):
    x = X.copy()
    x[5, 0] = np.nan
    assert np.isfinite(scale_of(theirs(net, x), "x"))  # as if nothing were wrong
    with pytest.raises(DataError, match=r"s\.npz, sample 5, input `x`"):
        ours(net, x, collect=detail)


def test_trap_5_every_sample_counts_and_there_is_no_option_to_forget_some(net):
    x = X.copy()
    x[0] = 100
    forgetful = theirs(net, x, extra_options={"CalibMaxIntermediateOutputs": 4})
    assert scale_of(forgetful, "x") < 1 / 200
    assert ours(net, x).ranges["x"].high == 100
    assert ours(net, x, method="percentile", coverage=1.0).ranges["x"].high == 100


def test_trap_6_memory_does_not_grow_with_the_samples():
    graph = model("g (float[N,64,64] x) => (float[N,64,64] y) { t = Relu(x)  y = Neg(t) }")
    x = normal(64, 64, 64)
    peaks = []
    for count in (16, 16, 64):  # the first run warms up
        tracemalloc.start()
        collected(job(graph, "histograms"), {"x": x[:count]})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < x[:16].nbytes  # of 48 samples more, and of 3 tensors each


def test_trap_7_a_moving_average_follows_its_formula_and_the_order(net):
    x = np.linspace(0.1, 1, 10, dtype=np.float32)[:, np.newaxis].repeat(4, axis=1)
    moving = {"CalibMovingAverage": True}
    mean = scale_of(theirs(net, x, extra_options=moving), "x")
    assert mean == pytest.approx(float(x.max(axis=1).mean()) / 255, rel=1e-5)  # a plain mean
    assert scale_of(theirs(net, x[::-1].copy(), extra_options=moving), "x") == mean
    constant = {**moving, "CalibMovingAverageConstant": 0.9}
    assert scale_of(theirs(net, x, extra_options=constant), "x") == mean

    expected = float(x[0, 0])
    for row in x[1:]:
        expected += 0.3 * (float(row[0]) - expected)
    found = ours(net, x, method="ema", momentum=0.3).ranges["x"].high
    assert found == pytest.approx(expected, rel=1e-6)
    assert ours(net, x[::-1].copy(), method="ema", momentum=0.3).ranges["x"].high != found


def test_trap_8_no_stride_is_asked_of_the_number_of_samples(net):
    with pytest.raises(NotImplementedError):
        theirs(net, extra_options={"CalibStridedMinMax": 2})
    for count in (1, 7, 9):
        assert ours(net, X[:count]).ranges["x"].high == X[:count].max()


def test_trap_9_ranges_of_other_weights_or_other_data_are_not_used(net, tmp_path):
    cache = tmp_path / "cache.json"
    cached = scale_of(theirs(net, calibration_cache_path=str(cache)), "x")
    assert scale_of(theirs(net, 3 * X, calibration_cache_path=str(cache)), "x") == cached

    data = Data(str(tmp_path / "d.npz"), {}, CalibrateSection(), len(X))
    np.savez(tmp_path / "d.npz", x=X)
    first = calibrate_file(net, TARGET, data, tmp_path / "out")
    np.savez(tmp_path / "d.npz", x=3 * X)
    second = calibrate_file(net, TARGET, data, tmp_path / "out")
    assert first.ranges["x"].high == X.max()
    assert second.ranges["x"].high == (3 * X).max()

    fp32 = tmp_path / "out" / "fp32.onnx"
    quantize(fp32, second, TARGET, QuantizeSection(), tmp_path / "int8.onnx")
    other = onnx.load(net)
    array = 5 * onnx.numpy_helper.to_array(other.graph.initializer[0])
    other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    onnx.save(other, net)
    third = calibrate_file(net, TARGET, data, tmp_path / "out")
    assert third.ranges["y"] != second.ranges["y"]
    with pytest.raises(StaleRecordError):
        quantize(fp32, second, TARGET, QuantizeSection(), tmp_path / "other.onnx")


@pytest.mark.parametrize("method", sorted(estimators.NEEDS_HISTOGRAM | {"minmax", "ema"}))
def test_trap_20_a_dead_tensor_is_reported_by_every_method(tmp_path, method):
    dead = onnx.ModelProto.FromString(GRAPH)
    dead.graph.initializer[1].CopyFrom(
        onnx.numpy_helper.from_array(np.full(3, -99, np.float32), "b")
    )
    onnx.save(dead, tmp_path / "m.onnx")
    assert scale_of(theirs(tmp_path / "m.onnx"), "r") == 1.0
    result = ours(tmp_path / "m.onnx", method=method)
    assert ("r", "is zero in every calibration sample") in [
        (finding.where, finding.what) for finding in result.findings
    ]


@pytest.mark.parametrize("method", sorted(estimators.NEEDS_HISTOGRAM | {"minmax", "ema"}))
def test_traps_20_to_22_tiny_values_keep_a_range_of_their_own(tmp_path, method):
    """A channel of tiny or zero weights makes tiny activations; the range must not be lost."""
    graph = onnx.ModelProto.FromString(GRAPH)
    tiny = np.full((4, 3), 1e-39, np.float32)
    tiny[:, 1] = 0
    for place, (name, array) in enumerate((("w", tiny), ("b", np.zeros(3, np.float32)))):
        graph.graph.initializer[place].CopyFrom(onnx.numpy_helper.from_array(array, name))
    onnx.save(graph, tmp_path / "m.onnx")
    found = ours(tmp_path / "m.onnx", method=method).ranges["r"]
    assert 0 < found.high <= found.observed_high < 1e-38


def test_trap_26_a_model_that_is_quantized_already_is_refused(net):
    once = theirs(net).rename(net.with_name("once.onnx"))
    count = [
        sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)
        for path in (once, theirs(once))
    ]
    assert 0 < count[0] < count[1]  # a second layer
    with pytest.raises(AlreadyQuantizedError):
        ours(once)
    assert not (net.parent / "ranges").exists()


def test_trap_30_a_reader_with_a_key_too_many_is_told_in_words(net):
    class Extra(SampleReader):
        def run(self, index):
            return super().run(index) | {"labels": np.zeros(1, np.float32)}

    with pytest.raises(InvalidArgument):
        quantize_static(net, net.with_name("t.onnx"), Extra(Samples("s", {"x": X})))
    values = values_of(load_model(net))
    samples = Samples("s.npz", {"x": X, "label": X})
    with pytest.raises(DataError, match=r"s\.npz: `label` is no input"):
        calibrate(
            Subject(net, *values, TARGET), samples, CalibrateSection(samples=10), net.parent / "out"
        )


def test_trap_30_no_sample_at_all_is_told_in_words(net):
    with pytest.raises(ValueError, match="No data is collected"):
        theirs(net, X[:0])
    with pytest.raises(DataError, match=r"s\.npz: holds no sample"):
        ours(net, X[:0], samples=1)


def test_none_of_onnxruntimes_calibrators_is_used_by_onnxq():
    import onnxq

    root = Path(inspect.getfile(onnxq)).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        assert "create_calibrator" not in text.replace("a create_calibrator call", "")
        assert "CalibMaxIntermediateOutputs" not in text
