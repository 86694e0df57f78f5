"""Which node gets how many bits: names, patterns, and what keeps 8 where 4 are asked for."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx.shape_inference import infer_shapes

from onnxq.errors import QuantizationError, TargetRuleError
from onnxq.qtypes import IntType
from onnxq.quantize.precision import left_float, precision_of, refuse_unsupported
from onnxq.recipe import NodePrecision, QuantizeSection, Waiver
from onnxq.target import load_target
from tests.onnx_text import model_of

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
# a denoiser in small: a convolution of the image, two layers of a timestep, a skip connection
DENOISER = (
    HEAD
    + """g (float[1,3,8,8] image, float[1] t) => (float[1,3,8,8] y) {
    [unsq] t1 = Unsqueeze(t, one)
    [embed_1] e1 = Gemm(t1, e_a)
    [embed_2] e2 = Gemm(e1, e_b)
    [shape] e3 = Reshape(e2, nchw)
    [conv_in] a = Conv<pads=[1,1,1,1]>(image, w1)
    [mid_1] b = Conv<pads=[1,1,1,1]>(a, w2)
    [add_1] c = Add(b, e3)
    [mid_2] d = Conv<pads=[1,1,1,1]>(c, w2)
    [add_2] f = Add(d, a)
    [conv_out] y = Conv<pads=[1,1,1,1]>(f, w3)
}"""
)


def denoiser(text: str = DENOISER) -> ir.Model:
    model = model_of(
        text,
        one=np.array([1]), nchw=np.array([1, 4, 1, 1]),
        e_a=np.ones((1, 6), np.float32), e_b=np.ones((6, 4), np.float32),
        w1=np.ones((4, 3, 3, 3), np.float32), w2=np.ones((4, 4, 3, 3), np.float32),
        w3=np.ones((3, 4, 3, 3), np.float32),
    )  # fmt: skip
    return ir.from_proto(infer_shapes(model))


def section(*entries: NodePrecision, **more: object) -> QuantizeSection:
    return QuantizeSection(weights="int4", precision=entries, **more)  # type: ignore[arg-type]


def bits(model: ir.Model, asked: QuantizeSection) -> dict[str, str]:
    return {name: str(each.type) for name, each in precision_of(model, asked).weights.items()}


def test_ends_and_what_embeds_a_number_keep_8_bits_and_say_why():
    found = precision_of(denoiser(), section()).weights
    reasons = {name: each.reason for name, each in found.items() if each.type is IntType.INT8}
    assert reasons == {
        "embed_1": "embeds a number",
        "embed_2": "embeds a number",
        "conv_in": "first weighted node",
        "conv_out": "last weighted node",
    }
    assert {name for name, each in found.items() if each.stored is IntType.INT4} == {
        "mid_1",
        "mid_2",
    }


def test_a_depthwise_convolution_keeps_8_bits_and_a_grouped_one_does_not(tmp_path):
    text = (
        HEAD
        + """g (float[1,4,8,8] x) => (float[1,4,6,6] y) {
        [conv_1] a = Conv(x, w1)
        [deep] b = Conv<group=4>(a, w2)
        [wide] c = Conv<group=2>(b, w3)
        [deep_up] d = ConvTranspose<group=4>(c, w2)
        [last] y = Conv(d, w1)
    }"""
    )
    one = np.ones((4, 4, 1, 1), np.float32)
    model = model_of(
        text, w1=one, w2=np.ones((4, 1, 3, 3), np.float32), w3=np.ones((4, 2, 3, 3), np.float32)
    )
    found = precision_of(ir.from_proto(infer_shapes(model)), section()).weights
    assert found["wide"].type is IntType.INT4
    assert {found["deep"].reason, found["deep_up"].reason} == {"depthwise"}


def test_a_network_of_nothing_but_numbers_embeds_none():
    text = (
        HEAD
        + """g (float[1,1] t) => (float[1,4] y) {
        [g_1] a = Gemm(t, e_a)
        [g_2] b = Gemm(a, square)
        [g_3] y = Gemm(b, e_b)
    }"""
    )
    model = model_of(
        text, e_a=np.ones((1, 6), np.float32), square=np.ones((6, 6), np.float32),
        e_b=np.ones((6, 4), np.float32),
    )  # fmt: skip
    assert bits(ir.from_proto(infer_shapes(model)), section()) == {
        "g_1": "int8", "g_2": "int4", "g_3": "int8"
    }  # fmt: skip


def test_a_recipe_overrules_for_one_node_or_a_pattern_and_the_later_entry_counts():
    asked = section(
        NodePrecision(name="embed_*", weights="int4"),
        NodePrecision(name="embed_2", weights="int8", reason="sensitive"),
        NodePrecision(name="conv_in", weights="int4"),
    )
    found = precision_of(denoiser(), asked).weights
    assert found["embed_1"].type is IntType.INT4
    assert (found["embed_2"].type, found["embed_2"].reason) == (IntType.INT8, "sensitive")
    assert found["conv_in"].reason == "precision"


def test_single_nodes_can_have_4_bits_where_all_others_have_8():
    asked = QuantizeSection(precision=(NodePrecision(name="conv_in", weights="int4"),))
    assert bits(denoiser(), asked) == {"conv_in": "int4"}


def test_nodes_that_share_a_weight_have_its_bits_in_common():
    asked = section(NodePrecision(name="mid_2", weights="int8"))
    found = precision_of(denoiser(), asked).weights
    assert found["mid_1"].type is IntType.INT8
    assert found["mid_1"].reason == "shares the weight of mid_2"


def test_numbers_of_4_bits_can_be_stored_in_a_byte_each():
    precision = precision_of(denoiser(), section(storage="int8"))
    assert {each.stored for each in precision.weights.values()} == {IntType.INT8}
    assert precision.weights["mid_1"].type is IntType.INT4
    assert not precision.needs_opset_21
    assert precision_of(denoiser(), section()).needs_opset_21


def test_what_is_kept_float_is_excluded_with_its_reason():
    asked = QuantizeSection(
        exclude=(Waiver(name="add_1", reason="by hand"),),
        precision=(
            NodePrecision(name="mid_*", weights="float"),
            NodePrecision(name="embed_1", weights="float", reason="a timestep"),
        ),
    )
    assert left_float(denoiser(), asked) == {
        "add_1": "by hand",
        "mid_1": "precision: float weights",
        "mid_2": "precision: float weights",
        "embed_1": "a timestep",
    }


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("mid_3", "did you mean `mid_2`"),
        ("block_*", "no node is called `block_\\*`"),
        ("add_1", "no constant weight that could be int4"),
    ],
)
def test_a_name_that_means_nothing_is_refused(name, what):
    with pytest.raises(QuantizationError, match=what):
        precision_of(denoiser(), section(NodePrecision(name=name, weights="int4")))


def test_an_entry_that_asks_for_nothing_or_contradicts_itself_is_refused():
    with pytest.raises(ValueError, match="give `weights`, `activations` or both"):
        NodePrecision(name="mid_1")
    with pytest.raises(ValueError, match="a float node has no 16-bit activations"):
        NodePrecision(name="mid_1", weights="float", activations="int16")


@pytest.mark.parametrize("name", ["stm32n6", "stm32n6@2.2"])
def test_a_target_without_a_place_for_the_bits_says_so(name):
    four = QuantizeSection(precision=(NodePrecision(name="x", weights="int4"),))
    with pytest.raises(TargetRuleError, match="4-bit weights cannot be stored"):
        refuse_unsupported(four, [load_target("ort-x86"), load_target(name)])
    refuse_unsupported(four.model_copy(update={"storage": "int8"}), [load_target(name)])


@pytest.mark.parametrize("name", ["ort-x86", "ort-arm64", "ort-arm64-a72", "ort-x86-avx2"])
def test_runtimes_have_a_place_for_all_of_them(name):
    wide = NodePrecision(name="x", weights="int4", activations="int16")
    refuse_unsupported(QuantizeSection(precision=(wide,)), [load_target(name)])
