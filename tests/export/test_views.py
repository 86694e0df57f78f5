import numpy as np
import onnx_ir as ir
import pytest

from onnxq.export.clean import clean
from onnxq.export.rewrites.views import sink_views

from .growing import applied, assert_same_function
from .networks import graph, operators, random


@pytest.mark.parametrize(
    "call",
    ["Relu(v)", "Clip(v, low)", "Mul(v, low)", "Sub(low, v)", "Add(v, one)", "HardSwish(v)"],
)
def test_an_activation_comes_before_the_view(call):
    constants = {"low": np.array(-0.1, np.float32), "one": np.ones((1, 1), np.float32)}
    model = graph(
        "g (float[2,12] x) => (float[2,3,4] y) {" + f"v = Reshape(x, s)\ny = {call} }}",
        s=np.array([2, 3, 4]),
        **{name: array for name, array in constants.items() if name in call},
    )
    sunk = applied(model, sink_views)
    assert operators(sunk) == [call.split("(")[0], "Reshape"]
    assert_same_function(model, sunk)


@pytest.mark.parametrize(
    ("inputs", "body", "constants"),
    [
        ("float[2,12] x", "v = Reshape(x, s)\ny = Mul(v, k)", {"k": random(4)}),
        ("float[2,12] x", "v = Reshape(x, s)\ny = Softmax(v)", {}),
        ("float[2,12] x", "v = Reshape(x, s)\na = Relu(v)\ny = Add(v, a)", {}),
        ("float[2,12] x", "v = Reshape(x, s)\ny = Add(v, k)", {"k": random(1, 1, 1)}),
        ("float[1,1,2,3,4] x", "v = Reshape(x, s)\ny = Relu(v)", {}),
    ],
)
def test_what_minds_the_shape_stays_behind_the_view(inputs, body, constants):
    model = graph(
        f"g ({inputs}) => (float[2,3,4] y) {{ {body} }}", s=np.array([2, 3, 4]), **constants
    )
    assert sink_views(ir.from_proto(model)) == 0


def test_views_that_meet_behind_the_activation_vanish():
    model = graph(
        "g (float[2,12] x) => (float[2,12] y) { v = Reshape(x, s)\na = Relu(v)\ny = Flatten(a) }",
        s=np.array([2, 3, 4]),
    )
    cleaned, _ = clean(model, rewrites=("sink views",))
    assert operators(cleaned) == ["Relu"]
