"""Estimators, judged by numpy.quantile, by onnxruntime's calibrator and by brute force."""

import itertools

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from pydantic import ValidationError
from scipy import integrate, optimize, stats

from onnxq.affine import dequantize, parameters_of_range, quantize
from onnxq.calibrate.counting import Accumulator
from onnxq.calibrate.estimators import NEEDS_HISTOGRAM, EstimatorOptions, Method, estimate
from onnxq.calibrate.statistics import TensorStatistics
from onnxq.errors import EmptySummaryError, UsageError
from onnxq.qtypes import IntType, Range
from tests.calibrate.test_divergence import as_told

METHODS: tuple[Method, ...] = ("minmax", "ema", "percentile", "mse", "entropy", "meanstd")
usual = EstimatorOptions()
middle = EstimatorOptions(symmetric=True)
values = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1000, 1000, width=32))


def whole_range(array: np.ndarray) -> Range:
    return Range.including_zero(float(array.min()), float(array.max()))


def seen(*runs: np.ndarray) -> TensorStatistics:
    """Statistics of runs of one tensor, a summary for each."""
    lows, highs, parts = [], [], []
    for run in runs:
        accumulator = Accumulator()
        low, high, _ = accumulator.add(np.asarray(run, np.float32))
        lows.append(low)
        highs.append(high)
        parts.append(accumulator.drain())
    return TensorStatistics(np.float32(lows), np.float32(highs), tuple(parts))


def extremes(lows: list[float], highs: list[float]) -> TensorStatistics:
    return TensorStatistics(np.float32(lows), np.float32(highs))


# --- what holds for all -------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(values, min_size=1, max_size=4), st.sampled_from(METHODS), st.booleans())
def test_a_range_holds_zero_and_nothing_beyond_what_was_seen(runs, method, symmetric):
    found = estimate(seen(*runs), method, EstimatorOptions(symmetric=symmetric))
    widest = whole_range(np.concatenate(runs))
    assert widest.low <= found.low <= 0 <= found.high <= widest.high


@settings(max_examples=30, deadline=None)
@given(st.lists(values, min_size=2, max_size=4), st.sampled_from(sorted(NEEDS_HISTOGRAM)))
def test_what_needs_a_histogram_does_not_heed_the_order_of_runs(runs, method):
    assert estimate(seen(*runs), method, usual) == estimate(seen(*runs[::-1]), method, usual)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "array", [[0.0, 0.0], [5.0], [-5.0], [1e-42], [1e-37, -2e-38], [3e38, -3e38], [0.0, -7.0]]
)
def test_odd_tensors_have_a_range(method, array, symmetric):
    found = estimate(seen(np.array(array)), method, EstimatorOptions(symmetric=symmetric))
    assert np.isfinite([found.low, found.high]).all()


@pytest.mark.parametrize("method", METHODS)
def test_values_that_are_not_finite_are_left_out(method):
    array = np.float32([np.nan, 1, 2, np.inf, -3, -np.inf])
    assert estimate(seen(array), method, usual) == estimate(seen(array[[1, 2, 4]]), method, usual)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_counted_has_no_range(method):
    with pytest.raises(EmptySummaryError):
        estimate(seen(np.zeros(0)), method, usual)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_needs_a_histogram_says_so(method):
    statistics = extremes([-1, -2], [3, 4])
    if method in NEEDS_HISTOGRAM:
        with pytest.raises(UsageError, match="only the extremes of each run"):
            estimate(statistics, method, usual)
    else:
        assert estimate(statistics, method, usual).width > 0


@pytest.mark.parametrize(
    "wrong",
    [{"coverage": 0}, {"coverage": 1.1}, {"momentum": 0}, {"power": 0}, {"bins": 2047}, {"kl": 1}],
)
def test_an_option_out_of_its_bounds_or_misspelt_is_refused(wrong):
    with pytest.raises(ValidationError):
        EstimatorOptions.model_validate(wrong)


# --- extremes -----------------------------------------------------------------------------------

NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,3,6,6] x) => (float[1,2,1,1] y) {
    [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [r1] b = Relu(a)
    [p1] c = MaxPool<kernel_shape=[2,2], strides=[2,2]>(b)
    [c2] d = Conv(c, w2)
    [g1] y = GlobalAveragePool(d)
}"""
TENSORS = ("x", "a", "b", "c", "d", "y")


class Reader(CalibrationDataReader):
    """Samples of ``x``."""

    def __init__(self, samples) -> None:
        self._samples = iter(samples)

    def get_next(self):
        return next(({"x": sample[np.newaxis]} for sample in self._samples), None)


@pytest.fixture
def net(tmp_path):
    """The path of a network, samples for it, and statistics of all its tensors."""
    random = np.random.default_rng(3)
    model = onnx.parser.parse_model(NET)
    for name, shape in (("w1", (4, 3, 3, 3)), ("b1", (4,)), ("w2", (2, 4, 1, 1))):
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    samples = random.standard_normal((9, 3, 6, 6)).astype(np.float32)
    inferred = onnx.shape_inference.infer_shapes(model)
    model.graph.output.extend(v for v in inferred.graph.value_info if v.name in TENSORS)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    runs = [dict(zip(names, session.run(None, {"x": x[None]}), strict=True)) for x in samples]
    found = {name: seen(*(run[name] for run in runs)) for name in names}
    return tmp_path / "m.onnx", samples, found | {"x": seen(*samples)}


def calibrator_of(path, **options):
    augmented = str(path.with_name("augmented.onnx"))
    return create_calibrator(
        path,
        calibrate_method=CalibrationMethod.MinMax,
        augmented_model_path=augmented,
        extra_options=options,
    )


def test_minmax_of_a_network_is_that_of_onnxruntimes_calibrator_to_the_bit(net):
    path, samples, found = net
    calibrator = calibrator_of(path)
    calibrator.collect_data(Reader(samples))
    theirs = calibrator.compute_data().data
    assert set(theirs) == set(TENSORS) == set(found)
    for name, statistics in found.items():
        low, high = (float(np.asarray(end).item()) for end in theirs[name].range_value)
        assert (statistics.low, statistics.high) == (low, high)
        assert estimate(statistics, "minmax", usual) == Range.including_zero(low, high)


def test_ema_of_a_network_is_that_of_onnxruntimes_calibrator_fed_sample_by_sample(net):
    path, samples, found = net
    calibrator = calibrator_of(path, moving_average=True, averaging_constant=0.05)
    for sample in samples:
        calibrator.collect_data(Reader([sample]))
    theirs = calibrator.compute_data().data
    for name, statistics in found.items():
        low, high = (float(np.asarray(end).item()) for end in theirs[name].range_value)
        expected = Range.including_zero(low, high)
        ours = estimate(statistics, "ema", usual)
        assert (ours.low, ours.high) == pytest.approx((expected.low, expected.high), rel=1e-5)


@given(st.lists(values, min_size=1, max_size=5))
def test_minmax_is_exact(runs):
    assert estimate(seen(*runs), "minmax", usual) == whole_range(np.concatenate(runs))


def test_ema_heeds_the_order_and_leaves_out_empty_runs():
    options = EstimatorOptions(momentum=0.5)
    forth = extremes([-4, np.nan, -2, -1], [8, np.nan, 4, 1])
    back = extremes([-1, -2, -4], [1, 4, 8])
    assert estimate(forth, "ema", options) == Range(-2.0, 3.5)  # 8 → (8 + 4) / 2 → (6 + 1) / 2
    assert estimate(back, "ema", options) == Range(-2.75, 5.25)


@given(values)
def test_ema_of_one_run_is_minmax(array):
    assert estimate(seen(array), "ema", usual) == estimate(seen(array), "minmax", usual)


# --- moments and ranks --------------------------------------------------------------------------


@pytest.mark.parametrize("sigmas", [0.5, 1, 3, 100])
def test_meanstd_is_the_mean_and_standard_deviations_of_numpy(sigmas):
    array = np.random.default_rng(0).normal(1, 2, 10_000).astype(np.float32)
    mean, std = float(array.mean(dtype=float)), float(array.std(dtype=float))
    found = estimate(seen(array), "meanstd", EstimatorOptions(sigmas=sigmas))
    low, high = mean - sigmas * std, mean + sigmas * std
    assert found.low == pytest.approx(min(max(low, array.min()), 0))
    assert found.high == pytest.approx(min(high, array.max()))


@pytest.mark.parametrize(
    ("distribution", "sigmas"),
    [(stats.norm(), 3.9), (stats.laplace(scale=0.5**0.5), 7.0), (stats.t(5, scale=0.6**0.5), 12.0)],
)
def test_the_least_squared_error_of_8_bits_lies_where_meanstd_says(distribution, sigmas):
    def error(end: float) -> float:
        rounding = (2 * end / 255) ** 2 / 12 * (1 - 2 * distribution.sf(end))
        clipped = integrate.quad(lambda x: (x - end) ** 2 * distribution.pdf(x), end, np.inf)
        return rounding + 2 * clipped[0]

    assert distribution.std() == pytest.approx(1)
    best = optimize.minimize_scalar(error, bounds=(2, 30), method="bounded")
    assert best.x == pytest.approx(sigmas, abs=0.05)


@pytest.mark.parametrize("coverage", [0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("shape", ["normal", "skewed", "uniform"])
def test_percentile_is_numpys_quantile_to_one_bucket(coverage, shape):
    random = np.random.default_rng(0)
    array = {
        "normal": random.standard_normal(20_000),
        "skewed": random.exponential(size=20_000) - 0.5,
        "uniform": random.uniform(-3, 1, 20_000),
    }[shape].astype(np.float32)
    runs = seen(*np.array_split(array, 7))
    found = estimate(runs, "percentile", EstimatorOptions(coverage=coverage))
    tail = (1 - coverage) / 2
    low, high = np.quantile(array, [tail, 1 - tail], method="inverted_cdf")
    assert found.low == pytest.approx(min(low, 0), rel=2**-7)
    assert found.high == pytest.approx(max(high, 0), rel=2**-7)
    both = estimate(runs, "percentile", EstimatorOptions(coverage=coverage, symmetric=True))
    reach = np.quantile(np.abs(array), coverage, method="inverted_cdf")
    assert max(-both.low, both.high) == pytest.approx(reach, rel=2**-7)


@given(values, st.sampled_from([0.5, 0.9, 0.99, 1.0]), st.booleans())
def test_percentile_leaves_no_more_outside_than_allowed(array, coverage, symmetric):
    options = EstimatorOptions(coverage=coverage, symmetric=symmetric)
    found = estimate(seen(array), "percentile", options)
    outside = np.count_nonzero((array < found.low) | (array > found.high))
    assert outside <= (1 - coverage) * array.size + 1e-9


# --- error on the grid --------------------------------------------------------------------------


def error(array: np.ndarray, range_: Range, options: EstimatorOptions) -> float:
    """Mean error of quantizing every value, with as many integers as the grid has."""
    if options.steps == 255:
        found = parameters_of_range(range_, IntType.INT8, symmetric=options.symmetric)
        integers = quantize(array, found.scale, found.zero_point, IntType.INT8)
        back = dequantize(integers, found.scale, found.zero_point)
    else:
        half, odd = divmod(options.steps, 2)
        scale = max(-range_.low, range_.high) / half if options.symmetric else range_.width
        scale = scale if options.symmetric else scale / options.steps
        zero = half + odd if options.symmetric else np.rint(-range_.low / scale)
        back = (np.clip(np.rint(array / scale) + zero, 0, options.steps) - zero) * scale
    return float(np.mean(np.abs(array.astype(float) - back) ** options.power))


RANDOM = np.random.default_rng(1)
SHAPES = {
    "normal": RANDOM.standard_normal(4000),
    "an outlier": np.append(RANDOM.standard_normal(4000), 40),
    "outliers on both sides": np.append(RANDOM.standard_normal(4000), [50, -60, 30]),
    "heavy tails": RANDOM.standard_t(2.5, 4000),
    "behind a Relu": np.maximum(RANDOM.standard_normal(4000), 0),
    "bimodal": np.append(RANDOM.normal(-3, 0.1, 2000), RANDOM.normal(7, 0.3, 2000)),
    "clipped at 6": np.clip(RANDOM.normal(0, 3, 4000), 0, 6),
    "skewed": RANDOM.gamma(0.5, 2, 4000) - 0.2,
    "negative": -RANDOM.exponential(1, 4000),
}


def tried_ranges(array: np.ndarray, symmetric: bool) -> list[Range]:
    widest, shares = whole_range(array), np.linspace(1 / 96, 1, 96)
    if symmetric:
        reach = max(-widest.low, widest.high)
        return [Range(-reach * share, reach * share) for share in shares]
    lows = shares[1::2] if widest.low and widest.high else [1.0]
    pairs = itertools.product(lows, shares[1::2]) if len(lows) > 1 else [(a, a) for a in shares]
    return [Range(float(widest.low * a), float(widest.high * b)) for a, b in pairs]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [15, 255])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("power", [2.0, 2.4])
def test_mse_is_as_good_as_the_best_of_all_ranges(shape, steps, symmetric, power):
    array = SHAPES[shape].astype(np.float32)
    options = EstimatorOptions(steps=steps, symmetric=symmetric, power=power)
    found = error(array, estimate(seen(array), "mse", options), options)
    best = min(error(array, range_, options) for range_ in tried_ranges(array, symmetric))
    assert found <= best * 1.02
    assert found <= error(array, whole_range(array), options) * 1.02


def test_mse_cuts_an_outlier_where_minmax_does_not():
    array = np.append(np.random.default_rng(2).standard_normal(100_000), 1000).astype(np.float32)
    assert estimate(seen(array), "minmax", usual).high == 1000
    assert estimate(seen(array), "mse", usual).high < 1000


def test_mse_keeps_the_bound_that_a_clip_leaves_many_values_at():
    array = SHAPES["clipped at 6"].astype(np.float32)
    assert estimate(seen(array), "mse", usual).high == pytest.approx(6, rel=0.01)


# --- divergence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", ["one side", "two sides", "skewed"])
def test_entropy_loses_as_little_as_the_method_as_told_on_a_plain_histogram(shape, symmetric):
    random = np.random.default_rng(5)
    array = {
        "one side": random.exponential(1, 400_000),
        "two sides": random.standard_normal(400_000),
        "skewed": random.gamma(2, 1, 400_000) - 1,
    }[shape].astype(np.float32)
    options = EstimatorOptions(symmetric=symmetric)
    found = estimate(seen(array), "entropy", options)
    plain = np.abs(array) if symmetric else array
    widest = whole_range(plain)
    step = widest.width / (127.5 if symmetric else 255)
    reach = max(-widest.low, widest.high)
    below, above = (int(np.ceil(end / reach * 2048)) for end in (-widest.low, widest.high))
    edges = np.linspace(-below, above, below + above + 1) * reach / 2048
    counts, _ = np.histogram(plain[np.abs(plain) > step / 2], edges)
    levels = 128 if symmetric else 256

    def lost(window: int) -> float:
        start, stop = below - min(window, below), below + min(window, above)
        return as_told(counts, start, stop - start, levels, 1e-4)

    taken = round(max(-found.low, found.high) / reach * 2048)
    best = min(lost(window) for window in range(256, 2049, 64))
    assert lost(taken) <= best * 1.25


def test_entropy_is_not_led_astray_by_what_a_relu_and_dead_channels_repeat():
    random = np.random.default_rng(6)
    live = np.maximum(random.standard_normal(200_000), 0)
    dead = np.repeat(random.uniform(0, 3, 20), 2_000)
    found = estimate(seen(np.append(live, dead)), "entropy", usual)
    assert found.high >= estimate(seen(live), "entropy", usual).high * 0.9
    assert found.high > 3


def test_entropy_keeps_the_bound_that_a_clip_leaves_many_values_at():
    array = SHAPES["clipped at 6"].astype(np.float32)
    assert estimate(seen(array), "entropy", usual).high == pytest.approx(6, rel=0.01)


def test_entropy_cuts_an_outlier():
    array = np.append(np.random.default_rng(2).standard_normal(100_000), 30).astype(np.float32)
    assert estimate(seen(array), "entropy", usual).high < 15
