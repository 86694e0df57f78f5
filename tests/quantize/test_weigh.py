"""Which elementwise operators stay float, and that the graph so planned runs as it was weighed."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxq.artifacts import TensorRange
from onnxq.quantize.draft import Draft
from onnxq.quantize.plan import make_plan
from onnxq.quantize.stage import quantize
from onnxq.quantize.weigh import runs_of, weigh
from onnxq.recipe import QuantizeSection
from onnxq.runtime import Session
from onnxq.target import load_target

from .nets import HEAD, TARGETS, calibrated, save, weights

X86 = load_target("ort-x86")
GATED = """g (float[1,8,32,32] x) => (float[1,8,32,32] y) {
    [one] c = Conv(x, w)
    [add] a = Add(c, three)  [clip] k = Clip(a, zero, six)  [mul] m = Mul(c, k)
    [shift] s = Add(m, six)
    [two] y = Conv(s, v) }"""
SOFT = """g (float[1,8,32,32] x) => (float[1,8,32,32] y) {
    [one] c = Conv(x, w)  [soft] y = Softmax(c) }"""
CONSTANTS = {
    "w": weights(8, 8, 1, 1), "v": weights(8, 8, 1, 1, seed=1),
    "three": np.array(3, np.float32), "zero": np.array(0, np.float32),
    "six": np.array(6, np.float32),
}  # fmt: skip


def graph(tmp_path, text: str) -> ir.Model:
    constants = {name: array for name, array in CONSTANTS.items() if name in text or name == "w"}
    path = save(tmp_path / "m.onnx", HEAD + text, **constants)
    return ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))


def spread(model: ir.Model, high: float = 4.0) -> dict[str, TensorRange]:
    """Every tensor from −``high`` to ``high``."""
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    one = TensorRange(
        low=-high, high=high, observed_low=-high, observed_high=high, values=9, zeros=0
    )
    return {str(value.name): one for value in values}


def test_without_prices_everything_stays_integer(tmp_path):
    model = graph(tmp_path, SOFT)
    for name in ("stm32n6", "ort-arm64"):
        assert weigh(model, load_target(name), spread(model), {}, "weigh").reasons == {}


def test_what_is_slower_on_integers_stays_float_and_runs_in_float(tmp_path):
    model = graph(tmp_path, SOFT)
    found = weigh(model, X86, spread(model), {}, "weigh")
    assert list(found.reasons) == ["soft"]
    assert "no faster on integers" in found.reasons["soft"]
    plan = make_plan(model, X86, spread(model), found.reasons)
    session = Session(Draft(model, plan, X86).quantized().SerializeToString())
    assert session.run({"x": weights(1, 8, 32, 32)})["y"].sum() == pytest.approx(8 * 32, rel=1e-5)


def test_a_gate_that_integers_compute_faster_stays_integer_and_the_finding_says_for_what(tmp_path):
    model = graph(tmp_path, GATED)
    found = weigh(model, X86, spread(model), {}, "weigh")
    assert found.reasons == {}
    assert [finding.where for finding in found.findings] == ["1 × hard-swish"]
    assert "of the time saved" in found.findings[0].what
    assert "dB lost" in found.findings[0].what


def test_a_gate_whose_noise_is_not_worth_its_time_stays_float_as_a_whole(tmp_path):
    prices = tuple(
        price.model_copy(update={"on_integers": 1000 * (price.on_integers or 0)})
        if price.op == "Conv"
        else price
        for price in X86.prices
    )
    model = graph(tmp_path, GATED)
    found = weigh(model, X86.model_copy(update={"prices": prices}), spread(model), {}, "weigh")
    assert list(found.reasons) == ["add", "clip", "mul", "shift"]
    assert found.reasons["add"].startswith("hard-swish of 4 operators stays float for ort-x86")


@pytest.mark.parametrize("target", TARGETS)
def test_a_recipe_overrules_the_weighing_both_ways(tmp_path, target):
    model = graph(tmp_path, GATED)
    profile = load_target(target)
    assert weigh(model, profile, spread(model), {}, "integer").reasons == {}
    forced = weigh(model, profile, spread(model), {}, "float")
    assert list(forced.reasons) == ["add", "clip", "mul", "shift"]
    plan = make_plan(model, profile, spread(model), forced.reasons)
    assert plan.nodes == ("one", "two")


def test_the_noise_of_a_run_is_that_which_rounding_inside_makes(tmp_path):
    """Judged by numpy: the same numbers, rounded inside as well, against rounded at the ends.

    Rounding before a sum moves all numbers alike, by up to half a step: its mean over shifts.
    """
    model = graph(tmp_path, GATED)
    x = np.random.default_rng(0).uniform(-3, 6, 50_000)
    product = x * np.clip(x + 3, 0, 6)
    step = float(np.ptp(product)) / 255
    ranges = {name: range_of(values) for name, values in (("c", x), ("m", product), ("s", product))}
    (run,) = runs_of([node for node in model.graph if node.op_type != "Conv"], ranges)
    given = rounded(x, np.ptp(x) / 255)
    at_ends, inside = [], []
    for shift in np.linspace(0, step, 16, endpoint=False):
        exact = product + shift
        ends = rounded(given * np.clip(given + 3, 0, 6) + shift, step)
        gated = rounded(given * rounded(np.clip(given + 3, 0, 6), 6 / 255), step)
        at_ends.append(np.square(ends - exact).mean())
        inside.append(np.square(rounded(gated + shift, step) - exact).mean())
    assert run.loss == pytest.approx(np.mean(inside) / np.mean(at_ends) - 1, rel=0.5)


def range_of(values: np.ndarray) -> TensorRange:
    low, high = float(values.min()), float(values.max())
    return TensorRange(
        low=low, high=high, observed_low=low, observed_high=high, values=values.size, zeros=0
    )


def rounded(values: np.ndarray, step: float) -> np.ndarray:
    return np.rint(values / step) * step


def test_one_operator_between_integers_is_not_weighed_as_the_runtime_fuses_it_anyway(tmp_path):
    text = SOFT.replace("[soft] y = Softmax(c)", "[soft] s = Softmax(c)  [two] y = Conv(s, v)")
    model = graph(tmp_path, text)
    assert weigh(model, X86, spread(model), {}, "weigh").reasons == {}
    plan = make_plan(model, X86, spread(model), {"soft": "asked for"})
    proto = Draft(model, plan, X86).quantized()
    path = tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(proto.SerializeToString(), options)
    assert "QLinearSoftmax" in {node.op_type for node in onnx.load(path).graph.node}


def test_without_a_layer_on_integers_nothing_is_weighed(tmp_path):
    model = graph(tmp_path, SOFT)
    assert weigh(model, X86, spread(model), {"one": "by test"}, "weigh").reasons == {}


def test_what_is_excluded_already_is_not_weighed(tmp_path):
    model = graph(tmp_path, GATED)
    found = weigh(model, X86, spread(model), {"mul": "by test"}, "float")
    assert "mul" not in found.reasons


@pytest.mark.parametrize(
    ("choice", "left"), [("integer", []), ("float", ["add", "clip", "mul", "shift"])]
)
def test_a_section_says_what_becomes_of_elementwise_operators(tmp_path, choice, left):
    net = calibrated(tmp_path, HEAD + GATED, **CONSTANTS)
    section = QuantizeSection(elementwise=choice)
    record = quantize(net.path, net.ranges, X86, section, tmp_path / "int8.onnx")
    assert [node.node for node in record.float_nodes] == left


def test_what_only_a_gate_reads_is_rounded_from_where_the_gate_opens(tmp_path):
    """Below −3 a hard-swish gives 0, as it does at −3: the outputs do not see the cut."""
    wide = {**CONSTANTS, "w": CONSTANTS["w"] * 12}
    net = calibrated(tmp_path, HEAD + GATED, **wide)
    section = QuantizeSection(elementwise="integer")
    record = quantize(net.path, net.ranges, X86, section, tmp_path / "int8.onnx")
    before = record.activations["c"]
    assert net.ranges.ranges["c"].low < -5
    assert -3 - before.scale <= -before.zero_point * before.scale <= -3 + before.scale
