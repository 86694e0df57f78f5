"""Every hazard with a file that holds it and a near one that does not.

What a finding says of the values that come out is held against ONNX Runtime without optimization.
"""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnxruntime.quantization import QuantType

from handoff.qdq_models import quantized_net, with_constants
from onnxq.handoff.hazards import hazards
from onnxq.target import load_target

N6 = load_target("stm32n6")
HEAD = '<ir_version: 9, opset_import: ["" : 17]>\n'
TWO_BRANCHES = (
    HEAD
    + """g (float[1,4,4,4] a, float[1,4,4,4] b) => (float[1,{out},4,4] y) {{
    aq = QuantizeLinear(a, sa, za)  ad = DequantizeLinear(aq, sa, za)
    bq = QuantizeLinear(b, sb, zb)  bd = DequantizeLinear(bq, sb, zb)
    r = {operator}(ad, bd)
    {behind}
}}"""
)
TO_OUTPUT = "rq = QuantizeLinear(r, sr, zr) y = DequantizeLinear(rq, sr, zr)"
TO_RELU = "e = Relu(r) rq = QuantizeLinear(e, sr, zr) y = DequantizeLinear(rq, sr, zr)"
TO_CONV = TO_OUTPUT.replace("y =", "rd =") + " y = Sigmoid(rd)"
CONV = (
    HEAD
    + """g (float[1,2,4,4] x) => (float[1,3,4,4] y) {
    xq = QuantizeLinear(x, sx, zx)  xd = DequantizeLinear(xq, sx, zx)
    wd = DequantizeLinear<axis=0>(w, sw, zw)
    bd = DequantizeLinear<axis=0>(b, sb)
    c = Conv(xd, wd, bd)
    cq = QuantizeLinear(c, sc, zc)  y = DequantizeLinear(cq, sc, zc)
}"""
)


def grid(low, high):
    """Scale and int8 zero point of a range."""
    scale = (high - low) / 255
    return np.float32(scale), np.int8(round(-128 - low / scale))


def branches(operator, a, b, joint, behind=TO_OUTPUT, out=4):
    text = TWO_BRANCHES.format(operator=operator, behind=behind, out=out)
    constants = {}
    for name, (low, high) in {"a": a, "b": b, "r": joint}.items():
        constants[f"s{name}"], constants[f"z{name}"] = grid(low, high)
    return with_constants(text, **constants)


def conv(**changes):
    """A 1x1 Conv with weights and biases of 1/127 to 1 on data in [0, 1], and output in [-2, 2]."""
    s_x, z_x = grid(0, 1)
    s_c, z_c = grid(-2, 2)
    scales = np.full(3, 1 / 127, np.float32)
    constants = {
        "sx": s_x, "zx": z_x, "sc": s_c, "zc": z_c,
        "w": np.array([[127, -50], [-127, 20], [90, 100]], np.int8).reshape(3, 2, 1, 1),
        "sw": scales, "zw": np.zeros(3, np.int8),
        "b": np.array([500, -400, 0], np.int32), "sb": (s_x * scales).astype(np.float32),
    }  # fmt: skip
    constants |= changes
    return with_constants(CONV, **constants)


