"""A norm that stands alone as a depthwise Conv, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.export.clean import clean
from onnxq.export.rewrites.lone_norm import norm_to_conv

from .growing import applied, assert_same_function
from .networks import graph, operators, random

NORM = {
    "s": random(4, seed=1),
    "b": random(4, seed=2),
    "m": random(4, seed=3),
    "v": np.abs(random(4, seed=4)) + 0.1,
}


@pytest.mark.parametrize("space", [[6], [5, 3], [2, 3, 4]])
def test_a_norm_over_maps_is_a_convolution_of_one_weight_a_channel(space):
    shape = [2, 4, *space]
    model = graph(
        f"g (float{shape} x) => (float{shape} y) {{ y = BatchNormalization(x, s, b, m, v) }}",
        **NORM,
    )
    conv = applied(model, norm_to_conv)
    assert operators(conv) == ["Conv"]
    assert_same_function(model, conv)


def test_a_norm_before_an_activation_runs_on_integers_then():
    """As in networks that normalise first: nothing takes the norm in."""
    model = graph(
        "g (float[1,4,5,5] x) => (float[1,4,5,5] y) { n = BatchNormalization(x, s, b, m, v)\n"
        "r = Relu(n)\nc = Conv(r, w)\ny = Add(c, x) }",
        w=random(4, 4, 1, 1),
        **NORM,
    )
    assert operators(clean(model)[0]) == ["BatchNormalization", "Relu", "Conv", "Add"]
    cleaned, _ = clean(model, rewrites=("norm to conv",))
    assert operators(cleaned) == ["Conv", "Relu", "Conv", "Add"]
    assert_same_function(model, cleaned)


def test_a_norm_that_a_layer_takes_in_is_folded_first():
    model = graph(
        "g (float[1,4,5,5] x) => (float[1,4,5,5] y) { c = Conv(x, w)\n"
        "y = BatchNormalization(c, s, b, m, v) }",
        w=random(4, 4, 1, 1),
        **NORM,
    )
    assert operators(clean(model, rewrites=("norm to conv",))[0]) == ["Conv"]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[3,4] x) => (float[3,4] y) { y = BatchNormalization(x, s, b, m, v) }",
        "g (float[3,4,2] x, float[4] t) => (float[3,4,2] y) {"
        "y = BatchNormalization(x, t, b, m, v) }",
        "g (float[3,4,2] x) => (float[3,4,2] y, float[4] p, float[4] q) {"
        "y, p, q = BatchNormalization<training_mode = 1>(x, s, b, m, v) }",
    ],
    ids=["rows", "a computed scale", "in training"],
)
def test_any_other_norm_is_left(text):
    assert norm_to_conv(ir.from_proto(graph(text, **NORM))) == 0
