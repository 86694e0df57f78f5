"""Every rule of the STM32N6 with a graph that breaks it and a near one that keeps it.

A case: rule, breaking graph, keeping graph; ``Q`` and ``DQ`` make a value int8 and real again.
"""

import numpy as np
import onnx
import pytest

from handoff.qdq_models import with_constants
from onnxq.handoff.check import CHECKS, check
from onnxq.target import load_target, target_names

N6 = load_target("stm32n6")
HEAD = '<ir_version: 9, opset_import: ["" : {opset}{imports}]>'

CONSTANTS = {
    "s": np.float32(0.1),
    "z": np.int8(3),
    "u": np.uint8(3),
    "ss": np.full(4, 0.1, np.float32),
    "zz": np.zeros(4, np.int8),
    "one": np.float32(1),
    "w": np.ones((4, 4, 1, 1), np.int8),
    "w3": np.ones((4, 4), np.int8),
    "big": np.full((4, 4, 1, 1), 127, np.int8),
    "wu": np.ones((4, 4, 1, 1), np.uint8),
    "wf": np.ones((4, 4), np.float32),
    "z0": np.int8(0),
    "row": np.ones(4, np.float32),
    "matrix": np.ones((1, 4), np.float32),
    "b32": np.ones(4, np.int32),
    "b8": np.ones(4, np.int8),
    "bs": np.full(4, 0.01, np.float32),
    "i0": np.array([0], np.int64),
    "i1": np.array([1], np.int64),
    "i2": np.array([2], np.int64),
    "i4": np.array([4], np.int64),
    "im1": np.array([-1], np.int64),
    "huge": np.array([2**63 - 1], np.int64),
    "axes1": np.ones(4, np.int64),
    "axes4": np.array([0, 1, 2, 3], np.int64),
    "zeros4": np.zeros(4, np.int64),
    "ends4": np.array([1, 2, 2, 2], np.int64),
    "flat": np.array([1, 64], np.int64),
    "five": np.array([1, 2, 2, 4, 4], np.int64),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "sizes": np.array([1, 4, 8, 8], np.int64),
    "roi": np.zeros(0, np.float32),
    "none": np.zeros(0, np.float32),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
    "pads1": np.array([1, 1], np.int64),
    "low": np.float32(0),
    "high": np.float32(6),
    "int0": np.int64(0),
    "wide": np.int16(0),
    "wide4": np.ones((4, 4), np.int16),
    "shape4": np.array([1, 4, 4, 4], np.int64),
}


def graph(body, *, inputs="float[1,4,4,4] x", opset=17, imports="", outputs="float[] y"):
    """A model of ``body`` (x → y) with those of ``CONSTANTS`` that it uses."""
    text = f"{HEAD.format(opset=opset, imports=imports)}\ng ({inputs}) => ({outputs}) {{{body}}}"
    words = set(
        text.replace("(", " ").replace(")", " ").replace(",", " ").replace(";", " ").split()
    )
    model = with_constants(text, **{k: v for k, v in CONSTANTS.items() if k in words})
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def data(name="x"):
    """A Q/DQ pair after ``name``, giving ``{name}d``."""
    return f"{name}q = QuantizeLinear({name}, s, z) {name}d = DequantizeLinear({name}q, s, z) "


def ended(name="r"):
    """A Q/DQ pair that makes ``y`` of ``name``."""
    return f"yq = QuantizeLinear({name}, s, z) y = DequantizeLinear(yq, s, z)"


def between(operator, **options):
    """``operator`` (xd → r) between Q/DQ."""
    return graph(data() + operator + " " + ended(), **options)


RELU = "r = Relu(xd)"
WEIGHT = "wd = DequantizeLinear<axis=0>(w, ss, zz) "
CONV = WEIGHT + "r = Conv(xd, wd)"
FLAT = "float[1,4] x"


def conv_with_bias(bias):
    return between(WEIGHT + bias + " r = Conv(xd, wd, bd)")


def slicing(starts, ends, axes="i2"):
    return between(f"r = Slice(xd, {starts}, {ends}, {axes})")


