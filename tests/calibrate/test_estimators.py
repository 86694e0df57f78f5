"""Estimators, judged by numpy.quantile, by onnxruntime's calibrator and by brute force."""

import itertools

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.quantization import CalibrationMethod, create_calibrator

from onnxq.calibrate.collect import collect
from onnxq.calibrate.estimators import EstimatorOptions, estimate
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.statistics import Summary
from onnxq.errors import EmptySummaryError
from onnxq.graph import load_model, values_of
from onnxq.qtypes import Range
from onnxq.samples import Samples

METHODS = ("minmax", "percentile", "mse")
usual = EstimatorOptions()
values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32))


def whole_range(array: np.ndarray) -> Range:
    return Range.including_zero(float(array.min()), float(array.max()))


def summary_of(array: np.ndarray) -> Summary:
    summary = Summary.empty()
    summary.add(np.asarray(array, np.float32))
    return summary


@settings(max_examples=30, deadline=None)
@given(values, st.sampled_from(METHODS))
def test_a_range_holds_zero_and_nothing_beyond_what_was_seen(array, method):
    found = estimate(summary_of(array), method, usual)
    assert min(array.min(), 0) <= found.low <= 0 <= found.high <= max(array.max(), 0)


@given(values)
def test_minmax_is_exact(array):
    assert estimate(summary_of(array), "minmax", usual) == whole_range(array)


@pytest.mark.parametrize("coverage", [0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("shape", ["normal", "skewed", "uniform"])
def test_percentile_is_numpys_quantile_to_one_bucket(coverage, shape):
    random = np.random.default_rng(0)
    array = {
        "normal": random.standard_normal(20_000),
        "skewed": random.exponential(size=20_000) - 0.5,
        "uniform": random.uniform(-3, 1, 20_000),
    }[shape].astype(np.float32)
    found = estimate(summary_of(array), "percentile", EstimatorOptions(coverage=coverage))
    tail = (1 - coverage) / 2
    low, high = np.quantile(array, [tail, 1 - tail], method="inverted_cdf")
    assert found.low == pytest.approx(min(low, 0), rel=2**-6)
    assert found.high == pytest.approx(max(high, 0), rel=2**-6)


@given(values, st.sampled_from([0.5, 0.9, 0.99, 1.0]))
def test_percentile_leaves_no_more_outside_than_allowed(array, coverage):
    found = estimate(summary_of(array), "percentile", EstimatorOptions(coverage=coverage))
    outside = np.count_nonzero((array < found.low) | (array > found.high))
    assert outside <= (1 - coverage) * array.size + 1e-9


def error(array: np.ndarray, range_: Range, steps: int = 255) -> float:
    """Mean squared error of the affine grid over ``range_``, zero on a step."""
    if not range_.width:
        return float(np.mean(array.astype(float) ** 2))
    scale = range_.width / steps
    zero = np.rint(-range_.low / scale)
    grid = (np.clip(np.rint(array / scale) + zero, 0, steps) - zero) * scale
    return float(np.mean((array - grid) ** 2))


@pytest.mark.parametrize("outlier", [1, 4, 20])
def test_mse_is_near_the_best_of_all_ranges(outlier):
    array = np.random.default_rng(1).standard_normal(2000).astype(np.float32)
    array[0] *= outlier
    options = EstimatorOptions(steps=15)  # a coarse grid makes clipping pay
    found = error(array, estimate(summary_of(array), "mse", options), 15)
    shares = np.linspace(1 / 64, 1, 64)
    best = min(
        error(array, Range(float(array.min() * a), float(array.max() * b)), 15)
        for a, b in itertools.product(shares, shares)
    )
    widest = error(array, whole_range(array), 15)
    assert found <= best * 1.1
    assert found <= widest * 1.0001


def test_mse_cuts_an_outlier_where_minmax_does_not():
    array = np.append(np.random.default_rng(2).standard_normal(100_000), 1000).astype(np.float32)
    options = EstimatorOptions(steps=255)
    assert estimate(summary_of(array), "minmax", options).high == 1000
    assert estimate(summary_of(array), "mse", options).high < 1000


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("array", [[0.0, 0.0], [5.0], [-5.0], [1e-42], [3e38, -3e38]])
def test_odd_tensors_have_a_range(method, array):
    found = estimate(summary_of(np.array(array)), method, usual)
    assert np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize("method", METHODS)
def test_nothing_counted_has_no_range(method):
    with pytest.raises(EmptySummaryError):
        estimate(Summary.empty(), method, usual)


NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,3,6,6] x) => (float[1,2,1,1] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [r1] b = Relu(a)
    [p1] c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
    [c2] d = Conv(c, w2)
    [g1] y = GlobalAveragePool(d)
}"""


def test_minmax_ranges_of_a_network_are_those_of_onnxruntimes_calibrator(tmp_path):
    random = np.random.default_rng(3)
    model = onnx.parser.parse_model(NET)
    for name, shape in (("w1", (4, 3, 3, 3)), ("b1", (4,)), ("w2", (2, 4, 1, 1))):
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    samples = Samples("s", {"x": random.standard_normal((9, 3, 6, 6)).astype(np.float32)})
    calibrator = create_calibrator(
        tmp_path / "m.onnx",
        calibrate_method=CalibrationMethod.MinMax,
        augmented_model_path=str(tmp_path / "augmented.onnx"),
    )
    calibrator.collect_data(SampleReader(samples))
    theirs = calibrator.compute_data().data

    loaded = load_model(tmp_path / "m.onnx")
    ours = collect(loaded, SampleReader(samples), values_of(loaded)[0])
    assert set(ours) == set(theirs) == {"x", "a", "b", "c", "d", "y"}
    for name, summary in ours.items():
        low, high = (float(np.asarray(v).squeeze()) for v in theirs[name].range_value)
        # theirs is run fully optimized, ours as the graph says: equal to float32 rounding
        assert (summary.low, summary.high) == pytest.approx((low, high), rel=1e-6, abs=1e-7)
