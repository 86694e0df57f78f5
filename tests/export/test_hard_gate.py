"""Forms of HardSigmoid and HardSwish, judged by ONNX Runtime on the graph before and after."""

import numpy as np
import pytest

from onnxq.errors import UsageError
from onnxq.export.clean import clean

from .growing import assert_same_function
from .networks import graph, operators, random

CHAIN = "a = Add(c, three)  k = Clip(a, zero, six)  m = Mul(c, k)  y = Div(m, six)"
CONSTANTS = {name: np.array(n, np.float32) for name, n in {"three": 3, "zero": 0, "six": 6}.items()}


def cleaned(text: str, *rewrites: str):
    constants = {"w": random(4, 3, 1, 1) * 9, "u": random(4, 4, 1, 1), **CONSTANTS}
    model = graph(
        "g (float[1,3,6,6] x) => (float[1,4,6,6] y) { c = Conv(x, w)  " + text + "}",
        **{name: a for name, a in constants.items() if name in {"w"} or name in text},
    )
    found, _ = clean(model, rewrites=rewrites)
    assert_same_function(model, found)
    return found


def test_hard_sigmoid_behind_a_layer_is_a_clip():
    assert operators(cleaned("y = HardSigmoid(c)")) == ["Conv", "Clip"]


def test_hard_sigmoid_of_what_is_read_elsewhere_stays():
    assert operators(cleaned("s = HardSigmoid(c) y = Add(s, c)")) == ["Conv", "HardSigmoid", "Add"]


@pytest.mark.parametrize(
    "text", [CHAIN, "y = HardSwish(c)", "s = HardSigmoid<alpha=0.16666667>(c)  y = Mul(s, c)"]
)
def test_every_form_of_hard_swish_becomes_the_form_asked_for(text):
    product = operators(cleaned(text, "hard swish to product"))
    assert product == ["Conv", "Add", "Clip", "Mul", "Mul"]
    assert operators(cleaned(text, "hard swish to one")) == ["Conv", "HardSwish"]


def test_behind_hard_swish_the_layer_takes_its_factor():
    text = "h = HardSwish(c)  y = Conv(h, u)"
    found = operators(cleaned(text, "hard swish to product"))
    assert found == ["Conv", "Add", "Clip", "Mul", "Conv"]


@pytest.mark.parametrize(
    "text",
    [
        "a = Add(c, six)  k = Clip(a, zero, six)  y = Mul(c, k)",  # another offset
        "a = Add(c, three)  k = Clip(a, zero, three)  y = Mul(c, k)",  # another height
        "a = Add(c, three)  k = Clip(a, zero, six)  m = Mul(c, k)  y = Add(m, k)",  # read twice
        "a = Add(x, three)  k = Clip(a, zero, six)  d = Conv(k, w)  y = Mul(c, d)",
    ],
)
def test_what_only_looks_like_hard_swish_stays(text):
    assert "HardSwish" not in operators(cleaned(text, "hard swish to one"))


def test_before_opset_14_there_is_no_hard_swish():
    text = "s = HardSigmoid<alpha=0.16666667>(x)  y = Mul(s, x)"
    head = '<ir_version: 7, opset_import: ["": 13]>'
    model = graph(head + "g (float[2,3] x) => (float[2,3] y) {" + text + "}")
    assert operators(clean(model, rewrites=["hard swish to one"])[0]) == ["HardSigmoid", "Mul"]


def test_both_forms_at_once_are_refused():
    with pytest.raises(UsageError, match="undo each other"):
        cleaned("y = HardSwish(c)", "hard swish to one", "hard swish to product")