def resize(attributes, tail="(xd, roi, scales)"):
    return between(f"r = Resize<{attributes}>{tail}")


GOOD_RESIZE = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'

CASES = {
    "domain": (
        between("r = com.foreign.Thing(xd)", imports=', "com.foreign" : 1'),
        between(RELU),
    ),
    "opset-imports": (between(RELU, imports=', "com.foreign" : 1'), between(RELU)),
    "activation-type": (
        graph("q = QuantizeLinear(x, s, u) y = DequantizeLinear(q, s, u)"),
        graph(ended("x")),
    ),
    "activation-per-tensor": (
        graph("q = QuantizeLinear<axis=1>(x, ss, zz) y = DequantizeLinear<axis=1>(q, ss, zz)"),
        graph(ended("x")),
    ),
    "weight-type": (
        between("wd = DequantizeLinear(wu, s, u) r = Conv(xd, wd)"),
        between(CONV),
    ),
    "weight-zero-point": (
        between("wd = DequantizeLinear(w, s, z) r = Conv(xd, wd)"),
        between("wd = DequantizeLinear(w, s, z0) r = Conv(xd, wd)"),
    ),
    "weight-axis": (
        between("wd = DequantizeLinear<axis=1>(w, ss, zz) r = Conv(xd, wd)"),
        between(CONV),
    ),
    "bias": (
        conv_with_bias("bd = DequantizeLinear<axis=0>(b32, ss)"),
        conv_with_bias("bd = DequantizeLinear<axis=0>(b32, bs)"),
    ),
    "opset": (between(RELU, opset=21), between(RELU, opset=13)),
    "opset-tested": (between(RELU, opset=18), between(RELU, opset=17)),
    "static-shapes": (
        between(RELU, inputs="float[1,4,n,4] x"),
        between(RELU),
    ),
    "batch": (between(RELU, inputs="float[2,4] x"), between(RELU, inputs="float[1,4] x")),
    "rank": (between("a = Reshape(xd, five) r = Relu(a)"), between(RELU)),
    "dimension": (
        between(RELU, inputs="float[1,65536] x"),
        between(RELU, inputs="float[1,65535] x"),
    ),
    "rank-1-input": (between(RELU, inputs="float[4] x"), between(RELU, inputs=FLAT)),
    "subgraph": (
        graph(
            "y = If (c) <then_branch = t () => (float[] a) {a = Identity(one)}, "
            "else_branch = e () => (float[] b) {b = Neg(one)}>",
            inputs="bool[1] c",
        ),
        between(RELU),
    ),
    "random-op": (between("r = RandomNormalLike(xd)"), between(RELU)),
    "forbidden-op": (between('r = Einsum<equation="bchw->bhwc">(xd)'), between(RELU)),
    "unfolded-shape": (
        graph("h = Shape(x) " + data() + "r = Reshape(xd, h) " + ended()),
        between("r = Reshape(xd, shape4)"),
    ),
    "software-op": (between("r = Softmax(xd)"), between("r = Sigmoid(xd)")),
    "float-island": (graph(data() + "y = Sigmoid(xd)"), between("r = Sigmoid(xd)")),
    "constant-operand": (
        between("r = MatMul(xd, xd)"),
        between("wd = DequantizeLinear(w3, s, z0) r = MatMul(xd, wd)"),
    ),
    "gemm-bias": (
        between("wd = DequantizeLinear(w3, s, z0) r = Gemm(xd, wd, xd)", inputs=FLAT),
        between("wd = DequantizeLinear(w3, s, z0) r = Gemm(xd, wd, row)", inputs=FLAT),
    ),
    "resize": (resize('mode="linear"'), resize(GOOD_RESIZE)),
    "reduce": (
        between("r = ReduceMean<axes=[1]>(xd)"),
        between("r = ReduceMean<axes=[2,3]>(xd)"),
    ),
    "pool-window": (
        between("r = GlobalAveragePool(xd)", inputs="float[1,4,50,11] x"),
        between("r = GlobalAveragePool(xd)", inputs="float[1,4,48,12] x"),
    ),
    "view-before-activation": (
        between(WEIGHT + "c = Conv(xd, wd) v = Reshape(c, flat) r = Relu(v)"),
        between(WEIGHT + "c = Conv(xd, wd) v = Relu(c) r = Reshape(v, flat)"),
    ),
    "slice": (slicing("i0", "huge"), slicing("i0", "i2")),
    "batch-axis": (slicing("i0", "i1", "i0"), slicing("i0", "i2")),
    "pad": (
        between('r = Pad(xd, pads1, "", i2)', opset=18),
        between("r = Pad(xd, pads, low)"),
    ),
    "clip-bounds": (
        between("m = DequantizeLinear(z, s) r = Clip(xd, m)"),
        between("r = Clip(xd, low, high)"),
    ),
    "allowzero": (
        between("r = Reshape<allowzero=1>(xd, shape4)"),
        between("r = Reshape(xd, shape4)"),
    ),
    "bool": (
        between("m = Greater(xd, one) r = Where(m, xd, one)"),
        between("r = Mul(xd, xd)"),
    ),
    "constant-minus": (between("r = Sub(one, xd)"), between("r = Sub(xd, one)")),
    "divisor": (between("r = Div(one, xd)"), between("r = Div(xd, one)")),
    "float-output": (
        graph(data() + "y = Softmax(xd)", inputs="float[1,1025] x"),
        graph(data() + "y = Softmax(xd)", inputs="float[1,1024] x"),
    ),
}
OTHERS = {"ir-version", "file-name", "int4-weight", "compiler-report"}  # below


