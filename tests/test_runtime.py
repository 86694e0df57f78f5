import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.errors import RuntimeFailureError
from onnxq.provenance import cpu_flags
from onnxq.runtime import Session, executed_operators, with_outputs

NET = onnx.shape_inference.infer_shapes(
    onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 17]>
g (float[1,4] x) => (float[1,4] y) {
    h = Exp(x)
    r = Relu(h)
    y = Add(r, x)
}""")
)
ROW = {"x": np.float32([[-1, 0, 1, 2]])}


@pytest.mark.parametrize("optimization", ["full", "none"])
def test_a_session_computes_what_onnx_says(optimization):
    session = Session(NET.SerializeToString(), optimization=optimization)
    (expected,) = ReferenceEvaluator(NET).run(None, ROW)
    np.testing.assert_allclose(session.run(ROW)["y"], expected, rtol=1e-6)
    assert (session.input_names, session.output_names) == (("x",), ("y",))


def test_tensors_inside_can_be_read_without_touching_the_model():
    before = NET.SerializeToString()
    probe = with_outputs(NET, ["h", "r"])
    found = Session(probe.SerializeToString(), optimization="none").run(ROW)
    assert list(found) == ["h", "r"]
    np.testing.assert_allclose(found["h"], np.exp(ROW["x"]), rtol=1e-6)
    assert NET.SerializeToString() == before


def test_a_file_that_the_runtime_refuses_is_named(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    with pytest.raises(RuntimeFailureError, match=r"bad\.onnx: ONNX Runtime .* refuses it"):
        Session(tmp_path / "bad.onnx")
    with pytest.raises(RuntimeFailureError):
        executed_operators(tmp_path / "bad.onnx")


@pytest.mark.parametrize("row", [{}, {"z": ROW["x"]}, {"x": np.zeros((1, 5), np.float32)}])
def test_inputs_that_do_not_fit_are_one_error_of_ours(row):
    with pytest.raises(RuntimeFailureError):
        Session(NET.SerializeToString()).run(row)


def test_the_executed_graph_is_the_fused_one(tmp_path):
    net = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 17]>
    g (float[1,4,4,4] x) => (float[1,4,4,4] y) { c = Conv(x, w)  y = Relu(c) }""")
    net.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "w")
    )
    onnx.save(net, tmp_path / "m.onnx")
    executed = {node.op_type for node in executed_operators(tmp_path / "m.onnx").graph.node}
    assert "Relu" not in executed


def test_the_executed_graph_of_weights_in_a_file_of_their_own_is_read_without_them(tmp_path):
    net = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 17]>
    g (float[1,64] x) => (float[1,64] y) { h = MatMul(x, w)  y = Relu(h) }""")
    net.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    onnx.save(net, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data")
    executed = [node.op_type for node in executed_operators(tmp_path / "m.onnx").graph.node]
    assert "MatMul" in executed


def test_the_processor_names_its_architecture_first():
    assert cpu_flags()[0]
