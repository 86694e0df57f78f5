"""Layers on joined branches as sums of parts, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import ExportError
from onnxq.export.clean import clean, cleaning
from onnxq.export.rewrites.split_concat import split_concats

from .growing import assert_same_function
from .networks import graph, operators, random

LAYERS = {
    "Conv": ("Conv<pads = [1, 1, 1, 1]>(j, w, b)", (4, 5, 3, 3), "[1,4,4,4]"),
    "Conv without bias": ("Conv(j, w)", (4, 5, 1, 1), "[1,4,4,4]"),
    "ConvTranspose": ("ConvTranspose<strides = [2, 2]>(j, w, b)", (5, 4, 2, 2), "[1,4,8,8]"),
}


def branches(call: str, made: str, *, fed: str = "[1,2,4,4]", axis: int = 1, **constants):
    other = fed.replace("2", "3", 1)
    model = graph(
        f"g (float{fed} x, float{other} z) => (float{made} y) {{"
        f"[join] j = Concat<axis = {axis}>(x, z)\ny = {call} }}",
        **constants,
    )
    return onnx.shape_inference.infer_shapes(model)


def split(model: onnx.ModelProto, *names: str) -> onnx.ModelProto:
    copy = ir.from_proto(model)
    assert split_concats(copy, names) == len(names)
    return clean(ir.to_proto(copy))[0]


@pytest.mark.parametrize("name", LAYERS)
def test_a_convolution_is_split_by_the_channels_of_its_branches(name):
    call, shape, made = LAYERS[name]
    bias = {"b": random(4, seed=1)} if "b)" in call else {}
    model = branches(call, made, w=random(*shape), **bias)
    parts = split(model, "join")
    assert operators(parts) == [call.split("(")[0].split("<")[0]] * 2 + ["Add"]
    assert_same_function(model, parts)


@settings(max_examples=20, deadline=None)
@given(
    transposed=st.booleans(),
    bias=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    axis=st.sampled_from([1, -1]),
)
def test_a_linear_layer_is_split_too(transposed, bias, alpha, axis):
    weight = random(6, 5) if transposed else random(5, 6)
    constants = {"w": weight} | ({"c": random(6, seed=1)} if bias else {})
    call = f"Gemm<transB: int = {int(transposed)}, alpha = {alpha}>(j, w{', c' if bias else ''})"
    model = branches(call, "[1,6]", fed="[1,2]", axis=axis, **constants)
    assert_same_function(model, split(model, "join"))


def test_a_product_over_the_last_axis_is_split_there():
    model = branches("MatMul(j, w)", "[1,4,6]", fed="[1,4,2]", axis=2, w=random(5, 6))
    assert operators(split(model, "join")) == ["MatMul", "MatMul", "Add"]
    assert_same_function(model, split(model, "join"))


def test_every_layer_behind_the_join_is_split_and_other_readers_keep_it():
    model = graph(
        "g (float[1,2,4,4] x, float[1,3,4,4] z) => (float[1,4,4,4] y, float[1,5,4,4] r) {"
        "[join] j = Concat<axis = 1>(x, z)\na = Conv(j, v)\nb = Conv(j, w)\ny = Add(a, b)\n"
        "r = Relu(j) }",
        v=random(4, 5, 1, 1),
        w=random(4, 5, 1, 1, seed=1),
    )
    copy = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    assert split_concats(copy, ["join"]) == 2
    assert operators(ir.to_proto(copy)).count("Conv") == 4
    assert "Concat" in operators(clean(ir.to_proto(copy))[0])
    assert_same_function(model, ir.to_proto(copy))


@pytest.mark.parametrize(
    ("call", "made", "shape"),
    [
        ("Conv<group: int = 5>(j, w)", "[1,5,4,4]", (5, 1, 1, 1)),
        ("MatMul(j, w)", "[1,5,4,2]", (4, 2)),
        ("Mul(j, w)", "[1,5,4,4]", (5, 1, 1)),
    ],
)
def test_what_does_not_sum_over_the_branches_is_refused(call, made, shape):
    model = branches(call, made, w=random(*shape))
    with pytest.raises(ExportError, match="no layer behind `join`"):
        split_concats(ir.from_proto(model), ["join"])


def test_a_recipe_names_the_concats_and_the_canonical_graph_has_them_split():
    model = branches("Conv(j, w)", "[1,4,4,4]", w=random(4, 5, 1, 1))
    *_, last = cleaning(model, None, (), ("concat_1",))
    assert last.what == "split 1 layers behind concat_1 by channels"
    assert operators(last.model) == ["Conv", "Conv", "Add"]
    assert all(node.name for node in last.model.graph.node)
    assert_same_function(model, last.model)


def test_a_name_that_is_no_concat_is_corrected():
    model = branches("Conv(j, w)", "[1,4,4,4]", w=random(4, 5, 1, 1))
    with pytest.raises(ExportError, match="did you mean `join`"):
        split_concats(ir.from_proto(model), ["jion"])


def test_each_branch_can_then_have_a_scale_of_its_own():
    """Coordinates beside features: in 8 bits with one scale the coordinates are nearly lost."""
    rng = np.random.default_rng(0)
    quiet, loud = rng.uniform(-1, 1, (2, 64)), rng.uniform(0, 500, (3, 64))
    weight = rng.uniform(-1, 1, (1, 5))
    weight[:, 2:] *= 1e-3  # the features hardly count

    def rounded(values: np.ndarray, span: float) -> np.ndarray:
        return np.round(values / (span / 255)) * (span / 255)

    exact = weight @ np.vstack([quiet, loud])
    together = weight @ rounded(np.vstack([quiet, loud]), 501)
    apart = weight[:, :2] @ rounded(quiet, 2) + weight[:, 2:] @ rounded(loud, 500)
    assert np.abs(apart - exact).max() < np.abs(together - exact).max() / 50
