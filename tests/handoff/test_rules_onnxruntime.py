"""Rules of the onnxruntime targets, each with a file that breaks it and one that keeps it."""

from contextlib import nullcontext

import numpy as np
import onnx
import pytest

from handoff.qdq_models import with_constants
from handoff.test_rules import CASES, CONSTANTS, CONV, WEIGHT, between, broken, graph
from onnxq.errors import RuntimeFailureError
from onnxq.handoff.check import check
from onnxq.runtime import Session
from onnxq.target import load_target, target_names

ORT = load_target("ort-x86")
UNSIGNED = "xq = QuantizeLinear(x, s, u) xd = DequantizeLinear(xq, s, u) "
UNSIGNED_END = " yq = QuantizeLinear(r, s, u) y = DequantizeLinear(yq, s, u)"


def unsigned(operator, **options):
    return graph(UNSIGNED + operator + UNSIGNED_END, **options)


BROKEN_FOR_ONNXRUNTIME = {
    "activation-type": graph(
        "q = QuantizeLinear(x, s, wide) y = DequantizeLinear(q, s, wide)", opset=21
    ),
    "activation-per-tensor": graph(
        "q = QuantizeLinear<axis=1>(x, ss) y = DequantizeLinear<axis=1>(q, ss)"
    ),
    "weight-type": unsigned("wd = DequantizeLinear(wide4, s) r = MatMul(xd, wd)", opset=21),
    "weight-zero-point": unsigned("wd = DequantizeLinear(w, s, z) r = Conv(xd, wd)"),
    "bias": unsigned(WEIGHT + "bd = DequantizeLinear<axis=0>(b32, ss) r = Conv(xd, wd, bd)"),
    "opset": unsigned("r = Sigmoid(xd)", opset=12),
    "opset-tested": unsigned("r = Sigmoid(xd)", opset=22),
    "random-op": CASES["random-op"][0],
    "subgraph": CASES["subgraph"][0],
}


@pytest.mark.parametrize("name", [name for name in target_names() if name.startswith("ort")])
@pytest.mark.parametrize("rule", BROKEN_FOR_ONNXRUNTIME)
def test_a_rule_of_onnxruntime_is_broken_and_kept(rule, name):
    target = load_target(name)
    assert rule in broken(BROKEN_FOR_ONNXRUNTIME[rule], target)
    assert broken(unsigned(CONV), target) == set()


@pytest.mark.parametrize("name", ["ort-x86", "ort-arm64"])
def test_a_weight_axis_that_onnxruntime_would_ignore_is_refused(name):
    wrong = unsigned("wd = DequantizeLinear<axis=0>(w3, ss, zz) r = MatMul(xd, wd)")
    right = unsigned("wd = DequantizeLinear<axis=1>(w3, ss, zz) r = MatMul(xd, wd)")
    target = load_target(name)
    assert broken(wrong, target) == {"weight-axis"}
    assert broken(right, target) == set()


def test_int8_activations_are_a_warning_on_x86_and_fine_on_arm():
    model = between(CONV)
    assert broken(model) == set()
    assert [r.severity for r in check(model, ORT)] == ["warning", "warning"]
    assert check(model, load_target("ort-arm64")) == ()


def test_int8_blocks_are_refused_for_onnxruntime():
    model = unsigned(
        "wd = DequantizeLinear<axis=0, block_size=2>(w3, blocks, zeros) r = MatMul(xd, wd)",
        opset=21,
    )
    for name, array in {
        "blocks": np.ones((2, 4), np.float32),
        "zeros": np.zeros((2, 4), np.int8),
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    assert "block-size" in broken(model, ORT)


def test_a_float_bias_is_fine_for_onnxruntime():
    model = unsigned(WEIGHT + "r = Conv(xd, wd, row)")
    assert broken(model, ORT) == set()
    assert "bias" in broken(model)


TWO_WEIGHTS = (
    "wd = DequantizeLinear(big, s, z0) a = Conv(xd, wd) "
    "aq = QuantizeLinear(a, s, u) ad = DequantizeLinear(aq, s, u) "
    "vd = DequantizeLinear({weight}, s, {point}) r = Conv(ad, vd)"
)


@pytest.mark.parametrize(
    ("weight", "point", "loads"),
    [
        ("big", "z0", False),
        ("big", "point2", False),
        ("big2", "z0", False),
        ("big2", "point2", True),
    ],
)
def test_weights_that_share_constants_shut_the_door_for_processors_without_vnni(
    weight, point, loads
):
    model = unsigned(TWO_WEIGHTS.format(weight=weight, point=point))
    for name, array in {"big2": CONSTANTS["big"], "point2": CONSTANTS["z0"]}.items():
        if name in (weight, point):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    assert ("shared-weight" in broken(model, ORT)) is not loads
    config = {"session.x64quantprecision": "1"}
    outcome = nullcontext() if loads else pytest.raises(RuntimeFailureError, match="replace")
    with outcome:
        Session(model.SerializeToString(), config=config)


SIGNED_MATMUL = (
    "<ir_version: 9, opset_import: ['' : 17]> g (float[1,4] x) => (float[1,4] y) {"
    " xq = QuantizeLinear(x, s, z) xd = DequantizeLinear(xq, s, z)"
    " wd = DequantizeLinear(weight, s, z0) r = OPERATOR(xd, wd)"
    " yq = QuantizeLinear(r, s, z) y = DequantizeLinear(yq, s, z) }"
).replace("'", '"')


@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Conv"])
@pytest.mark.parametrize(("value", "wide"), [(64, False), (65, True), (-64, False), (-65, True)])
def test_wide_weights_beside_int8_activations_have_no_kernel_under_both_options(
    operator, value, wide
):
    """Under either option alone the file loads: also under that of the target ort-x86-avx2."""
    text = SIGNED_MATMUL.replace("OPERATOR", operator)
    shape = (4, 4)
    if operator == "Conv":
        text, shape = text.replace("[1,4]", "[1,4,4,4]"), (4, 4, 1, 1)
    weight = np.ones(shape, np.int8)
    weight.flat[5] = value
    constants = {name: CONSTANTS[name] for name in ("s", "z", "z0")}
    model = with_constants(text, weight=weight, **constants)
    for name in ("ort-x86", "ort-x86-avx2"):
        results = check(model, load_target(name))
        found = [r for r in results if r.rule == "ort-x86.signed-wide-weight"]
        assert [(r.severity, r.node, r.rewrite) for r in found] == [
            ("warning", "n3", "convert")
        ] * wide
    exact, allowed = {"session.x64quantprecision": "1"}, {"session.qdqisint8allowed": "1"}
    for config in (exact, allowed, load_target("ort-x86-avx2").session_options):
        Session(model.SerializeToString(), config=config)
    refused = pytest.raises(RuntimeFailureError, match="Failed to find kernel")
    with refused if wide else nullcontext():
        Session(model.SerializeToString(), config={**exact, **allowed})