def broken(model, target=N6, **options):
    return {result.rule.partition(".")[2] for result in check(model, target, **options)}


@pytest.mark.parametrize("rule", CASES)
def test_the_rule_is_broken(rule):
    assert rule in broken(CASES[rule][0])


@pytest.mark.parametrize("rule", CASES)
def test_the_rule_is_kept(rule):
    assert rule not in broken(CASES[rule][1])


def test_every_rule_of_the_n6_has_a_case():
    assert {rule.id.removeprefix("stm32n6.") for rule in N6.rules} == set(CASES) | OTHERS


def test_every_check_belongs_to_a_rule_and_every_rule_to_a_check():
    rules = [rule for name in target_names() for rule in load_target(name).rules]
    assert {rule.check for rule in rules if rule.phase != "compiled"} == set(CHECKS)
    assert {rule.check for rule in rules if rule.phase == "compiled"} == {"compiler_report"}


def test_a_batch_that_a_transposition_makes_counts_too():
    turned = between("t = Transpose<perm=[1,0,2,3]>(xd) r = MaxPool<kernel_shape=[2,2]>(t)")
    faults = [(r.where, r.what) for r in check(turned, N6) if r.rule == "stm32n6.batch"]
    assert faults == [("MaxPool `n3`", "runs on a batch of 4")]
    assert "batch" not in broken(between("r = MaxPool<kernel_shape=[2,2]>(xd)"))


@pytest.mark.parametrize(("target", "highest"), [("stm32n6", 10), ("stm32n6@2.2", 9)])
def test_an_ir_version_is_refused_above_what_the_tool_reads(target, highest):
    model = between(RELU)
    model.ir_version = highest
    assert "ir-version" not in broken(model, load_target(target))
    model.ir_version = highest + 1
    assert "ir-version" in broken(model, load_target(target))


FOUR_BITS = "wd = DequantizeLinear<axis={axis}>({weight}, {scale}, {zero}) r = {operator}(xd, wd)"


def with_int4(operator, weight, shape, axis=0, opset=21):
    """Per-channel int4 weights, which need opset 21."""
    body = FOUR_BITS.format(weight=weight, scale="ss", zero="zero4", operator=operator, axis=axis)
    model = between(body, opset=opset, inputs="float[1,4,4,4] x" if len(shape) == 4 else FLAT)
    for name, dims in ((weight, shape), ("zero4", (4,))):
        packed = onnx.helper.make_tensor(name, onnx.TensorProto.INT4, dims, np.zeros(dims, int))
        model.graph.initializer.append(packed)
    return model


