"""Layers on a batch made inside the graph, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.batch import unroll_batch

from .growing import applied, assert_same_function
from .networks import graph, operators, random

LAYERS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


def batches(model: onnx.ModelProto) -> set[int]:
    """Of all convolutions and pools."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    firsts = {v.name: v.type.tensor_type.shape.dim[0].dim_value for v in values}
    return {firsts[n.input[0]] for n in inferred.node if n.op_type in LAYERS}


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(2, 6),
    groups=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    bias=st.booleans(),
    active=st.booleans(),
)
def test_a_convolution_becomes_as_many_as_there_are_pictures(
    count, groups, transposed, bias, active
):
    op = "ConvTranspose" if transposed else "Conv"
    size = 6 if transposed else 4
    constants = {"w": random(4, 4 // groups, 3, 3)} | ({"b": random(4)} if bias else {})
    made = 4 // groups * groups
    pads = "0, 0, 0, 0" if transposed else "1, 1, 1, 1"
    model = graph(
        f"g (float[1,{count * 4},4,4] x) => (float[{count},{made},{size},{size}] y) {{"
        f"a = Reshape(x, s)\nc = {op}<group: int = {groups}, pads = [{pads}]>"
        f"(a, w{', b' if bias else ''})\ny = {'Relu(c)' if active else 'Identity(c)'} }}",
        s=np.array([count, 4, 4, 4]),
        **constants,
    )
    cleaned, _ = clean(model, rewrites=("unroll batch",))
    assert operators(cleaned).count(op) == count
    assert batches(cleaned) == {1}
    weights = {node.input[1] for node in cleaned.graph.node if node.op_type == op}
    assert len(weights) == 1
    assert_same_function(model, cleaned)


def patches_network() -> onnx.ModelProto:
    """Six patches through two convolutions and two pools, then a linear layer on all of them."""
    return graph(
        "g (float[1,6,3,8,8] x) => (float[1,5] y) { a = Reshape(x, s)\n"
        "c = Conv<pads = [1, 1, 1, 1]>(a, v, b)\nd = Relu(c)\n"
        "e = Conv<pads = [1, 1, 1, 1]>(d, u)\nf = Clip(e, low, high)\n"
        "p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(f)\nq = GlobalAveragePool(p)\n"
        "r = Reshape(q, t)\ny = Gemm(r, w) }",
        s=np.array([6, 3, 8, 8]),
        t=np.array([1, 24]),
        low=np.array(0, np.float32),
        high=np.array(6, np.float32),
        b=random(4),
        v=random(4, 3, 3, 3),
        u=random(4, 4, 3, 3),
        w=random(24, 5),
    )


def test_parts_go_from_layer_to_layer_without_being_joined():
    cleaned, _ = clean(patches_network(), rewrites=("unroll batch", "sink views"))
    names = operators(cleaned)
    assert names.count("Conv") == 12
    assert names.count("Split") == names.count("Concat") == 1
    assert names.count("MaxPool") == names.count("GlobalAveragePool") == 1
    assert batches(cleaned) == {1}
    assert_same_function(patches_network(), cleaned)
    again, steps = clean(cleaned, rewrites=("unroll batch", "sink views"))
    assert operators(again) == names
    assert len(steps) == 2


@pytest.mark.parametrize(
    "text",
    [
        "g (float[n,2,4,4] x) => (float[n,2,2,2] y) { y = Conv(x, w) }",
        "g (float[1,2,4,4] x) => (float[1,2,2,2] y) { y = Conv(x, w) }",
        "g (float[65,2,4,4] x) => (float[65,2,2,2] y) { y = Conv(x, w) }",
    ],
)
def test_a_free_batch_one_and_a_large_one_are_left(text):
    model = onnx.shape_inference.infer_shapes(graph(text, w=random(2, 2, 3, 3)))
    assert unroll_batch(ir.from_proto(model)) == 0


def test_parts_that_are_joined_in_another_way_than_cut_stay():
    model = graph(
        "g (float[1,2,4,4] x) => (float[1,3,4,4] y, float[1,1,4,4] z) {"
        "a = Relu(x)\nj = Concat<axis = 1>(x, a)\ny, z = Split<axis = 1>(j, s) }",
        s=np.array([3, 1]),
    )
    assert operators(applied(model, unroll_batch)) == ["Relu", "Concat", "Split"]
