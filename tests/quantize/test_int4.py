"""4-bit weights in the file: judged by onnx's own packing and reference, and by ONNX Runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxq.errors import QuantizationError, TargetRuleError
from onnxq.graph import load_model, shapes_of
from onnxq.qdq import stored_integers
from onnxq.qtypes import IntType
from onnxq.quantize.blocks import block_view
from onnxq.quantize.convert import convert
from onnxq.quantize.int4 import Packed, pack, store_packed
from onnxq.quantize.least_error import least_error_scales, squared_errors
from onnxq.quantize.stage import quantize
from onnxq.recipe import NodePrecision, PartSection, PartValue, QuantizeSection
from onnxq.runtime import Session, executed_operators, with_outputs
from onnxq.splitting.cut import cut_part
from onnxq.target import load_target
from onnxq.verify.audit import audit, coverage, require_sound
from onnxq.verify.fusion import audit_fusion

from .nets import HEAD, Int8, Net, calibrated, outputs, residual

RUNTIMES = ("ort-x86", "ort-arm64")
FOUR = QuantizeSection(
    weights="int4",
    precision=tuple(NodePrecision(name=n, weights="int4") for n in ("conv_2", "gemm_1")),
)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return residual(tmp_path_factory.mktemp("int4"))


def made(net: Net, target: str, section: QuantizeSection = FOUR) -> Int8:
    output = net.path.with_name(
        f"{target}-{section.weights}-{section.storage}-{section.block}.onnx"
    )
    record = quantize(net.path, net.ranges, load_target(target), section, output)
    return Int8(net, output, record, onnx.load(output))


def four_bits(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.INT4}


# --- storage ------------------------------------------------------------------------------------


@given(hnp.arrays(np.int8, hnp.array_shapes(max_dims=4, max_side=7), elements=st.integers(-8, 7)))
def test_packed_integers_are_those_that_onnx_reads(integers):
    tensor = TensorProto(
        data_type=TensorProto.INT4, dims=integers.shape, raw_data=pack(integers).tobytes()
    )
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), integers)
    assert len(tensor.raw_data) == (integers.size + 1) // 2


@pytest.mark.parametrize("outside", [-9, 8])
def test_integers_of_more_bits_are_refused(outside):
    with pytest.raises(ValueError, match="4 bits hold -8 to 7"):
        pack(np.array([0, outside], np.int8))


@pytest.mark.parametrize("target", RUNTIMES)
def test_a_weight_takes_half_a_byte_in_the_file(net, target):
    packed = four_bits(made(net, target).model)
    assert {name: len(tensor.raw_data) for name, tensor in packed.items()} == {
        "w2.i4": 8 * 9 // 2,
        "w3.i4": 80 // 2,
    }


def test_the_weights_are_those_of_onnx_own_dequantization_of_int4(net):
    int8 = made(net, "ort-x86")
    readers = {node.input[0]: node for node in int8.model.graph.node}
    for name, tensor in four_bits(int8.model).items():
        cast = readers[name]
        dq = readers[cast.output[0]]
        given_by = {t.name: t for t in int8.model.graph.initializer}
        scale = numpy_helper.to_array(given_by[dq.input[1]])
        direct = helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0)
        graph = helper.make_graph(
            [direct], "g", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [onnx.TensorProto.FromString(tensor.SerializeToString()),
             numpy_helper.from_array(scale, "s")],
        )  # fmt: skip
        graph.initializer[0].name = "w"
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
        (wanted,) = ReferenceEvaluator(model).run(None, {})
        probe = onnx.ModelProto()
        probe.CopyFrom(int8.model)
        del probe.graph.output[:]
        probe.graph.output.append(
            helper.make_tensor_value_info(dq.output[0], TensorProto.FLOAT, None)
        )
        (row,) = [next(iter(net.samples.rows()))]
        found = Session(probe.SerializeToString(), optimization="none").run(row)
        assert np.array_equal(found[dq.output[0]], wanted)


@pytest.mark.parametrize("optimization", ["none", "full"])
@pytest.mark.parametrize("target", RUNTIMES)
def test_the_same_numbers_stored_as_int8_give_the_same_bits(net, target, optimization):
    packed = made(net, target)
    wide = made(net, target, FOUR.model_copy(update={"storage": "int8"}))
    assert four_bits(packed.model)
    assert not four_bits(wide.model)
    assert wide.model.opset_import[0].version == 17
    for name, values in packed.outputs(optimization).items():
        assert values.tobytes() == wide.outputs(optimization)[name].tobytes()


def test_every_operator_runs_on_integers_as_with_int8_weights(net):
    four = [node.op_type for node in executed_operators(made(net, "ort-x86").path).graph.node]
    eight = made(net, "ort-x86", QuantizeSection())
    assert four == [node.op_type for node in executed_operators(eight.path).graph.node]
    assert four.count("QLinearConv") == 2
    assert "QGemm" in four


def test_a_file_with_the_other_activations_keeps_its_packed_weights(net, tmp_path):
    source = made(net, "ort-x86")
    output = tmp_path / "s8.onnx"
    convert(source.path, IntType.INT8, net.samples, output)
    assert four_bits(onnx.load(output)).keys() == four_bits(source.model).keys()
    for name, values in outputs(output, net.samples).items():
        assert values.tobytes() == source.outputs()[name].tobytes()


def test_an_opset_without_int4_and_a_constant_with_other_readers_are_refused(net):
    model = made(net, "ort-x86", QuantizeSection()).model
    weight = next(t.name for t in model.graph.initializer if t.name.endswith("w2.i"))
    with pytest.raises(QuantizationError, match="need opset 21"):
        store_packed(model, {weight: Packed("w.4")})
    model.opset_import[0].version = 21
    with pytest.raises(QuantizationError, match="cannot be stored in 4 bits"):
        store_packed(model, {weight: Packed("w.4")})


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", RUNTIMES)
def test_integers_lie_within_7_and_the_record_says_how_far_weights_were_cut(net, target):
    int8 = made(net, target)
    for tensor in four_bits(int8.model).values():
        integers = numpy_helper.to_array(tensor).astype(np.int8)
        assert np.abs(integers).max() == 7
    assert int8.record.weight_type is IntType.INT4
    assert set(int8.record.moved) <= {"conv_2", "gemm_1"}


@pytest.mark.parametrize("kind", ["normal", "laplace"])
def test_4_bit_scales_are_within_a_hundredth_of_the_best_of_many(kind):
    random = np.random.default_rng(0)
    rows = getattr(random, kind)(size=(6, 300)).astype(np.float32)
    largest = np.abs(rows).max(1) / np.float32(7)
    found = least_error_scales(rows, largest, IntType.INT4)
    shares = np.linspace(0.3, 1, 2001).astype(np.float32)
    tried = np.array([squared_errors(rows, largest * s, IntType.INT4) for s in shares])
    assert np.all(squared_errors(rows, found, IntType.INT4) <= 1.01 * tried.min(0))


# --- targets ------------------------------------------------------------------------------------


def test_a_target_that_reads_no_int4_is_told_and_offered_int8_storage(net):
    with pytest.raises(TargetRuleError, match="form of file that nobody has published") as caught:
        made(net, "stm32n6")
    assert "storage: int8" in caught.value.do
    wide = made(net, "stm32n6", FOUR.model_copy(update={"storage": "int8"}))
    assert wide.record.weight_precision["conv_2"].stored is IntType.INT8
    integers = wide.arrays["w2.i"]
    assert integers.dtype == np.int8
    assert np.abs(integers).max() == 7


def test_16_bit_activations_are_written_for_a_runtime_and_refused_by_the_npu(net):
    wide = QuantizeSection(precision=(NodePrecision(name="conv_2", activations="int16"),))
    with pytest.raises(TargetRuleError, match="8-bit activations alone"):
        made(net, "stm32n6", wide)
    int8 = made(net, "ort-x86", wide)
    kinds = {name: p.type for name, p in int8.record.activations.items()}
    assert {name for name, kind in kinds.items() if kind is IntType.UINT16} >= {"b", "d"}
    assert kinds["x"] is IntType.UINT8
    assert int8.error() < 4


# --- blocks -------------------------------------------------------------------------------------

WIDE = (
    HEAD
    + """g (float[1,8,6,6] x) => (float[1,5] y) {
    [conv_1] a = Conv(x, w1)
    [conv_2] b = Conv<pads=[1,1,1,1]>(a, w2, b2)
    [conv_3] c = Conv<group=2>(b, w3)
    [gap_1] d = GlobalAveragePool(c)
    [flat_1] e = Flatten(d)
    [gemm_1] f = Gemm(e, w4)
    [gemm_2] y = Gemm<transB=1>(f, w5)
}"""
)
BLOCKS = QuantizeSection(
    weights="int4", block=16, precision=(NodePrecision(name="*", weights="int4"),)
)


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Net:
    random = np.random.default_rng(3)

    def uneven(*shape: int) -> np.ndarray:
        spread = random.uniform(0.02, 1, (*shape[:2], *(1,) * (len(shape) - 2)))
        return (random.laplace(size=shape) * spread).astype(np.float32)

    return calibrated(
        tmp_path_factory.mktemp("blocks"), WIDE, w1=uneven(24, 8, 1, 1), w2=uneven(32, 24, 3, 3),
        b2=uneven(32, 1)[:, 0], w3=uneven(48, 16, 1, 1), w4=uneven(48, 20), w5=uneven(5, 20),
    )  # fmt: skip


@pytest.mark.parametrize("optimization", ["none", "full"])
@pytest.mark.parametrize("target", RUNTIMES)
def test_blocks_compute_what_the_same_integers_do_a_byte_each(wide, target, optimization):
    packed = made(wide, target, BLOCKS)
    bytewise = made(wide, target, BLOCKS.model_copy(update={"storage": "int8"}))
    for name, values in packed.outputs(optimization).items():
        assert values.tobytes() == bytewise.outputs(optimization)[name].tobytes()


def test_blocks_are_folded_at_load_and_every_operator_runs_on_integers(wide):
    operators = [
        n.op_type for n in executed_operators(made(wide, "ort-x86", BLOCKS).path).graph.node
    ]
    assert operators.count("QLinearConv") == 3
    assert operators.count("QGemm") == 2
    assert not {"Mul", "Cast", "Conv", "Gemm"} & set(operators)


def test_the_record_says_how_long_blocks_are_and_a_multiplier_takes_4_bits(wide):
    int8 = made(wide, "ort-x86", BLOCKS)
    sizes = {name: each.block for name, each in int8.record.weight_precision.items()}
    # what a channel sums: 8, 24 · 9, 16, 48 (groups of 2: 16) and 20 numbers
    assert sizes == {"conv_1": 0, "conv_2": 12, "conv_3": 8, "gemm_1": 16, "gemm_2": 10}
    factors = [t for t in int8.model.graph.initializer if t.data_type == TensorProto.UINT4]
    assert len(factors) == 4
    for tensor in factors:
        values = numpy_helper.to_array(tensor).astype(int)
        assert values.min() >= 1
        assert len(tensor.raw_data) == (values.size + 1) // 2


def test_a_part_of_a_graph_keeps_its_packed_weights_and_their_integers(wide):
    int8 = made(wide, "ort-x86", BLOCKS)
    part = PartSection(
        name="second", inputs=(PartValue(tensor="b"),), outputs=(PartValue(tensor="y"),)
    )
    cut = cut_part(load_model(int8.path), part, shapes_of(load_model(wide.path)))
    assert set(four_bits(cut)) == {"w3.i4", "w4.i4", "w5.i4"}
    whole = with_outputs(load_model(int8.path), ["b.d", "y"])
    row = next(iter(wide.samples.rows()))
    between, wanted = Session(whole.SerializeToString(), optimization="none").run(row).values()
    found = Session(cut.SerializeToString(), optimization="none").run({"b": between})
    assert np.array_equal(found["y"], wanted)


def test_blocks_lose_less_than_channels_do(wide):
    def error(section: QuantizeSection) -> float:
        model = ir.from_proto(load_model(made(wide, "ort-x86", section).path))
        exact = ir.from_proto(load_model(wide.path))
        weights = {
            str(n.name): n.inputs[1].const_value.numpy() for n in exact.graph if len(n.inputs) > 1
        }
        total = 0.0
        for node in model.graph:
            if node.name in weights:
                dq = node.inputs[1].producer()
                axis = dq.attributes.get_int("axis", 1)
                integers, scale = stored_integers(dq), dq.inputs[1].const_value.numpy()
                shape = [-1 if dim == axis else 1 for dim in range(integers.ndim)]
                lost = integers * scale.reshape(shape) - weights[str(node.name)]
                total += float(np.square(lost, dtype=np.float64).sum())
        return total

    assert error(BLOCKS) < 0.8 * error(BLOCKS.model_copy(update={"block": None}))


def test_the_audit_takes_blocks_for_what_they_are(wide):
    int8 = made(wide, "ort-x86", BLOCKS)
    graph, exact = (ir.from_proto(load_model(path)) for path in (int8.path, wide.path))
    rows = audit(graph, int8.record.quantized_nodes, exact, int8.record.moved)
    require_sound(rows, "blocks")
    assert {row.weight_type for row in rows if row.weight_type} == {"int4"}
    share = coverage(graph, int8.record.quantized_nodes, load_target("ort-x86"))
    assert share.operators.integer == share.operators.total
    fused = audit_fusion(int8.path)
    assert not fused.findings
    assert not [node for node in fused.nodes if node.runs == "float"]


def test_where_sums_of_pairs_saturate_no_weight_of_a_block_leaves_63(wide):
    int8 = made(wide, "ort-x86-avx2", BLOCKS)
    for tensor in int8.model.graph.initializer:
        if tensor.data_type == TensorProto.UINT4:
            assert numpy_helper.to_array(tensor).astype(int).max() <= 9


@given(st.integers(1, 40), st.integers(1, 300), st.integers(8, 64))
def test_blocks_cut_a_sum_evenly_or_not_at_all(channels, summed, size):
    view = block_view((channels, summed), 0, size)
    if view is None:
        assert all(summed % each for each in range(8, min(size, summed - 1) + 1))
    else:
        assert view[0] == channels
        assert view[1] * view[2] == summed
        assert 8 <= view[2] <= size


def test_block_and_storage_without_4_bits_are_refused():
    with pytest.raises(ValueError, match="speak of 4-bit weights"):
        QuantizeSection(block=16)
    with pytest.raises(ValueError, match="speak of 4-bit weights"):
        QuantizeSection(storage="int8")
