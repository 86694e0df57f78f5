"""NaN is looked for wherever arithmetic does not rule it out, and nowhere else."""

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.calibrate.finite import float_tensors, probes_of

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
LARGEST = float(np.finfo(np.float32).max)


def graph(body, **constants):
    model = onnx.parser.parse_model(
        HEAD + f"g (float[1,4] x) => (float[1,4] y) <float[1,4] a, float[1,4] b> {{ {body} }}"
    )
    for name, array in constants.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        model.graph.initializer.append(tensor)
    return onnx.shape_inference.infer_shapes(model)


def test_a_product_with_finite_weights_needs_a_limit_and_no_sum():
    weight = np.full((4, 4), -2.0)
    probes = probes_of(graph("a = MatMul(x, w) y = Relu(a)", w=weight), ["x", "y"])
    assert probes.sums == ()
    assert probes.limits["x"] == pytest.approx(LARGEST / 2 / 32)


@pytest.mark.parametrize(("factor", "bias"), [(1.0, 0.0), (3.0, 1e38)])
def test_below_the_limit_no_output_can_overflow(factor, bias):
    random = np.random.default_rng(0)
    weight = (factor * random.standard_normal((4, 4))).astype(np.float32)
    model = graph("y = Gemm(x, w, c)", w=weight, c=np.full(4, bias))
    limit = probes_of(model, ["x", "y"]).limits["x"]
    worst = np.abs(weight).astype(np.float64).sum(axis=0) * limit + bias
    assert worst.max() < LARGEST


def test_gemms_factors_tighten_the_limit():
    weight = np.ones((4, 4))
    plain = probes_of(graph("y = Gemm(x, w)", w=weight), ["x", "y"]).limits["x"]
    scaled = probes_of(graph("y = Gemm<alpha = 4.0>(x, w)", w=weight), ["x", "y"]).limits["x"]
    assert scaled == pytest.approx(plain / 4)


def test_a_limit_holds_for_what_is_looked_at_behind_operators_that_move_values():
    model = graph("a = Identity(x) y = MatMul(a, w)", w=np.ones((4, 4)))
    assert probes_of(model, ["x", "y"]).limits.keys() == {"x"}


@pytest.mark.parametrize(
    ("body", "constants", "sums"),
    [
        ("a = Sqrt(x) y = Relu(a)", {}, ("a",)),
        ("a = MatMul(x, w) y = Relu(a)", {"w": np.full((4, 4), np.nan)}, ("a",)),
        ("a = Mul(x, x) y = Clip(a)", {}, ("a",)),  # may overflow, and nobody would see it
        ("a = Mul(x, x) b = Sub(a, a) y = Relu(b)", {}, ("a", "b")),
        ("a = Add(x, c) y = Relu(a)", {"c": [[np.inf] * 4]}, ("a",)),
        ("a = Relu(x) b = MatMul(a, w) y = Relu(b)", {"w": np.ones((4, 4))}, ("b",)),
        ("y = Softmax(x)", {}, ("y",)),
    ],
)
def test_what_may_hold_a_nan_unseen_is_summed(body, constants, sums):
    assert probes_of(graph(body, **constants), ["x", "y"]).sums == sums


def test_an_infinity_in_what_is_looked_at_shows_in_its_extremes():
    assert probes_of(graph("a = Mul(x, x) y = Add(a, x)"), ["x", "a", "y"]).sums == ()


def test_integers_are_no_float_tensors():
    model = onnx.parser.parse_model(
        HEAD + "g (float[1,4] x) => (int64[1] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
    )
    assert float_tensors(onnx.shape_inference.infer_shapes(model)) == ("x",)
