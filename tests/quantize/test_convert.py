"""int8 and uint8 activations with zero points 128 apart, judged by onnxruntime and onnx."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnxruntime
import pytest
from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnxq.calibrate.readers import SampleReader
from onnxq.errors import DataError, ModelError, ParityError, StaleRecordError, UsageError
from onnxq.graph import load_model, values_of
from onnxq.plain.convert import convert_file
from onnxq.plain.in_range import samples_in_range
from onnxq.plain.quantize import record_of
from onnxq.qtypes import IntType
from onnxq.quantize.convert import convert, converted_record, require_same_numbers
from onnxq.quantize.shift import shift_activations
from onnxq.samples import Samples
from onnxq.store import sha256_of_file
from onnxq.target import load_target
from onnxq.verify.fusion import audit_fusion
from tests.onnx_text import model_of
from tests.verify.qdq import write
from tests.verify.test_fusion import NODES, SURROUNDINGS

from .nets import HEAD, Net, calibrated, outputs, residual, weights

U8, S8 = IntType.UINT8, IntType.INT8
X86 = load_target("ort-x86")


SIGNED = {
    "per_channel": True, "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8,
}  # fmt: skip


def by_onnxruntime(net: Net, *, opset: int = 17, **options: object) -> Path:
    """A file with int8 activations, as ``quantize_static`` writes it."""
    source, output = net.path, net.path.with_name("theirs.onnx")
    if opset != 17:
        source = net.path.with_name(f"opset{opset}.onnx")
        model = onnx.load(net.path)  # its operators are the same from 13 to 21
        model.opset_import[0].version = opset
        onnx.save(model, source)
    quantize_static(
        source,
        output,
        SampleReader(net.samples),
        **(SIGNED | options),
    )
    return output


def executed(path: Path) -> Counter[str]:
    """Operators that onnxruntime runs, by its own account."""
    saved = path.with_name("optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(saved)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(saved).graph.node)


def integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type in {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    }


def types_of_q(path: Path) -> set[str]:
    """Types of what every Q gives, by its zero point."""
    model = onnx.load(path)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return {
        str(arrays[node.input[2]].dtype)
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
    }


# --- files of onnxruntime.quantization ----------------------------------------------------------


@pytest.mark.parametrize(
    ("opset", "options"),
    [
        (13, {}),
        (17, {}),
        (21, {}),
        (17, {"per_channel": False}),
        (17, {"extra_options": {"UseQDQContribOps": True}}),
        (17, {"extra_options": {"DedicatedQDQPair": True}}),
        (17, {"extra_options": {"AddQDQPairToWeight": True}}),
        (17, {"extra_options": {"ActivationSymmetric": True}}),
    ],
)
def test_a_foreign_int8_file_computes_the_same_bits_and_fuses_every_convolution(
    tmp_path, opset, options
):
    net = residual(tmp_path)
    theirs = by_onnxruntime(net, opset=opset, **options)
    assert executed(theirs)["Conv"] + executed(theirs)["FusedConv"] > 0
    ours = tmp_path / "u8.onnx"
    made = convert(theirs, U8, net.samples, ours)
    onnx.checker.check_model(ours)
    assert types_of_q(theirs) == {"int8"}
    arrays = outputs(theirs, net.samples), outputs(ours, net.samples)
    assert arrays[0]["y"].tobytes() == arrays[1]["y"].tobytes()
    assert executed(ours)["QLinearConv"] == 2
    assert made.integers_compared > 0
    assert (made.was, made.became, made.samples) == (S8, U8, 16)
    assert made.converted.sha256 == sha256_of_file(ours)


def test_the_reference_evaluator_gives_the_same_bits_for_both(tmp_path):
    net = residual(tmp_path)
    theirs, ours = by_onnxruntime(net, opset=19), tmp_path / "u8.onnx"
    convert(theirs, U8, net.samples, ours)
    for row in net.samples.thinned(4).rows():
        found = [
            onnx.reference.ReferenceEvaluator(str(p)).run(None, row)[0] for p in (theirs, ours)
        ]
        assert found[0].tobytes() == found[1].tobytes()


def test_int8_weights_biases_and_scales_stay_as_they_are(tmp_path):
    net = residual(tmp_path)
    theirs, ours = by_onnxruntime(net), tmp_path / "u8.onnx"
    convert(theirs, U8, net.samples, ours)
    before, after = (
        {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
        for path in (theirs, ours)
    )
    kept = {name for name, array in before.items() if array.dtype != np.int8 or array.size > 10}
    assert {"w1_quantized", "w2_quantized", "w3_quantized", "b1_quantized"} <= kept
    for name in kept:
        np.testing.assert_array_equal(before[name], after[name])


def test_there_and_back_again_is_the_file_as_it_was(tmp_path):
    net = residual(tmp_path)
    theirs = by_onnxruntime(net)
    convert(theirs, U8, net.samples, tmp_path / "u8.onnx")
    convert(tmp_path / "u8.onnx", S8, net.samples, tmp_path / "s8.onnx")
    assert types_of_q(tmp_path / "s8.onnx") == {"int8"}
    first, last = integers(onnx.load(theirs)), integers(onnx.load(tmp_path / "s8.onnx"))
    assert sorted(a.tobytes() for a in first.values()) == sorted(a.tobytes() for a in last.values())


def test_uint8_weights_become_int8_where_activations_do(tmp_path):
    net = residual(tmp_path)
    theirs = by_onnxruntime(
        net, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8, per_channel=False
    )
    convert(theirs, S8, net.samples, tmp_path / "s8.onnx")
    assert {str(array.dtype) for array in integers(onnx.load(theirs)).values()} == {"uint8"}
    after = integers(onnx.load(tmp_path / "s8.onnx"))
    assert {str(array.dtype) for array in after.values()} == {"int8"}
    arrays = outputs(theirs, net.samples), outputs(tmp_path / "s8.onnx", net.samples)
    assert arrays[0]["y"].tobytes() == arrays[1]["y"].tobytes()


def test_what_is_of_the_wanted_type_already_is_refused_as_nothing_to_do(tmp_path):
    net = residual(tmp_path)
    convert(by_onnxruntime(net), U8, net.samples, tmp_path / "u8.onnx")
    with pytest.raises(ModelError, match="no int8 activation"):
        convert(tmp_path / "u8.onnx", U8, net.samples, tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_other_forms_are_refused(tmp_path):
    net = residual(tmp_path)
    theirs = by_onnxruntime(net, quant_format=QuantFormat.QOperator)
    with pytest.raises(ModelError, match="QOperator or dynamic form"):
        convert(theirs, U8, net.samples, tmp_path / "u8.onnx")
    quantize_dynamic(net.path, tmp_path / "dynamic.onnx")
    with pytest.raises(ModelError, match="QOperator or dynamic form"):
        convert(tmp_path / "dynamic.onnx", U8, net.samples, tmp_path / "u8.onnx")
    with pytest.raises(UsageError, match="not int32"):
        convert(theirs, IntType.INT32, net.samples, tmp_path / "u8.onnx")


# --- graphs by hand -----------------------------------------------------------------------------


def by_hand(text: str, *, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    known = {"s": np.float32(0.05), "z": np.int8(-3)} | constants
    return model_of(HEAD.replace("17", str(opset)) + text, **known)


def converted(folder: Path, model: onnx.ModelProto, to: IntType = U8) -> tuple[Path, Path, Samples]:
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(model, before)
    samples = samples_in_range(before, None)
    convert(before, to, samples, after)
    onnx.checker.check_model(after)
    for name, array in outputs(before, samples).items():
        assert array.tobytes() == outputs(after, samples)[name].tobytes()
    return before, after, samples


SUM = """g (float[1,4] x) => (float[1,4] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    c = DequantizeLinear(constant, s, z)
    [add_1] e = Add(d, c)
    f = QuantizeLinear(e, s, z)
    y = DequantizeLinear(f, s, z)
}"""


def test_a_constant_operand_is_shifted_with_the_activation_beside_it(tmp_path):
    constant = np.array([[-128, -5, 0, 127]], np.int8)
    _, after, _ = converted(tmp_path, by_hand(SUM, constant=constant))
    (array,) = (a for a in integers(onnx.load(after)).values() if a.size == 4)
    np.testing.assert_array_equal(array.astype(int), constant.astype(int) + 128)
    assert executed(after)["QLinearAdd"] == 1


MOVED = """g (float[1,4,4,4] x) => (float[1,2,2,8] y) {
    q = QuantizeLinear(x, s, z)
    m = MaxPool<kernel_shape=[2,2], strides=[2,2], pads=[0,0,0,0]>(q)
    t = Transpose<perm=[0,2,3,1]>(m)
    u = Concat<axis=3>(t, t)
    y = DequantizeLinear(u, s, z)
}"""


def test_operators_that_move_integers_move_shifted_ones(tmp_path):
    _, after, _ = converted(tmp_path, by_hand(MOVED))
    model = onnx.shape_inference.infer_shapes(onnx.load(after), strict_mode=True)
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    assert {kinds[name] for name in "qmtu"} == {onnx.TensorProto.UINT8}


PASSED = """g (int8[1,4] x) => (int8[1,4] y) {
    d = DequantizeLinear(x, s, z)
    [relu_1] e = Relu(d)
    [f_1] y = QuantizeLinear(e, s, z)
}"""


def test_integers_that_the_graph_takes_and_gives_keep_their_type_and_values(tmp_path):
    before, after, samples = converted(tmp_path, by_hand(PASSED))
    assert values_of(load_model(after)) == values_of(load_model(before))
    found = outputs(after, samples)["y"]
    assert found.dtype == np.int8
    assert len(np.unique(found)) > 2
    inside = {
        onnx.load(after).graph.initializer[i].data_type
        for i in range(len(onnx.load(after).graph.initializer))
    }
    assert onnx.TensorProto.UINT8 in inside


def test_a_zero_point_that_is_not_written_is_written_where_it_moves(tmp_path):
    text = """g (float[1,4] x) => (float[1,4] y) {
        q = QuantizeLinear<output_dtype=3>(x, s)
        y = DequantizeLinear(q, s)
    }"""
    model = by_hand(text, opset=21)
    model.ir_version = 10
    _, after, _ = converted(tmp_path, model)
    assert types_of_q(after) == {"uint8"}
    back = tmp_path / "back"
    back.mkdir()
    _, again, _ = converted(back, onnx.load(after), S8)
    assert types_of_q(again) == {"int8"}


def test_q_without_a_zero_point_is_uint8_and_becomes_int8(tmp_path):
    text = """g (float[1,4] x) => (float[1,4] y) {
        q = QuantizeLinear(x, s)
        y = DequantizeLinear(q, s)
    }"""
    _, after, _ = converted(tmp_path, by_hand(text), S8)
    assert types_of_q(after) == {"int8"}


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        ("i = Cast<to=6>(q) w = CastLike(i, z)", r"Cast `.*` computes on the integers `q`"),
        ("w = Abs(q)", "Abs `.*` computes on the integers"),
        (
            'w = Resize<mode="linear">(q, none, none, size)',
            "Resize `.*` computes on the integers",
        ),
    ],
)
def test_arithmetic_on_the_integers_themselves_is_refused_by_name(tmp_path, middle, says):
    text = f"""g (float[1,4] x) => (float[1,4] y) {{
        q = QuantizeLinear(x, s, z)
        {middle}
        y = DequantizeLinear(w, s, z)
    }}"""
    model = by_hand(text, size=np.array([1, 4]), none=np.zeros(0, np.float32))
    with pytest.raises(ModelError, match=says):
        shift_activations(model, U8, "m.onnx")


def test_a_zero_point_of_run_time_is_refused():
    text = """g (float[1,4] x, int8 zero) => (float[1,4] y) {
        q = QuantizeLinear(x, s, zero)
        y = DequantizeLinear(q, s, zero)
    }"""
    with pytest.raises(ModelError, match=r"`zero` of .* is computed at run time"):
        shift_activations(by_hand(text), U8, "m.onnx")


def test_a_tied_weight_stays_int8_where_it_is_a_weight_and_moves_where_it_is_an_operand(tmp_path):
    text = """g (float[1,4] x) => (float[4,4] y) {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        w = DequantizeLinear(tied, s, zero)
        o = DequantizeLinear(tied, s, zero)
        [mm_1] m = MatMul(d, w)
        n = QuantizeLinear(m, s, z)
        k = DequantizeLinear(n, s, z)
        [add_1] a = Add(k, o)
        b = QuantizeLinear(a, s, z)
        y = DequantizeLinear(b, s, z)
    }"""
    tied = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    _, after, _ = converted(tmp_path, by_hand(text, tied=tied, zero=np.int8(0)))
    found = [array for array in integers(onnx.load(after)).values() if array.shape == (4, 4)]
    assert sorted(str(array.dtype) for array in found) == ["int8", "uint8"]
    assert executed(after)["QLinearMatMul"] == executed(after)["QLinearAdd"] == 1


@pytest.mark.parametrize("around", ["both", "used as float too", "input used as float too"])
def test_whatever_is_float_for_int8_activations_is_integer_once_they_are_uint8(tmp_path, around):
    before, behind = SURROUNDINGS[around]
    mended = 0
    for name, text in NODES.items():
        body = before + text.replace("(A", "(d").replace(", A", ", d") + behind
        shape = "8,8" if name.startswith("Gemm") else "1,4,8,8"
        path = write(tmp_path / "s8.onnx", body, "int8", shape=shape)
        runs = samples_in_range(path, None)
        convert(path, U8, runs, tmp_path / "u8.onnx")
        old, new = audit_fusion(path), audit_fusion(tmp_path / "u8.onnx")
        assert "int8 activations on x86" not in {node.cause for node in new.nodes}
        mended += sum(node.cause == "int8 activations on x86" for node in old.nodes)
        assert [node.runs for node in new.nodes] == [node.elsewhere for node in old.nodes]
    assert (mended > 0) == (around != "used as float too")  # `d` twice is two uses of `q`


# --- the proof ----------------------------------------------------------------------------------


def a_wrong_scale(model: onnx.ModelProto) -> None:
    (last,) = (node for node in model.graph.node if "y" in node.output)
    (tensor,) = (t for t in model.graph.initializer if t.name == last.input[1])
    array = onnx.numpy_helper.to_array(tensor) * np.float32(1.0000002)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array), tensor.name))


def a_wrong_zero_point(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            for tensor in model.graph.initializer:
                if tensor.name == node.input[2] and tensor.data_type == onnx.TensorProto.UINT8:
                    array = onnx.numpy_helper.to_array(tensor) + np.uint8(1)
                    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array), tensor.name))
                    return


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(a_wrong_scale, "the output `y`"), (a_wrong_zero_point, "(the integers|the output)")],
)
def test_files_that_are_not_equal_are_told_apart(
    tmp_path, spoil: Callable[[onnx.ModelProto], None], says: str
):
    net = residual(tmp_path)
    original = load_model(by_onnxruntime(net))
    shifted = shift_activations(original, U8, "theirs.onnx")
    assert require_same_numbers(original, shifted, net.samples, "theirs.onnx") > 0
    spoil(shifted.model)
    with pytest.raises(ParityError, match=says):
        require_same_numbers(original, shifted, net.samples, "theirs.onnx")


# --- our own files -----------------------------------------------------------------------------


def test_the_record_of_our_own_file_goes_along(tmp_path):
    int8 = residual(tmp_path).quantize("stm32n6")
    output = tmp_path / "u8.onnx"
    made, record = convert_file(int8.path, X86, None, output)
    assert record is not None
    assert record == record_of(output)
    assert (record.target, record.activation_type) == ("ort-x86", U8)
    for name, old in int8.record.activations.items():
        new = record.activations[name]
        assert (new.scale, new.zero_point, new.type) == (old.scale, old.zero_point + 128, U8)
    assert made.source.sha256 in record.steps[-1]
    with pytest.raises(StaleRecordError, match="another file"):
        converted_record(record, made, "ort-x86")


def test_the_file_that_it_is_made_from_is_not_overwritten(tmp_path):
    int8 = residual(tmp_path).quantize("stm32n6")
    before = int8.path.read_bytes()
    with pytest.raises(UsageError, match="would overwrite"):
        convert_file(int8.path, X86, None, int8.path)
    assert int8.path.read_bytes() == before


def test_a_free_size_needs_samples(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
            [c] y = Conv<kernel_shape=[1,1]>(x, w, b)
        }""",
        w=weights(4, 3, 1, 1),
        b=weights(4),
    )
    int8 = net.quantize("stm32n6").path
    model = onnx.load(int8)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_param = "height"
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "free.onnx")
    with pytest.raises(DataError, match="`height` is free"):
        samples_in_range(tmp_path / "free.onnx", None)
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 3, 8, 8), np.float32))
    made, _ = convert_file(
        tmp_path / "free.onnx", X86, str(tmp_path / "x.npz"), tmp_path / "o.onnx"
    )
    assert (made.samples, made.made_up_data) == (2, False)
