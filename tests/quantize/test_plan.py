"""The plan: decided without touching the graph."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.affine import parameters_of_range
from onnxq.errors import QuantizationError
from onnxq.graph import load_graph
from onnxq.qtypes import IntType
from onnxq.quantize.plan import Plan, make_plan
from onnxq.quantize.stage import quantize
from onnxq.recipe import QuantizeSection
from onnxq.target import load_target

from .nets import HEAD, TARGETS, Int8, Net, calibrated, conv_then, outputs, residual, weights


def plan_of(net: Net, target: str = "ort-x86", **exclude: str) -> Plan:
    return make_plan(load_graph(net.path), load_target(target), net.ranges.ranges, exclude)


def reasons(plan: Plan) -> dict[str, str]:
    return {node.node: node.reason for node in plan.float_nodes}


@pytest.mark.parametrize("target", TARGETS)
def test_planning_leaves_the_graph_as_it_is(tmp_path, target):
    net = residual(tmp_path)
    graph = load_graph(net.path)
    before = ir.to_proto(graph).SerializeToString(deterministic=True)
    make_plan(graph, load_target(target), net.ranges.ranges, {})
    assert ir.to_proto(graph).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("target", TARGETS)
def test_every_node_is_integer_or_has_a_reason(tmp_path, target):
    plan = plan_of(residual(tmp_path), target, conv_2="it is sensitive")
    names = {str(node.name) for node in load_graph(tmp_path / "fp32.onnx").graph}
    assert set(plan.nodes).isdisjoint(reasons(plan))
    assert set(plan.nodes) | set(reasons(plan)) == names
    assert reasons(plan)["conv_2"] == "it is sensitive"
    assert all(reasons(plan).values())


def test_the_target_decides_the_type_of_activations(tmp_path):
    net = residual(tmp_path)
    for target, type_ in (("ort-x86", IntType.UINT8), ("stm32n6", IntType.INT8)):
        assert {p.type for p in plan_of(net, target).activations.values()} == {type_}


def test_parameters_are_those_of_the_calibrated_range(tmp_path):
    net = residual(tmp_path)
    wanted = parameters_of_range(net.ranges.ranges["x"].range, IntType.UINT8, symmetric=False)
    assert plan_of(net).activations["x"] == wanted


def test_what_lies_before_a_folded_relu_gets_the_range_behind_it(tmp_path):
    net = residual(tmp_path)
    found = plan_of(net).activations
    assert found["a"] == found["b"]
    assert found["a"].zero_point == 0
    assert "a" not in net.ranges.ranges  # nothing is asked of it, so it was not looked at


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("[op_1] y = Softplus(c)", "ort-x86 has no integer Softplus"),
        ("[op_1] y = HardSwish(c)", "ort-x86 has no integer HardSwish"),
        ("[op_2] d = Softplus(c) [op_1] y = Relu(d)", "no integer operator before it to fold into"),
        (
            "[op_2] d = Softplus(c) [op_1] y = Reshape(d, to)",
            "moves values between float operators",
        ),
        ("[op_1] y = Clip(c, low, high)", "its bounds leave zero out"),
        ("[op_2] m = Abs(low) [op_1] y = Clip(c, m)", "its lower bound is computed at run time"),
        ("[op_2] v = Neg(w) [op_1] y = Conv(x, v)", "its weight is computed at run time"),
    ],
)
def test_a_node_that_stays_float_says_why(tmp_path, rest, reason):
    net = conv_then(
        tmp_path, rest, low=np.float32(0.25), high=np.float32(1), to=np.array([1, 4, 4, 4])
    )
    assert reasons(plan_of(net))["op_1"] == reason


def test_a_gemm_that_scales_stays_float(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,8] x) => (float[1,8] y) {
            [gemm_1] h = Gemm<alpha=0.5>(x, w) [gemm_2] y = Gemm(h, w) }""",
        w=weights(8, 8),
    )
    assert reasons(plan_of(net)) == {"gemm_1": "alpha or beta is not 1"}


def test_integers_inside_the_graph_stay_what_they_are(tmp_path):
    net = conv_then(tmp_path, "[i] s = Shape(c) [r] y = Reshape(c, s)")
    plan = plan_of(net)
    assert "r" in plan.nodes
    assert "i" in reasons(plan)
    assert "s" not in plan.activations


@pytest.mark.parametrize("name", ["conv_3", "conv1", ""])
def test_an_unknown_name_to_exclude_is_an_error(tmp_path, name):
    with pytest.raises(QuantizationError, match="no node is called"):
        plan_of(residual(tmp_path), **{name: "why"})


def test_a_node_excluded_without_reason_is_excluded_all_the_same(tmp_path):
    assert "conv_2" in reasons(plan_of(residual(tmp_path), conv_2=""))


def test_a_shared_weight_has_scales_for_the_larger_bias(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD + """g (float[1,4,4,4] x) => (float[1,4,4,4] y) {
            [conv_1] c = Conv(x, w, big) [conv_2] y = Conv(c, w, b) }""",
        w=weights(4, 4, 1, 1) * np.float32(1e-9), big=np.float32([60, 0, 0, 0]), b=weights(4),
    )  # fmt: skip
    plan = plan_of(net)
    steps = 60 / (plan.activations["x"].scale * plan.weights["w"].scales[0])
    assert steps < 2**31


