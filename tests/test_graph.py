import contextlib

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import graph
from onnxq.errors import AlreadyQuantizedError, ModelError
from onnxq.graph import (
    constant_of,
    constants_of,
    load_model,
    macs_of,
    output_channel_axis,
    parameter_count,
    refuse_quantized,
    refuse_uncanonical,
    save_model,
    values_of,
    with_batch_of_one,
)
from tests.onnx_text import model_of

LAYER = """<ir_version: 9, opset_import: ["": 17]>
g (float[n,3,8,8] x) => (float[n,4,6,6] y) { [conv] y = Conv(x, w) }"""
WEIGHT = np.ones((4, 3, 3, 3), np.float32)


def test_a_saved_model_comes_back_and_its_file_is_the_same_each_time(tmp_path):
    model = model_of(LAYER, w=WEIGHT)
    for name in ("a", "b"):
        save_model(model, tmp_path / f"{name}.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert load_model(tmp_path / "a.onnx").graph.node == model.graph.node


def test_a_constant_with_more_values_than_its_shape_is_refused_by_name():
    model = model_of(LAYER, w=WEIGHT)
    model.graph.initializer[0].raw_data *= 2
    with pytest.raises(ModelError, match="`w`"):
        constants_of(model)


def test_a_large_model_lies_beside_its_data_and_is_refused_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "EXTERNAL_DATA_BYTES", 100)
    model = model_of(LAYER, w=np.ones((4, 3, 30, 30), np.float32))
    save_model(model, tmp_path / "m.onnx")
    assert parameter_count(model) == 4 * 3 * 900
    assert not model.graph.initializer[0].external_data
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    assert parameter_count(load_model(tmp_path / "m.onnx")) == 4 * 3 * 900
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ModelError, match=r"\.data"):
        load_model(tmp_path / "m.onnx")


def test_a_missing_model_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelError, match="no such model file"):
            load_model(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is no model", b"PK\x03\x04" + bytes(90)])
def test_a_foreign_file_is_no_model(tmp_path, content):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ModelError, match="no ONNX model"):
        load_model(tmp_path / "m.onnx")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_refused_in_words_or_still_a_model(tmp_path_factory, data):
    whole = model_of(LAYER, w=WEIGHT).SerializeToString()
    content = bytearray(whole[: data.draw(st.integers(1, len(whole)))])
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damaged") / "m.onnx"
    path.write_bytes(bytes(content))
    with contextlib.suppress(ModelError):  # any other exception fails the test
        load_model(path)


def test_the_facts_of_inputs_leave_initializers_out_and_name_free_dimensions():
    model = model_of(
        """<ir_version: 9, opset_import: ["": 17]>
        g (float[n,3,8,8] x, float[4,3,3,3] w, int64[2] i) => (float y) { y = Conv(x, w) }""",
        w=WEIGHT,
    )
    inputs, (output,) = values_of(model, {"x": (0.0, 1.0)})
    assert [(v.name, v.dtype, v.shape, v.domain) for v in inputs] == [
        ("x", "float32", ("n", 3, 8, 8), (0.0, 1.0)),
        ("i", "int64", (2,), None),
    ]
    assert (output.name, output.domain) == ("y", None)


def test_parameters_are_the_elements_of_float_constants():
    model = model_of(LAYER, w=WEIGHT, shape=np.array([1, 2]), k=np.float32(3))
    assert parameter_count(model) == 4 * 27 + 1


@pytest.mark.parametrize("op", ["QuantizeLinear", "DequantizeLinear", "QLinearConv"])
def test_a_quantized_graph_is_refused_by_the_name_of_its_node(op):
    node = onnx.helper.make_node(op, ["a"], ["b"], name="here")
    with pytest.raises(AlreadyQuantizedError, match=f"{op} `here`"):
        refuse_quantized(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [])), "m")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAYER.replace("17", "12"), "opset 12"),
        (LAYER.replace("[conv] ", ""), "a node has no name"),
        (LAYER.replace("y = Conv", "c = Conv").replace("}", "[conv] y = Relu(c) }"), "two nodes"),
        (
            """<ir_version: 9, opset_import: ["": 17]> g (bool k, float[2] x) => (float[2] y) {
            [fork] y = If (k) <then_branch = a () => (float[2] p) { p = Relu(x) },
                               else_branch = b () => (float[2] q) { q = Neg(x) }> }""",
            r"`fork` \(If\) holds a graph",
        ),
    ],
)
def test_a_graph_not_in_canonical_form_is_refused(text, says):
    with pytest.raises(ModelError, match=says):
        refuse_uncanonical(model_of(text), "m.onnx")


