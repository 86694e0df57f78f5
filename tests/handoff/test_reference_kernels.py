"""Windows, sums of products and pools of integers, judged by ONNX Runtime in exact float32."""

import numpy as np
import onnx
import onnx.helper as oh
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.handoff.reference.linear import convolved, multiplied, spread
from onnxq.handoff.reference.pools import average_pool, max_pool
from onnxq.handoff.reference.values import Steps, dequantized, real
from onnxq.runtime import Session

SMALL = 9  # integers below it: sums of hundreds of products stay exact in float32


@st.composite
def windows(draw: st.DrawFn) -> tuple[dict[str, object], tuple[int, ...], tuple[int, ...]]:
    """Attributes, kernel and data of one to three axes."""
    rank = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    kernel, dilations, strides = each(1, 3), each(1, 2), each(1, 3)
    attributes: dict[str, object] = {"strides": strides, "dilations": dilations}
    auto = draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if auto == "NOTSET":
        attributes["pads"] = tuple(
            min(draw(st.integers(0, 2)), size - 1) for size in (*kernel, *kernel)
        )
    else:
        attributes["auto_pad"] = auto
        attributes["dilations"] = (1,) * rank
        attributes["strides"] = tuple(map(min, strides, kernel))  # onnxruntime refuses others
    return attributes, kernel, each(5, 8)


def run(node: onnx.NodeProto, *arrays: np.ndarray, opset: int = 19) -> np.ndarray:
    """What ONNX Runtime makes of one node in float32."""
    values = [
        oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, array.shape)
        for name, array in zip(node.input, arrays, strict=True)
    ]
    output = oh.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    graph = oh.make_graph([node], "one", values, [output])
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], ir_version=9)
    feeds = {name: a.astype(np.float32) for name, a in zip(node.input, arrays, strict=True)}
    return Session(model.SerializeToString(), optimization="none").run(feeds)[node.output[0]]


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-SMALL, SMALL + 1, shape, np.int64)


@settings(max_examples=40)
@given(windows(), st.sampled_from([1, 2, 4]))
def test_a_convolution_sums_what_onnxruntime_sums(window, groups):
    attributes, kernel, data = window
    node = oh.make_node("Conv", ["x", "w"], ["y"], group=groups, **attributes)
    x, w = integers(2, 4, *data), integers(8, 4 // groups, *kernel, seed=1)
    np.testing.assert_array_equal(convolved(node, x, w), run(node, x, w))


@settings(max_examples=40)
@given(windows(), st.sampled_from([1, 2]), st.booleans())
def test_a_transposed_convolution_sums_what_onnxruntime_sums(window, groups, more):
    attributes, kernel, data = window
    if more and max(attributes["strides"]) > 1 and "pads" in attributes:
        attributes["output_padding"] = tuple(stride - 1 for stride in attributes["strides"])
    node = oh.make_node("ConvTranspose", ["x", "w"], ["y"], group=groups, **attributes)
    x, w = integers(1, 4, *data), integers(4, 3, *kernel, seed=1)
    np.testing.assert_array_equal(spread(node, x, w), run(node, x, w))


@pytest.mark.parametrize("auto", ["NOTSET", "SAME_UPPER"])
def test_a_transposed_convolution_of_a_wanted_shape_is_onnxruntimes(auto):
    node = oh.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], output_shape=[9, 10], auto_pad=auto
    )
    x, w = integers(1, 2, 5, 5), integers(2, 3, 3, 3, seed=1)
    np.testing.assert_array_equal(spread(node, x, w), run(node, x, w))


@settings(max_examples=40)
@given(windows(), st.integers(0, 1))
def test_the_largest_of_a_window_is_onnxruntimes(window, ceil_mode):
    attributes, kernel, data = window
    if "pads" in attributes:
        attributes["ceil_mode"] = ceil_mode
    node = oh.make_node("MaxPool", ["x"], ["y"], kernel_shape=kernel, **attributes)
    x = integers(2, 3, *data)
    value = max_pool(node, [dequantized(x, np.float32([1]), None, 1)])
    assert isinstance(value, Steps)
    np.testing.assert_array_equal(real(value), run(node, x))


@settings(max_examples=40)
@given(windows(), st.integers(0, 1), st.integers(0, 1))
def test_the_mean_of_a_window_is_onnxruntimes(window, ceil_mode, include):
    attributes, kernel, data = window
    attributes.pop("dilations")
    if "pads" in attributes:
        attributes["ceil_mode"] = ceil_mode
    node = oh.make_node(
        "AveragePool", ["x"], ["y"], kernel_shape=kernel, count_include_pad=include, **attributes
    )
    x = integers(2, 3, *data)
    value = average_pool(node, [dequantized(x, np.float32([1]), None, 1)])
    assert isinstance(value, Steps)
    assert value.terms[0].numbers.dtype == np.int64
    np.testing.assert_allclose(real(value), run(node, x), rtol=1e-6, atol=1e-6)


def test_products_beyond_float64_are_still_exact():
    left = np.array([[2**40 + 1, 3]], np.int64)
    right = np.array([[2**20 + 1], [5]], np.int64)
    assert multiplied(left, right).item() == (2**40 + 1) * (2**20 + 1) + 15
