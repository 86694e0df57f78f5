"""Norms in plain operators, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.l2_norm import lower_lp_normalization, lower_sums_of_squares
from onnxq.runtime import Session

from .growing import applied, assert_same_function
from .networks import graph, operators


def at(opset: int, body: str, made: str = "[2,3,4]", **constants: np.ndarray):
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    return graph(f"{head} g (float[2,3,4] x) => (float{made} y) {{ {body} }}", **constants)


@settings(max_examples=20, deadline=None)
@given(axis=st.integers(-3, 2), p=st.sampled_from([1, 2]), opset=st.sampled_from([13, 17, 18, 21]))
def test_a_normalisation_becomes_a_norm_and_a_division(axis, p, opset):
    model = at(opset, f"y = LpNormalization<axis = {axis}, p = {p}>(x)")
    plain = applied(model, lower_lp_normalization)
    assert operators(plain) == [f"ReduceL{p}", "Clip", "Div"]
    assert_same_function(model, plain)


def test_a_vector_of_zeros_stays_one():
    plain = applied(at(17, "y = LpNormalization(x)"), lower_lp_normalization)
    zeros = np.zeros((2, 3, 4), np.float32)
    got = Session(plain.SerializeToString(), optimization="none").run({"x": zeros})["y"]
    np.testing.assert_array_equal(got, zeros)


@pytest.mark.parametrize(
    ("opset", "body", "made", "expected"),
    [
        (17, "y = ReduceL2<axes = [1]>(x)", "[2,1,4]", ["Mul", "ReduceSum", "Sqrt"]),
        (17, "y = ReduceL2<keepdims = 0>(x)", "[]", ["Mul", "ReduceSum", "Sqrt"]),
        (18, "y = ReduceL2<keepdims = 0>(x, a)", "[2,3]", ["Mul", "ReduceSum", "Sqrt"]),
        (17, "y = ReduceSumSquare<axes = [0, 2]>(x)", "[1,3,1]", ["Mul", "ReduceSum"]),
        (17, "y = Pow(x, two)", "[2,3,4]", ["Mul"]),
    ],
)
def test_sums_of_squares_are_products_and_sums(opset, body, made, expected):
    used = {"a": np.array([-1]), "two": np.array([2], np.float32)}
    constants = {k: v for k, v in used.items() if f", {k})" in body}
    model = at(opset, body, made, **constants)
    plain = applied(model, lower_sums_of_squares)
    assert operators(plain) == expected
    assert_same_function(model, plain)


def test_another_power_is_left():
    model = at(17, "y = Pow(x, k)", k=np.array(3, np.float32))
    assert lower_sums_of_squares(ir.from_proto(model)) == 0


def test_what_torch_writes_for_normalize_comes_out_plain():
    """ReduceL2, Clip at 1e-12, Expand to the input's shape, Div."""
    model = at(
        18,
        "n = ReduceL2<keepdims = 1>(x, a)\nc = Clip(n, low)\ne = Expand(c, s)\ny = Div(x, e)",
        a=np.array([1]),
        low=np.array(1e-12, np.float32),
        s=np.array([2, 3, 4]),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["ReduceL2", "Clip", "Div"]
    assert_same_function(model, cleaned)
    plain, _ = clean(model, 17, rewrites=("sums of squares",))
    assert operators(plain) == ["Mul", "ReduceSum", "Sqrt", "Clip", "Div"]
    assert_same_function(model, plain)