def test_the_canonical_form_is_let_through():
    refuse_uncanonical(model_of(LAYER), "m.onnx")


def only_node(text: str, **constants: np.ndarray) -> ir.Node:
    proto = onnx.shape_inference.infer_shapes(model_of(text, **constants))
    return next(iter(ir.from_proto(proto).graph))


@pytest.mark.parametrize(
    ("node", "weight", "axis", "macs"),
    [
        ("float[1,3,8,8] x) => (float[1,4,6,6] y) { y = Conv(x, w)", (4, 3, 3, 3), 0, 4 * 36 * 27),
        (
            "float[1,4,8,8] x) => (float[1,4,6,6] y) { y = Conv<group=4>(x, w)",
            (4, 1, 3, 3), 0, 4 * 36 * 9,
        ),
        (
            "float[1,4,5,5] x) => (float[1,3,10,10] y) { y = ConvTranspose<strides=[2,2]>(x, w)",
            (4, 3, 2, 2), 1, 4 * 25 * 3 * 4,
        ),
        ("float[2,8] x) => (float[2,5] y) { y = Gemm(x, w)", (8, 5), 1, 2 * 5 * 8),
        ("float[2,8] x) => (float[2,5] y) { y = Gemm<transB=1>(x, w)", (5, 8), 0, 2 * 5 * 8),
        ("float[8,2] x) => (float[2,5] y) { y = Gemm<transA=1>(x, w)", (8, 5), 1, 2 * 5 * 8),
        ("float[3,2,8] x) => (float[3,2,5] y) { y = MatMul(x, w)", (8, 5), 1, 3 * 2 * 5 * 8),
        ("float[3,2,8] x) => (float[3,2,5] y) { y = MatMul(x, w)", (3, 8, 5), 2, 3 * 2 * 5 * 8),
    ],
)  # fmt: skip
def test_weighted_operators_know_their_output_channels_and_cost(node, weight, axis, macs):
    found = only_node(
        f'<ir_version: 9, opset_import: ["": 17]> g ({node} }}', w=np.ones(weight, np.float32)
    )
    assert output_channel_axis(found) == axis
    assert macs_of(found) == macs


def test_an_operator_without_weight_has_no_channels_and_costs_nothing():
    found = only_node(
        '<ir_version: 9, opset_import: ["": 17]> g (float[2] x) => (float y) { y = Relu(x) }'
    )
    assert macs_of(found) == 0
    with pytest.raises(ValueError, match="Relu has no weight"):
        output_channel_axis(found)


def test_a_constant_is_an_initializer_or_a_constant_node_and_nothing_computed():
    model = ir.from_proto(
        model_of(
            """<ir_version: 9, opset_import: ["": 17]> g (float[2] x) => (float[2] y) {
            k = Constant<value_floats=[1.0, 2.0]>()
            a = Add(x, k)
            y = Mul(a, w) }""",
            w=np.float32([3, 4]),
        )
    )
    _, add, mul = model.graph
    assert constant_of(add.inputs[1]).tolist() == [1, 2]
    assert constant_of(mul.inputs[1]).tolist() == [3, 4]
    assert constant_of(mul.inputs[0]) is None
    assert constant_of(None) is None


def test_costs_of_a_graph_with_a_free_batch_are_those_of_one_sample(tmp_path):
    """The batch of a Reshape like B·24 is free too, unless the input's is set."""
    model = model_of(
        """<ir_version: 8, opset_import: ["": 17]>
        g (float[batch,6,4] x) => (float[n,5] y) { r = Reshape(x, shape)  y = MatMul(r, w) }""",
        shape=np.array([-1, 4]),
        w=np.ones((4, 5), np.float32),
    )
    graph = ir.from_proto(with_batch_of_one(model))
    assert sum(macs_of(node) for node in graph.graph) == 6 * 4 * 5
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