def test_int4_weights_are_for_conv_and_gemm_and_for_core_3():
    conv, matmul = with_int4("Conv", "w4", (4, 4, 1, 1)), with_int4("MatMul", "w4", (4, 4), axis=1)
    assert not broken(conv) & {"weight-type", "int4-weight", "opset"}
    assert "int4-weight" in broken(matmul)
    assert "weight-type" in broken(conv, load_target("stm32n6@2.2"))


def test_opset_21_is_for_int4_alone():
    assert "opset" not in broken(with_int4("Conv", "w4", (4, 4, 1, 1)))
    assert "opset" in broken(between(CONV, opset=21))


def test_a_file_of_the_compiler_itself_is_refused_by_its_name():
    assert "file-name" in broken(between(RELU), file_name="net_OE_3_2_0.onnx")
    assert "file-name" not in broken(between(RELU), file_name="net.onnx")


def test_a_qlinear_operator_is_no_qdq():
    body = "q = QuantizeLinear(x, s, z) l = QLinearConv(q, s, z, w, s, z0, s, z) " + (
        "y = DequantizeLinear(l, s, z)"
    )
    assert "domain" in broken(graph(body))


@pytest.mark.parametrize(
    ("bias", "what"),
    [
        ("bd = Identity(row)", "float bias"),
        ("bd = DequantizeLinear<axis=0>(b8, bs)", "int8 bias"),
        ("bd = DequantizeLinear<axis=0>(b32, ss)", "off the product"),
    ],
)
def test_the_fault_of_a_bias_is_named(bias, what):
    found = [r.what for r in check(conv_with_bias(bias), N6) if r.rule == "stm32n6.bias"]
    assert len(found) == 1
    assert what in found[0]


def test_a_rank_is_counted_on_constants_and_between_too():
    model = between("a = Reshape(xd, five) r = Relu(a)")
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1, 1), np.float32), "lonely")
    )
    places = [r.where for r in check(model, N6) if r.rule == "stm32n6.rank"]
    assert places == ["value `lonely`", "value `a`", "value `r`"]


def test_a_relu_may_stand_between_a_convolution_and_its_q():
    model = between(WEIGHT + "c = Conv(xd, wd) r = Relu(c)")
    assert "float-island" not in broken(model)


def test_a_view_is_between_a_convolution_and_its_relu_with_qdq_around_it_too():
    pair = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z) "
    body = f"c = Conv(xd, wd) {pair.format('c')} v = Reshape(cd, flat) {pair.format('v')}"
    model = between(f"{WEIGHT} {body} r = Relu(vd)")
    (result,) = [r for r in check(model, N6) if r.rule == "stm32n6.view-before-activation"]
    assert (result.where, result.rewrite) == ("Reshape `n6`", "sink views")
    assert result.what == "lies between Conv `n3` and Relu `n9`"
    assert "view-before-activation" not in broken(between("v = Reshape(xd, flat) r = Relu(v)"))


def test_a_float_weight_is_a_float_island():
    model = between("r = MatMul(xd, wf)")
    assert "float-island" in broken(model)


def test_a_slice_with_a_negative_end_is_named_with_its_axis():
    result = next(r for r in check(slicing("i0", "im1"), N6) if r.rule == "stm32n6.slice")
    assert "[0:-1] of axis 2" in result.what


def test_a_slice_of_four_axes_is_too_much():
    model = between("r = Slice(xd, zeros4, ends4, axes4)")
    places = [r.what for r in check(model, N6) if r.rule == "stm32n6.batch-axis"]
    assert places == ["cuts the batch axis", "cuts 4 axes"]


def test_a_resize_by_sizes_has_no_constant_scales():
    model = resize(GOOD_RESIZE, "(xd, roi, none, sizes)")
    assert "resize" in broken(model)
