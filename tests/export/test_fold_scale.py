"""Sums and products with constants, judged by ONNX Runtime on the graph before and after."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.fold_scale import fold_scales

from .growing import assert_same_function
from .networks import graph, operators, random


def scalar(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def affine(text: str, **constants: np.ndarray):
    constants = {"w": random(4, 3, 1, 1), "v": random(4, 1, 3, 3, seed=1), **constants}
    model = graph(
        "g (float[1,3,6,6] x) => (float[1,4,6,6] y) {" + text + "}",
        **{name: array for name, array in constants.items() if name in text},
    )
    cleaned, _ = clean(model)
    assert_same_function(model, cleaned)
    return cleaned


DEPTHWISE = "Conv<group: int = 4, pads: ints = [1,1,1,1]>"


@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("constant", [scalar(1.5), random(4, 1, 1) + 2, random(1, 4, 1, 1) - 2])
def test_behind_a_layer_a_constant_goes_into_it(op, constant):
    assert operators(affine(f"c = Conv(x, w)  y = {op}(c, a)", a=constant)) == ["Conv"]


def test_a_constant_less_the_layer_goes_into_it_too():
    assert operators(affine("c = Conv(x, w)  y = Sub(a, c)", a=scalar(1.5))) == ["Conv"]


def test_before_a_layer_that_pads_a_product_is_folded_and_a_sum_is_not():
    text = f"r = Conv(x, w) h = Tanh(r) m = Mul(h, a) s = Add(m, b)  y = {DEPTHWISE}(s, v)"
    cleaned = affine(text, a=scalar(0.2), b=scalar(0.3))
    assert operators(cleaned) == ["Conv", "Tanh", "Add", "Conv"]


def test_before_a_layer_that_does_not_pad_both_are_folded():
    text = "r = Conv(x, w) h = Tanh(r) m = Mul(h, a) s = Add(m, b)  y = Conv(s, u)"
    cleaned = affine(text, a=scalar(0.2), b=random(4, 1, 1), u=random(4, 4, 1, 1))
    assert operators(cleaned) == ["Conv", "Tanh", "Conv"]


def test_products_and_sums_that_follow_each_other_become_one():
    text = "r = Conv(x, w) h = Tanh(r) m = Div(h, a) n = Mul(m, b) s = Sub(n, a) y = Add(b, s)"
    cleaned = affine(text, a=scalar(6), b=scalar(0.3))
    assert operators(cleaned) == ["Conv", "Tanh", "Mul", "Add"]


def test_what_is_read_elsewhere_too_keeps_its_layer():
    cleaned = affine("c = Conv(x, w)  s = Add(c, a)  y = Mul(c, s)", a=scalar(3))
    assert operators(cleaned) == ["Conv", "Add", "Mul"]


def test_a_weight_that_layers_share_is_not_copied():
    text = "c = Conv(x, w) s = Mul(c, a) t = Tanh(x) d = Conv(t, w) y = Add(s, d)"
    model = graph(
        "g (float[1,3,6,6] x) => (float[1,4,6,6] y) {" + text + "}",
        w=random(4, 3, 1, 1), a=scalar(3),
    )  # fmt: skip
    assert fold_scales(ir.from_proto(onnx.shape_inference.infer_shapes(model))) == 0


def test_a_constant_that_widens_the_shape_stays():
    model = graph(
        "g (float[1,3,1,1] x) => (float[1,4,2,2] y) { c = Conv(x, w)  y = Add(c, a) }",
        w=random(4, 3, 1, 1), a=random(1, 1, 2, 2),
    )  # fmt: skip
    assert operators(clean(model)[0]) == ["Conv", "Add"]


@settings(max_examples=20, deadline=None)
@given(
    ops=st.lists(st.sampled_from(["Add", "Sub", "Mul", "Div"]), min_size=1, max_size=5),
    by_channel=st.booleans(),
    before=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_chain_around_a_layer_keeps_its_function(ops, by_channel, before, seed):
    constants = {}
    text = "h = Tanh(x)" if before else "h = Conv(x, w)"
    channels = 3 if before else 4
    for index, op in enumerate(ops):
        size = (channels, 1, 1) if by_channel and index % 2 else ()
        constants[f"k{index}"] = np.asarray(random(*size, seed=seed + index) + 1.5, np.float32)
        pair = [f"h{index - 1}" if index else "h", f"k{index}"]
        order = pair if (seed + index) % 2 or op == "Div" else pair[::-1]
        text += f"  h{index} = {op}({', '.join(order)})"
    last = f"h{len(ops) - 1}"
    text += f"  y = Conv({last}, w)" if before else f"  y = {DEPTHWISE}({last}, v)"
    affine(text, **constants)
