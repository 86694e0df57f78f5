import numpy as np
import onnx
import pytest

from onnxq.errors import ModelError
from onnxq.export.freeze import freeze, refuse_branches, refuse_half
from onnxq.graph import values_of
from onnxq.recipe import ValueSection

from .networks import graph

ADD = "g (float[n,3,h] x, float[n,3,h] z) => (float[n,3,h] y) { y = Add(x, z) }"


def shapes(model):
    return [value.shape for values in values_of(model) for value in values]


def test_a_free_batch_is_set_to_one_everywhere():
    model = graph("g (float[n,3] x) => (float[n,3] y) { y = Relu(x) }")
    assert shapes(freeze(model, (), "one")) == [(1, 3), (1, 3)]
    assert shapes(freeze(model, (), "free")) == [("n", 3), ("n", 3)]
    assert shapes(model) == [("n", 3), ("n", 3)]


@pytest.mark.parametrize("batch", ["one", "free"])
def test_any_other_free_dimension_is_refused_by_its_name(batch):
    with pytest.raises(ModelError, match=r"`h` \(axis 2 of `x`\)") as caught:
        freeze(graph(ADD), (), batch)
    assert "shape" in caught.value.do


def test_a_declared_shape_sets_it_for_all_who_share_it():
    declared = [ValueSection(name=name, shape=(1, 3, 8)) for name in ("x", "z")]
    assert shapes(freeze(graph(ADD), declared, "one")) == [(1, 3, 8)] * 3
    assert shapes(freeze(graph(ADD), declared, "free")) == [("n", 3, 8)] * 3


def test_a_declared_shape_that_the_graph_contradicts_is_an_error():
    with pytest.raises(ModelError, match=r"\[1, 4, 8\]"):
        freeze(graph(ADD), [ValueSection(name="x", shape=(1, 4, 8))], "one")


def test_a_mistyped_input_is_corrected():
    model = graph("g (float[1,3] image) => (float[1,3] y) { y = Relu(image) }")
    with pytest.raises(ModelError, match="did you mean `image`"):
        freeze(model, [ValueSection(name="imgae")], "one")


def test_a_graph_inside_a_node_is_refused_with_the_nodes_name():
    model = graph(
        "g (bool c, float[2] x) => (float[2] y) {"
        "[branch] y = If(c) <then_branch = t () => (float[2] a) { a = Relu(x) },"
        "else_branch = e () => (float[2] b) { b = Abs(x) }> }"
    )
    with pytest.raises(ModelError, match=r"`branch` \(If\)"):
        refuse_branches(model, "m.onnx")


@pytest.mark.parametrize(
    ("dims", "words"),
    [("[1,0]", r"\[1, 0\]"), ("[1,2147483648]", "elements are possible")],
)
def test_an_input_of_no_or_of_too_many_elements_is_refused(dims, words):
    model = graph(f"g (float{dims} x) => (float{dims} y) {{ y = Relu(x) }}")
    with pytest.raises(ModelError, match=words):
        freeze(model, (), "one")


def test_a_value_that_no_memory_holds_is_refused_before_it_is_computed():
    model = graph(
        "g (float[1,1] x) => (float[1] y) { a = Expand(x, s)\ny = ReduceMax<keepdims = 0>(a) }",
        s=np.array([2**20, 2**20]),
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    with pytest.raises(ModelError, match="1048576, 1048576"):
        freeze(model, (), "one")


def test_a_half_precision_graph_is_refused_by_name():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> '
        "g (float16[1,2] x) => (float16[1,2] y) { y = Relu(x) }"
    )
    with pytest.raises(ModelError, match="half-precision"):
        refuse_half(model, "m.onnx")
