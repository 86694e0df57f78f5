"""What the file on disk really is: which operators are integer, and which only look so."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnxruntime.quantization import quantize_dynamic

from onnxq.artifacts import QuantizedModel
from onnxq.cli import main
from onnxq.errors import AlreadyQuantizedError, AuditError, DataError, ModelError
from onnxq.graph import load_model, refuse_quantized
from onnxq.recipe import Gate, VerifySection
from onnxq.samples import Samples
from onnxq.store import sha256_of_file
from onnxq.verify.audit import audit, coverage, refuse_other_forms, require_sound
from onnxq.verify.stage import Evidence, verify
from onnxq.verify.tasks import Regression

from .files import HEAD, X86, float_model, graph, quantized, saved

SECTION = VerifySection(gate=(Gate(metric="mae", max_increase=1),))
# two operators that ort-x86 has no integer kernel for, between others that become integer
MIXED = (
    HEAD
    + """g (float[1,3,8,8] x) => (float[1,4,16,16] y) {
    [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [relu_1] b = Relu(a)
    [up_1] c = ConvTranspose<strides=[2,2]>(b, w2, b2)
    [conv_2] d = Conv<pads=[1,1,1,1]>(c, w3, b3)
    [norm_1] e = LayerNormalization<axis=-1>(d, gain)
    [conv_3] y = Conv<pads=[1,1,1,1]>(e, w4, b4)
}"""
)
SHAPES = {
    "w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 2, 2), "b2": (4,), "w3": (4, 4, 3, 3),
    "b3": (4,), "gain": (16,), "w4": (4, 4, 3, 3), "b4": (4,),
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Path, Path, QuantizedModel]:
    return quantized(tmp_path_factory.mktemp("mixed"), float_model(MIXED, SHAPES))


# --- coverage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_record", [True, False])
def test_what_coverage_calls_float_is_what_the_record_left_float(mixed, with_record):
    _, int8, record = mixed
    share = coverage(graph(int8), record.quantized_nodes if with_record else None, X86)
    assert {node.node for node in record.float_nodes} == {"up_1", "norm_1"}
    assert share.operators.total - share.operators.integer == len(record.float_nodes)
    assert share.macs.total - share.macs.integer == 4 * 8 * 8 * 4 * 2 * 2  # those of up_1
    assert share.parameters.total - share.parameters.integer == 4 * 4 * 2 * 2 + 4 + 16


def test_an_operator_with_a_float_weight_is_not_integer(mixed):
    _, int8, record = mixed
    model = onnx.load(int8)
    (conv,) = (node for node in model.graph.node if node.name == "conv_2")
    conv.input[1] = "w.float"
    weight = np.zeros((4, 4, 3, 3), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w.float"))
    changed = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    before = coverage(graph(int8), record.quantized_nodes, X86)
    for selected in (record.quantized_nodes, None):
        after = coverage(changed, selected, X86)
        assert after.operators.integer == before.operators.integer - 1
        assert before.macs.integer - after.macs.integer == 16 * 16 * 4 * 4 * 3 * 3


# --- audit --------------------------------------------------------------------------------------


def test_without_a_record_an_operator_left_float_is_no_fault(mixed):
    rows = audit(graph(mixed[1]))
    assert [row.node for row in rows] == ["conv_1", "conv_2", "conv_3"]
    require_sound(rows, "int8.onnx")


# --- against the FP32 graph ---------------------------------------------------------------------


def constant(model: onnx.ModelProto, node: str, index: int, part: int) -> onnx.TensorProto:
    """What is stored for an input of a node: its integers (part 0) or their scale (1)."""
    makers = {output: n for n in model.graph.node for output in n.output}
    (found,) = (n for n in model.graph.node if n.name == node)
    wanted = makers[found.input[index]].input[part]
    return next(tensor for tensor in model.graph.initializer if tensor.name == wanted)


def change(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    old = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(old.dtype), tensor.name))


def one_step(array: np.ndarray) -> np.ndarray:
    moved = array.copy()
    moved.flat[0] += 1 if moved.flat[0] < 0 else -1
    return moved


def test_a_sound_file_holds_the_constants_of_fp32(mixed):
    fp32, int8, record = mixed
    rows = audit(graph(int8), record.quantized_nodes, graph(fp32))
    assert [fault for row in rows for fault in row.faults] == []


@pytest.mark.parametrize(
    ("index", "part", "changed", "fault"),
    [
        (1, 0, one_step, "weight lies up to"),
        (1, 0, lambda array: array[::-1], "weight lies up to"),
        (1, 0, lambda array: np.where(array == -127, -128, array), "reaches −128"),
        (1, 1, lambda array: array * 1.001, "scale of its bias is not"),
        (2, 0, one_step, "bias lies up to"),
        (2, 1, lambda array: array * 1.001, "scale of its bias is not"),
    ],
)
def test_a_constant_that_is_not_fp32s_is_a_fault(mixed, index, part, changed, fault):
    fp32, int8, record = mixed
    model = onnx.load(int8)
    tensor = constant(model, "conv_2", index, part)
    change(tensor, changed(onnx.numpy_helper.to_array(tensor)))
    rows = audit(ir.from_proto(model), record.quantized_nodes, graph(fp32))
    faults = {row.node: row.faults for row in rows if row.faults}
    assert set(faults) == {"conv_2"}
    assert any(fault in found for found in faults["conv_2"])


def test_weights_put_at_each_others_place_are_faults(mixed):
    fp32, int8, record = mixed
    model = onnx.load(int8)
    pair = [constant(model, node, 1, 0) for node in ("conv_2", "conv_3")]
    for tensor, array in zip(
        pair, [onnx.numpy_helper.to_array(t) for t in pair[::-1]], strict=True
    ):
        change(tensor, array)
    rows = audit(ir.from_proto(model), record.quantized_nodes, graph(fp32))
    assert {row.node for row in rows if row.faults} == {"conv_2", "conv_3"}


def test_channels_whose_scale_was_widened_for_their_bias_are_sound(tmp_path):
    model = float_model(MIXED, SHAPES)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).copy()
        if tensor.name == "w3":
            array[0] *= 1e-9
            change(tensor, array)
    fp32, int8, record = quantized(tmp_path, model)
    assert any("tiny beside the bias" in finding.what for finding in record.findings)
    require_sound(audit(graph(int8), record.quantized_nodes, graph(fp32)), "int8.onnx")


@pytest.mark.parametrize("bias", [(1, 5), (1,), ()])
def test_the_bias_of_a_gemm_may_broadcast(tmp_path, bias):
    text = HEAD + "g (float[1,8] x) => (float[1,5] y) { [gemm_1] y = Gemm(x, w, b) }"
    fp32, int8, record = quantized(tmp_path, float_model(text, {"w": (8, 5), "b": bias}))
    require_sound(audit(graph(int8), record.quantized_nodes, graph(fp32)), "int8.onnx")


@pytest.mark.parametrize("made_from_it", [True, False])
def test_verify_holds_the_file_against_the_fp32_graph_of_its_record(mixed, tmp_path, made_from_it):
    fp32, int8, record = mixed
    model = onnx.load(int8)
    change(constant(model, "conv_2", 1, 0), np.ones((4, 4, 3, 3)))
    path = saved(model, tmp_path / "int8.onnx")
    facts = record.model.model_copy(update={"sha256": sha256_of_file(path)})
    source = record.fp32_sha256 if made_from_it else "0" * 64
    claimed = record.model_copy(update={"model": facts, "fp32_sha256": source})
    evidence = Evidence("m", fp32, fp32, path, X86, quantized=claimed)
    samples = Samples("s", {"x": np.zeros((2, 3, 8, 8), "f")})  # no labels: the next to be missed
    with pytest.raises(AuditError if made_from_it else DataError):
        verify(evidence, Regression(), samples, SECTION, tmp_path)


# --- other forms --------------------------------------------------------------------------------


def of_one_operator(op_type: str, folder: Path) -> Path:
    """A valid file of one quantized operator of ONNX Runtime, as far as onnxq looks into it."""
    node = onnx.helper.make_node(op_type, ["x"], ["y"], "n", domain="com.microsoft")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 4]) for n in "xy")
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    proto = onnx.helper.make_model(
        onnx.helper.make_graph([node], "g", [x], [y]), opset_imports=imports, ir_version=9
    )
    return saved(proto, folder / "other.onnx")


OTHERS = ["QLinearAdd", "QGemm", "QAttention", "ConvInteger", "MatMulInteger", "QLinearSigmoid"]


@pytest.mark.parametrize("op_type", OTHERS)
def test_the_qoperator_form_is_named_by_every_reader(op_type, tmp_path):
    path = of_one_operator(op_type, tmp_path)
    with pytest.raises(ModelError, match=r"reads the Q/DQ form .*" + op_type) as raised:
        refuse_other_forms(graph(path), path.name)
    assert raised.value.exit_code == 2
    with pytest.raises(AlreadyQuantizedError):
        refuse_quantized(load_model(path), path.name)


def test_inspect_and_verify_end_with_two_on_a_dynamic_file(tmp_path, capsys, mixed):
    dynamic = tmp_path / "dynamic.onnx"
    quantize_dynamic(mixed[0], dynamic)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 3, 8, 8), "f"), labels=np.arange(4))
    data = ["--data", str(tmp_path / "d.npz"), "--metric", "mae", "--max-drop", "1"]
    for arguments in (["inspect", dynamic], ["verify", mixed[0], dynamic, *data]):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert ended.value.code == 2
        assert "reads the Q/DQ form" in " ".join(capsys.readouterr().err.split())


def test_the_qdq_form_is_read(mixed):
    refuse_other_forms(graph(mixed[1]), "int8.onnx")