def run(model, **inputs):
    """The first output, of the graph as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)[0]


def said(model, **options):
    return [(finding.where, finding.what) for finding in hazards(model, N6, **options)]


def test_a_sound_file_has_no_hazard():
    assert said(conv()) == []
    assert said(branches("Add", (-1, 1), (-2, 2), (-3, 3))) == []
    assert said(branches("Concat<axis=1>", (-1, 1), (-2, 2), (-2, 2), out=8)) == []


@pytest.mark.parametrize("activation", [QuantType.QInt8, QuantType.QUInt8])
def test_what_onnxruntimes_quantizer_writes_of_a_plain_net_has_none(tmp_path, activation):
    assert said(onnx.load(quantized_net(tmp_path, activation))) == []


# --- sums ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [TO_OUTPUT, TO_RELU])
@pytest.mark.parametrize("operator", ["Add", "Sub"])
def test_a_residual_sum_of_very_different_steps_is_named_with_both(operator, behind):
    ((where, what),) = said(branches(operator, (-1, 1), (-64, 64), (-65, 65), behind))
    assert where == f"{operator} `n4`"
    assert "`ad` in steps of 0.00784 to `bd` in steps of 0.502: 64 steps" in what
    assert "6.0 of its 8 bits" in what


def test_the_bits_that_are_said_to_be_lost_in_a_sum_are_lost():
    model = branches("Add", (-1, 1), (-64, 64), (-65, 65))
    equal = branches("Add", (-1, 1), (-1, 1), (-2, 2))
    fine = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    zero = np.zeros_like(fine)
    unlike, alike = run(model, a=fine, b=zero), run(equal, a=fine, b=zero)
    assert len(np.unique(alike)) == 64
    assert len(np.unique(unlike)) <= 256 / 2**6 + 1  # both ends of a range that zero splits


def test_how_far_apart_is_for_the_caller_to_say():
    model = branches("Add", (-1, 1), (-4, 4), (-5, 5))
    assert said(model) == []
    assert len(said(model, ratio=4)) == 1


# --- what is joined -----------------------------------------------------------------------------


def test_a_concat_of_unlike_ranges_is_named_with_what_is_left_to_the_narrow_one():
    model = branches("Concat<axis=1>", (0, 1), (0, 100), (0, 100), TO_CONV, out=8)
    ((where, what),) = said(model)
    assert where == "Concat `n4`"
    assert "`ad` (0 to 1) to values 100 times as wide" in what
    assert "3 of 256 integers" in what


def test_the_integers_that_are_left_are_those_that_come_out():
    model = branches("Concat<axis=1>", (0, 1), (0, 100), (0, 100), TO_OUTPUT, out=8)
    fine = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 4, 4, 4)
    joined = run(model, a=fine, b=np.zeros_like(fine))
    assert len(np.unique(joined[:, :4])) in (3, 4)  # a range of three steps holds four points


def test_a_concat_of_values_of_one_sign_and_of_both_is_named():
    ((_, what),) = said(branches("Concat<axis=1>", (0, 1), (-1, 1), (-1, 1), TO_CONV, out=8))
    assert "of the other sign too" in what
    assert "128 of 256 integers" in what
    slightly = branches("Concat<axis=1>", (0, 1), (-0.1, 1), (-0.1, 1), TO_CONV, out=8)
    assert said(slightly) == []


def test_boxes_and_scores_in_one_output_are_named_as_such():
    model = branches("Concat<axis=1>", (0, 1), (0, 640), (0, 640), out=8)
    (finding,) = hazards(model, N6)
    assert finding.where == "output `y`, Concat `n4`"
    assert "an output each" in finding.do


def test_a_head_with_channels_that_cannot_reach_far_is_named_with_them():
    weak = np.array([1 / 127, 1 / 127, 1e-5], np.float32)
    model = conv(sw=weak, sb=(conv_scale() * weak).astype(np.float32))
    ((where, what),) = said(model)
    assert where == "output `y`, Conv `n4`"
    assert "channels 2 of 3" in what
    assert "channel 2 has 0.1 of 256 integers" in what


def test_the_bound_on_a_channel_holds():
    weak = np.array([1 / 127, 1 / 127, 4e-4], np.float32)
    model = conv(sw=weak, sb=(conv_scale() * weak).astype(np.float32))
    ((_, what),) = said(model)
    levels = float(what.split(" has ")[1].split(" of 256")[0])
    data = np.random.default_rng(0).random((1, 2, 4, 4)).astype(np.float32)
    data[0, :, 0, 0], data[0, :, 0, 1] = 0, 1
    out = run(model, x=data)
    assert len(np.unique(out[0, 2])) <= levels + 2  # what is so wide touches that many points


def conv_scale():
    return grid(0, 1)[0]


# --- constants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [2**31 - 1, -(2**31)])
def test_a_bias_that_is_cut_off_at_the_end_of_int32_is_named_with_its_channel(end):
    ((where, what),) = said(conv(b=np.array([0, end, 3], np.int32)))
    assert where == "Conv `n4`"
    assert "biases of channels 1 are cut off" in what


def test_a_sum_that_can_leave_int32_is_named_with_its_figures():
    edge = 2**31 - 1 - 255 * 177  # channel 0 multiplies by 127 and -50
    assert said(conv(b=np.array([edge, 0, 0], np.int32))) == []
    ((_, what),) = said(conv(b=np.array([edge + 1, 0, 0], np.int32)))
    assert f"channel 0 has a bias of {edge + 1} and products of up to {255 * 177}" in what


def test_a_channel_of_zero_weights_is_named():
    weights = np.array([[127, -50], [0, 0], [90, 100]], np.int8).reshape(3, 2, 1, 1)
    model = conv(w=weights)
    ((where, what),) = said(model)
    assert where == "Conv `n4`"
    assert "channels 1 of 3 are all zero" in what
    random = np.random.default_rng(0)
    rows = [random.random((1, 2, 4, 4)).astype(np.float32) for _ in range(2)]
    first, second = (run(model, x=row) for row in rows)
    assert np.array_equal(first[0, 1], second[0, 1])


@pytest.mark.parametrize("cast", [True, False])
def test_a_channel_of_zero_weights_is_found_in_four_bits_too(cast):
    model = conv()
    model.opset_import[0].version = 21
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "zw")
    four = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, [3, 2, 1, 1], [7, -3, 1, 2, 0, 0])
    weight.CopyFrom(four)
    if cast:
        dequantize = next(node for node in model.graph.node if node.input[0] == "w")
        dequantize.input[0] = "w8"
        node = onnx.helper.make_node("Cast", ["w"], ["w8"], name="cast", to=onnx.TensorProto.INT8)
        model.graph.node.insert(0, node)
    else:
        zero.CopyFrom(onnx.helper.make_tensor("zw", onnx.TensorProto.INT4, [3], [0, 0, 0]))
    onnx.checker.check_model(model, full_check=True)
    assert ["channels 2 of 3 are all zero" in what for _, what in said(model)] == [True]


def test_a_head_behind_a_relu_is_a_head():
    model = branches("Concat<axis=1>", (0, 1), (0, 640), (0, 640), TO_RELU, out=8)
    assert [where for where, _ in said(model)] == ["output `y`, Concat `n4`"]


# --- scales -------------------------------------------------------------------------------------


def test_a_subnormal_scale_is_named_with_its_place():
    small = np.array([1 / 127, 1e-39, 1 / 127], np.float32)
    places = dict(said(conv(sw=small)))
    assert places["weight of Conv `n4`"].startswith("one of 3 scales is subnormal")
    ((where, what),) = said(conv(sc=np.float32(1e-40)))
    assert where == "value `c`"
    assert what.startswith("the scale is subnormal")


@pytest.mark.parametrize("scale", [0.0, -0.1, np.inf, np.nan])
def test_a_scale_that_is_no_positive_number_is_named(scale):
    places = dict(said(conv(sc=np.float32(scale))))
    assert "is not a positive number" in places["value `c`"]


def test_the_scale_of_a_tensor_that_was_always_zero_is_named():
    ((where, what),) = said(conv(sc=np.float32(1e-4 / 255), zc=np.int8(-128)))
    assert where == "value `c`"
    assert "zero on every sample" in what


def test_onnxruntimes_mark_of_such_a_tensor_is_known_and_picture_bytes_are_not_taken_for_it():
    marked = said(conv(sc=np.float32(1), zc=np.int8(0)))
    assert [where for where, _ in marked] == ["value `c`"]
    assert said(conv(sx=np.float32(1), zx=np.int8(0))) == []
