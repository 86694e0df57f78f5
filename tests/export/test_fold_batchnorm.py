"""Folding judged by torch, which computes the layers one after the other."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import nn

from onnxq.export.clean import clean
from onnxq.export.rewrites.fold_batchnorm import fold_batchnorm
from onnxq.runtime import Session

from .growing import assert_same_function
from .networks import graph, operators, random, randomized

NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def norm_inputs(norm: nn.Module) -> dict[str, np.ndarray]:
    return {
        "s": norm.weight.detach().numpy(),
        "b": norm.bias.detach().numpy(),
        "m": norm.running_mean.numpy(),
        "v": norm.running_var.numpy(),
    }


@settings(max_examples=25, deadline=None)
@given(
    rank=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3]),
    transposed=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_convolution_computes_the_same_with_its_norm_inside(rank, groups, transposed, bias, seed):
    kind = (TRANSPOSED if transposed else CONVOLUTIONS)[rank]
    layer = kind(groups * 2, groups * 3, 3, groups=groups, bias=bias)
    norm = NORMS[rank](groups * 3)
    network = randomized(nn.Sequential(layer, norm), seed)
    shape = (2, groups * 2, *[4] * rank)
    x = random(*shape, seed=seed)
    constants = {"w": layer.weight.detach().numpy(), **norm_inputs(norm)}
    if bias:
        constants["c"] = layer.bias.detach().numpy()
    op = "ConvTranspose" if transposed else "Conv"
    out = [*shape[:1], groups * 3, *[6 if transposed else 2] * rank]
    model = graph(
        f"g (float{list(shape)} x) => (float{out} y) {{"
        f"h = {op}<group: int = {groups}>(x, w{', c' if bias else ''})\n"
        "y = BatchNormalization(h, s, b, m, v) }",
        **constants,
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == [op]
    got = Session(cleaned.SerializeToString(), optimization="none").run({"x": x})["y"]
    with torch.no_grad():
        expected = network(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("attributes", ["", "<transB: int = 1>", "<alpha = 0.5, beta = 2.0>"])
@pytest.mark.parametrize("bias", [(), (5,), (1, 5), (1,)])
def test_a_gemm_computes_the_same_with_its_norm_inside(attributes, bias):
    weight = random(5, 4) if "transB" in attributes else random(4, 5)
    constants = {"w": weight, "s": random(5), "b": random(5, seed=1), "m": random(5, seed=2)}
    constants["v"] = np.abs(random(5, seed=3)) + 0.1
    if bias:
        constants["c"] = random(*bias, seed=4)
    model = graph(
        f"g (float[3,4] x) => (float[3,5] y) {{ h = Gemm{attributes}(x, w{', c' if bias else ''})\n"
        "y = BatchNormalization(h, s, b, m, v) }",
        **constants,
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Gemm"]
    assert_same(model, cleaned, {"x": random(3, 4)})


def assert_same(
    model: onnx.ModelProto, other: onnx.ModelProto, feeds: dict[str, np.ndarray]
) -> None:
    expected = ReferenceEvaluator(model).run(None, feeds)
    got = ReferenceEvaluator(other).run(None, feeds)
    for left, right in zip(expected, got, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5, rtol=1e-5)


NORM = {"s": random(3), "b": random(3, seed=1), "m": random(3, seed=2), "v": np.ones(3, np.float32)}


def test_a_matmul_becomes_gemm():
    model = graph(
        "g (float[2,4] x) => (float[2,3] y) { h = MatMul(x, w)\n"
        "y = BatchNormalization(h, s, b, m, v) }",
        w=random(4, 3),
        **NORM,
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Gemm"]
    assert_same(model, cleaned, {"x": random(2, 4)})


def test_a_layer_that_others_read_too_is_left_alone():
    model = graph(
        "g (float[1,2,4,4] x) => (float[1,3,2,2] y, float[1,3,2,2] z) { h = Conv(x, w)\n"
        "y = BatchNormalization(h, s, b, m, v)\nz = Relu(h) }",
        w=random(3, 2, 3, 3),
        **NORM,
    )
    cleaned, _ = clean(model)
    assert sorted(operators(cleaned)) == ["BatchNormalization", "Conv", "Relu"]
    assert_same(model, cleaned, {"x": random(1, 2, 4, 4)})


def test_a_weight_that_is_shared_is_copied_not_changed():
    model = graph(
        "g (float[1,3,4,4] x) => (float[1,3,4,4] y) { h = Conv(x, w)\n"
        "n = BatchNormalization(h, s, b, m, v)\ny = Conv(n, w) }",
        w=random(3, 3, 1, 1),
        **NORM,
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Conv", "Conv"]
    assert_same(model, cleaned, {"x": random(1, 3, 4, 4)})


@pytest.mark.parametrize("width", [3, 5], ids=["as many", "others"])
def test_a_norm_over_another_axis_than_the_products_is_left_alone(width):
    model = graph(
        f"g (float[2,3,4] x) => (float[2,3,{width}] y) {{ h = MatMul(x, w)\n"
        "y = BatchNormalization(h, s, b, m, v) }",
        w=random(4, width),
        **NORM,
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["MatMul", "BatchNormalization"]
    assert_same(model, cleaned, {"x": random(2, 3, 4)})


def test_a_norm_in_training_mode_is_left_alone():
    model = graph(
        "g (float[2,2,4,4] x) => (float[2,3,2,2] y) { h = Conv(x, w)\n"
        "y, p, q = BatchNormalization<training_mode: int = 1>(h, s, b, m, v) }",
        w=random(3, 2, 3, 3),
        **NORM,
    )
    assert fold_batchnorm(ir.from_proto(model)) == 0


def test_a_norm_of_a_negative_variance_gives_nan_and_is_not_folded():
    norms = NORM | {"v": np.array([1, -1, 1], np.float32)}
    model = graph(
        "g (float[1,2] x) => (float[1,3] y) { h = Gemm(x, w)\n"
        "y = BatchNormalization(h, s, b, m, v) }",
        w=random(2, 3),
        **norms,
    )
    assert fold_batchnorm(ir.from_proto(model)) == 0


def test_a_huge_norm_of_a_tiny_variance_stays_exact():
    norm = nn.BatchNorm1d(4)
    network = randomized(nn.Sequential(nn.Linear(3, 4), norm))
    norm.running_var.fill_(1e-10)
    model = graph(
        "g (float[2,3] x) => (float[2,4] y) { h = Gemm<transB: int = 1>(x, w, c)\n"
        "y = BatchNormalization(h, s, b, m, v) }",
        w=network[0].weight.detach().numpy(),
        c=network[0].bias.detach().numpy(),
        **norm_inputs(norm),
    )
    x = random(2, 3)
    got = ReferenceEvaluator(clean(model)[0]).run(None, {"x": x})[0]
    expected = network.double()(torch.from_numpy(x).double()).detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-4)


NORM_TEXT = "n = BatchNormalization(x, s, b, m, v)\n"


def norm_of(channels: int, shift: bool = True) -> dict[str, np.ndarray]:
    nothing = np.zeros(channels, np.float32)
    return {
        "s": random(channels, seed=5),
        "b": random(channels, seed=6) if shift else nothing,
        "m": random(channels, seed=7) if shift else nothing,
        "v": np.abs(random(channels, seed=8)) + 0.5,
    }


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2]),
    padding=st.integers(0, 1),
    shift=st.booleans(),
    bias=st.booleans(),
    kernel=st.sampled_from([1, 3]),
)
def test_a_norm_before_a_convolution_is_folded_where_no_padding_is_shifted(
    groups, padding, shift, bias, kernel
):
    made = 6 + 2 * padding - kernel + 1
    constants = {"w": random(6, 4 // groups, kernel, kernel)} | ({"c": random(6)} if bias else {})
    model = graph(
        f"g (float[1,4,6,6] x) => (float[1,6,{made},{made}] y) {{ {NORM_TEXT}"
        f"y = Conv<group: int = {groups}, pads = [{padding}, {padding}, {padding}, {padding}]>"
        f"(n, w{', c' if bias else ''}) }}",
        **constants,
        **norm_of(4, shift),
    )
    cleaned, _ = clean(model)
    assert ("BatchNormalization" in operators(cleaned)) is (padding == 1 and shift)
    assert_same_function(model, cleaned)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_norm_before_a_transposed_convolution_is_folded_where_it_shifts_all_alike(
    kernel, shift, groups
):
    made = 4 + kernel - 1
    model = graph(
        f"g (float[1,4,4,4] x) => (float[1,{3 * groups},{made},{made}] y) {{ {NORM_TEXT}"
        f"y = ConvTranspose<group: int = {groups}>(n, w) }}",
        w=random(4, 3, kernel, kernel),
        **norm_of(4, shift),
    )
    cleaned, _ = clean(model)
    assert ("BatchNormalization" in operators(cleaned)) is (kernel == 3 and shift)
    assert_same_function(model, cleaned)


@pytest.mark.parametrize(
    "call", ["Gemm<transB: int = 1, alpha = 0.5, beta = 2.0>(n, w, c)", "MatMul(n, w)"]
)
def test_a_norm_before_a_linear_layer_is_always_folded(call):
    transposed = "transB" in call
    constants = {"c": random(5, seed=1)} if "c)" in call else {}
    model = graph(
        f"g (float[3,4] x) => (float[3,5] y) {{ {NORM_TEXT}y = {call} }}",
        w=random(5, 4) if transposed else random(4, 5),
        **constants,
        **norm_of(4),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Gemm"]
    assert_same_function(model, cleaned)


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(n)\ny = Conv(r, w)",
        "r = Relu(n)\na = Conv(n, w)\ny = Add(a, r)",
        "y = Conv(w4, n)",
    ],
)
def test_a_norm_that_others_read_or_that_is_no_layers_data_stays(body):
    shape, constants = [1, 4, 1, 1], {"w": random(4, 4, 1, 1)}
    if "w4" in body:
        shape, constants = [4, 4, 1, 1], {"w4": random(1, 4, 1, 1)}
    made = [1, 4, 1, 1]
    model = graph(
        f"g (float{shape} x) => (float{made} y) {{ {NORM_TEXT}{body} }}", **constants, **norm_of(4)
    )
    assert fold_batchnorm(ir.from_proto(model)) == 0