HALVES = (
    HEAD
    + """g (float[1,4] x) => (float[1,2] a, float[1,2] b)
{ m = Mul(x, k)  a, b = Split<axis = 1>(m, two) }"""
)


@pytest.mark.parametrize("target", TARGETS)
def test_a_domain_on_one_half_of_a_split_does_not_cut_the_other(tmp_path, target):
    net = calibrated(
        tmp_path,
        HALVES,
        domains={"a": (-1.0, 1.0)},
        k=np.array([[1, 1, 100, 100]], np.float32),
        two=np.array([2, 2], np.int64),
    )
    plan = plan_of(net, target)
    observed = net.ranges.ranges["m"]
    low, high = plan.activations["b"].range
    step = plan.activations["b"].scale
    assert low <= observed.observed_low + step
    assert high >= observed.observed_high - step
    assert any(finding.where == "a" for finding in plan.findings)


@pytest.mark.parametrize("target", TARGETS)
def test_a_domain_behind_operators_that_keep_every_value_pins_the_source(tmp_path, target):
    net = calibrated(
        tmp_path,
        HEAD
        + "g (float[1,4] x) => (float[4,1] a) { m = Mul(x, k)  a = Transpose<perm = [1,0]>(m) }",
        domains={"a": (-8.0, 8.0)},
        k=np.array([[1, 1, 2, 2]], np.float32),
    )
    found = plan_of(net, target).activations
    assert found["m"] == found["a"]
    assert found["m"].range[1] == pytest.approx(8, abs=found["m"].scale)


# --- symmetric activations, powers of two -------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_target_with_powers_of_two_has_no_other_scale(tmp_path, name, symmetric):
    net = residual(tmp_path)
    target = load_target(name).model_copy(
        update={"power_of_two": True, "activation_symmetric": symmetric}
    )
    plan = make_plan(load_graph(net.path), target, net.ranges.ranges, {})
    plain = plan_of(net, name)
    for tensor, found in plan.activations.items():
        assert np.frexp(found.scale)[0] == 0.5
        usual = plain.activations[tensor].scale
        assert usual * 0.999 <= found.scale < usual * (4.1 if symmetric else 2.1)
    for tensor, weight in plan.weights.items():
        assert (np.frexp(weight.scales)[0] == 0.5).all()
        ratio = weight.scales / plain.weights[tensor].scales
        assert ((ratio >= 1) & (ratio < 2)).all()


def test_with_powers_of_two_a_bias_too_large_still_fits(tmp_path):
    net = conv_then(tmp_path, "[op_1] y = Relu(c)", big=np.float32([1]))
    graph = load_graph(net.path)
    graph.graph.initializers["w"].const_value = ir.tensor(weights(4, 3, 1, 1) * np.float32(1e-9))
    graph.graph.initializers["b"].const_value = ir.tensor(np.float32([60, 0, 0, 1e-9]))
    target = load_target("ort-x86").model_copy(update={"power_of_two": True})
    plan = make_plan(graph, target, net.ranges.ranges, {})
    scales = plan.weights["w"].scales
    assert (np.frexp(scales)[0] == 0.5).all()
    assert 60 / (plan.activations["x"].scale * scales[0]) < 2**31
    assert any("1 output channel" in finding.where for finding in plan.findings)


@pytest.mark.parametrize(("name", "zero"), [("ort-x86", 128), ("stm32n6", 0)])
def test_a_target_with_symmetric_activations_has_zero_in_the_middle(tmp_path, name, zero):
    net = residual(tmp_path)
    target = load_target(name).model_copy(update={"activation_symmetric": True})
    plan = make_plan(load_graph(net.path), target, net.ranges.ranges, {})
    assert {found.zero_point for found in plan.activations.values()} == {zero}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("optimization", ["none", "full"])
@pytest.mark.parametrize(
    ("symmetric", "power_of_two"), [(True, False), (False, True), (True, True)]
)
def test_such_a_file_computes_what_the_model_does(
    tmp_path, name, optimization, symmetric, power_of_two
):
    net = residual(tmp_path)
    update = {"activation_symmetric": symmetric, "power_of_two": power_of_two}
    target = load_target(name).model_copy(update=update)
    output = tmp_path / "int8.onnx"
    record = quantize(net.path, net.ranges, target, QuantizeSection(), output)
    found = Int8(net, output, record, onnx.load(output))
    assert found.error(optimization) < 255 * 0.05  # steps of 255 in the output's range


@pytest.mark.parametrize("optimization", ["none", "full"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_clip_still_clips_where_the_grid_reaches_further(tmp_path, optimization, symmetric):
    net = conv_then(
        tmp_path, "[op_1] y = Clip(c, low, high)", low=np.float32(0), high=np.float32(0.3)
    )
    target = load_target("ort-x86").model_copy(
        update={"power_of_two": True, "activation_symmetric": symmetric}
    )
    output = tmp_path / "int8.onnx"
    quantize(net.path, net.ranges, target, QuantizeSection(), output)
    found = outputs(output, net.samples, optimization)["y"]
    assert outputs(net.path, net.samples)["y"].max() == np.float32(0.3)
    assert found.max() == pytest.approx(0.3, abs=2**-9)  # the grid reaches 255 · 2**-9 = 0.5
