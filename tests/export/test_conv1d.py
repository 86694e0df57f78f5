"""Layers over one axis as layers over two, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.conv1d import conv1d_to_conv2d

from .growing import applied, assert_same_function
from .networks import graph, operators, random


def tensor_ranks(model, op: str) -> set[int]:
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    return {weights[node.input[1]] for node in model.graph.node if node.op_type == op}


@settings(max_examples=40, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 3]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    bias=st.booleans(),
)
def test_a_convolution_keeps_groups_stride_dilation_and_padding(
    groups, kernel, stride, dilation, pads, bias
):
    length = 9
    assume(length + sum(pads) >= (kernel - 1) * dilation + 1)
    made = (length + sum(pads) - (kernel - 1) * dilation - 1) // stride + 1
    constants = {"w": random(groups * 2, 2, kernel)} | ({"b": random(groups * 2)} if bias else {})
    model = graph(
        f"g (float[2,{groups * 2},{length}] x) => (float[2,{groups * 2},{made}] y) {{"
        f"y = Conv<group: int = {groups}, strides = [{stride}], dilations = [{dilation}],"
        f"pads = [{pads[0]}, {pads[1]}]>(x, w{', b' if bias else ''}) }}",
        **constants,
    )
    wide = applied(model, conv1d_to_conv2d)
    assert operators(wide) == ["Reshape", "Conv", "Reshape"]
    assert tensor_ranks(wide, "Conv") == {4}
    assert_same_function(model, wide)


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_that_follows_from_the_length_stays_what_it_was(auto, stride):
    made = {"VALID": {1: 7, 2: 4}}.get(auto, {1: 9, 2: 5})[stride]
    model = graph(
        f"g (float[1,2,9] x) => (float[1,3,{made}] y) {{"
        f'y = Conv<auto_pad = "{auto}", strides = [{stride}]>(x, w) }}',
        w=random(3, 2, 3),
    )
    assert_same_function(model, applied(model, conv1d_to_conv2d))


@settings(max_examples=25, deadline=None)
@given(
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    pads=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    grown=st.integers(0, 1),
)
def test_a_transposed_convolution_keeps_its_attributes(groups, kernel, stride, pads, grown):
    made = (5 - 1) * stride + grown + kernel - sum(pads)
    assume(made > 0 and grown < stride)
    model = graph(
        f"g (float[1,4,5] x) => (float[1,{groups * 3},{made}] y) {{"
        f"y = ConvTranspose<group: int = {groups}, strides = [{stride}], "
        f"pads = [{pads[0]}, {pads[1]}], output_padding = [{grown}]>(x, w) }}",
        w=random(4, 3, kernel),
    )
    wide = applied(model, conv1d_to_conv2d)
    assert tensor_ranks(wide, "ConvTranspose") == {4}
    assert_same_function(model, wide)


@pytest.mark.parametrize(
    ("call", "made"),
    [
        ("MaxPool<kernel_shape = [3], strides = [2], pads = [1, 0], ceil_mode = 1>(x)", 5),
        ("MaxPool<kernel_shape = [2], dilations = [3]>(x)", 6),
        ("AveragePool<kernel_shape = [3], pads = [1, 1], count_include_pad = 1>(x)", 9),
        ("AveragePool<kernel_shape = [3], pads = [1, 1]>(x)", 9),
        ("GlobalAveragePool(x)", 1),
        ("GlobalMaxPool(x)", 1),
    ],
)
def test_a_pool_goes_with_the_convolutions(call, made):
    model = graph(f"g (float[1,4,9] x) => (float[1,4,{made}] y) {{ y = {call} }}")
    wide = applied(model, conv1d_to_conv2d)
    assert operators(wide)[0] == operators(wide)[-1] == "Reshape"
    assert_same_function(model, wide)


def test_a_chain_of_layers_is_looked_at_once():
    model = graph(
        "g (float[n,4,9] x) => (float[n,2,3] y) { a = Conv<pads = [1, 1]>(x, v)\nb = Relu(a)\n"
        "c = MaxPool<kernel_shape = [3], strides = [3]>(b)\ny = Conv(c, w) }",
        v=random(4, 4, 3),
        w=random(2, 4, 1),
    )
    cleaned, _ = clean(model, rewrites=("conv1d to conv2d", "sink views"))
    assert operators(cleaned) == ["Reshape", "Conv", "Relu", "MaxPool", "Conv", "Reshape"]
    assert_same_function(model, cleaned)


def test_a_shared_weight_stays_shared():
    model = graph(
        "g (float[1,2,5] x) => (float[1,2,5] y) { a = Conv(x, w)\ny = Conv(a, w) }",
        w=random(2, 2, 1),
    )
    wide = applied(model, conv1d_to_conv2d)
    convolutions = [node for node in wide.graph.node if node.op_type == "Conv"]
    assert convolutions[0].input[1] == convolutions[1].input[1]
    assert_same_function(model, wide)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_another_padding_is_a_pad_of_its_own_and_stays(mode):
    model = graph(
        "g (float[1,2,6] x) => (float[1,3,6] y) {"
        f'p = Pad<mode = "{mode}">(x, pads)\ny = Conv(p, w) }}',
        pads=np.array([0, 0, 1, 0, 0, 1]),
        w=random(3, 2, 3),
    )
    cleaned, _ = clean(model, rewrites=("conv1d to conv2d",))
    assert operators(cleaned) == ["Pad", "Reshape", "Conv", "Reshape"]
    assert_same_function(model, cleaned)


@pytest.mark.parametrize(
    "text",
    [
        "g (float[1,2,5] x, float[2,2,1] w) => (float[1,2,5] y) { y = Conv(x, w) }",
        "g (float[1,2,4] x) => (float[1,2,2] y, int64[1,2,2] i) {"
        "a, j = MaxPool<kernel_shape = [2], strides = [2]>(x)\ny = Relu(a)\ni = Identity(j) }",
        "g (float[n,2,l] x) => (float[n,2,l] y) { y = MaxPool<kernel_shape = [1]>(x) }",
        "g (float[1,2,4,4] x) => (float[1,2,3,3] y) { y = MaxPool<kernel_shape = [2, 2]>(x) }",
    ],
)
def test_what_cannot_be_looked_at_otherwise_is_left(text):
    assert conv1d_to_conv2d(ir.from_proto(graph(text))) == 0
