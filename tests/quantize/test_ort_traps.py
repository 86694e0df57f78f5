"""Traps of onnxruntime.quantization, by their row in the project's table: what onnxq does instead.

Where it is cheap, the test first shows that the trap is still there in the installed version.
"""

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType, quantize_static

from onnxq.calibrate.readers import SampleReader
from onnxq.errors import ModelError, QuantizationError
from onnxq.runtime import Session
from onnxq.samples import Samples

from .nets import HEAD, TARGETS, Int8, Net, calibrated, conv_then, outputs, residual, weights


def by_onnxruntime(net: Net, **options: object) -> onnx.ModelProto:
    """What ``quantize_static`` makes of the network."""
    output = net.path.with_name("theirs.onnx")
    quantize_static(
        net.path,
        output,
        SampleReader(net.samples),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        **options,  # type: ignore[arg-type]
    )
    return onnx.load(output)


def close(int8: Int8, steps: float = 6) -> None:
    for optimization in ("none", "full"):
        assert int8.error(optimization) < steps


def test_trap_2_a_misspelt_option_is_no_option(tmp_path):
    net = residual(tmp_path)
    by_onnxruntime(net, extra_options={"ActivationSymetric": True})  # not a word
    assert "extra_options" not in net.quantize.__code__.co_varnames


def test_trap_10_an_unknown_name_to_exclude_is_told_with_the_nearest(tmp_path):
    net = residual(tmp_path)
    by_onnxruntime(net, nodes_to_exclude=["conv_11"])  # not a word
    with pytest.raises(QuantizationError, match=r"no node is called `conv_11`; did you mean"):
        net.quantize("ort-x86", "conv_11")


def test_trap_10_an_excluded_node_stays_float_with_its_reason(tmp_path):
    int8 = residual(tmp_path).quantize("ort-x86", "gemm_1")
    assert int8.float_nodes == {"gemm_1": "by test"}
    (gemm,) = (node for node in int8.model.graph.node if node.name == "gemm_1")
    assert int8.arrays[gemm.input[1]].dtype == np.float32
    close(int8)


def test_trap_10_a_model_that_would_stay_float_is_refused(tmp_path):
    net = residual(tmp_path)
    theirs = by_onnxruntime(net, op_types_to_quantize=["Convv"])
    assert not any(node.op_type == "QuantizeLinear" for node in theirs.graph.node)
    everything = ("conv_1", "conv_2", "add_1", "gap_1", "gemm_1")
    with pytest.raises(QuantizationError, match="no node can become integer"):
        net.quantize("ort-x86", *everything)


def test_trap_11_names_are_resolved_against_the_graph_that_is_quantized(tmp_path):
    """Nothing is fused or renamed between the names a person sees and those that are excluded."""
    net = residual(tmp_path)
    names = {node.name for node in onnx.load(net.path).graph.node}
    int8 = net.quantize("ort-x86", "conv_2")
    assert set(int8.record.quantized_nodes) | set(int8.float_nodes) == names


def test_trap_12_nodes_without_a_name_are_refused(tmp_path):
    net = calibrated(
        tmp_path, HEAD + "g (float[1,8] x) => (float[1,4] y) { y = MatMul(x, w) }", w=weights(8, 4)
    )
    with pytest.raises(ModelError, match=r"(?s)a node has no name.*onnxq export"):
        net.quantize("ort-x86")


def test_trap_13_a_gemm_whose_bias_is_an_activation_stays_float(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,8] x) => (float[1,8] y) {
            [gemm_1] h = Gemm(x, w, b)
            [gemm_2] y = Gemm(x, w, h) }""",
        w=weights(8, 8),
        b=weights(8),
    )
    for target in TARGETS:
        int8 = net.quantize(target)
        assert int8.float_nodes == {"gemm_2": "its bias is computed at run time"}
        close(int8)


def test_trap_14_only_domains_that_are_used_are_imported(tmp_path):
    net = residual(tmp_path)
    model = onnx.load(net.path)
    foreign = ["com.microsoft", "com.microsoft.nchwc", "org.pytorch.aten"]
    model.opset_import.extend(onnx.helper.make_opsetid(name, 1) for name in foreign)
    again = calibrated_copy(net, model)
    for target in TARGETS:
        imports = again.quantize(target).model.opset_import
        assert [(entry.domain, entry.version) for entry in imports] == [("", 17)]


def calibrated_copy(net: Net, model: onnx.ModelProto) -> Net:
    """The same ranges for another form of the graph."""
    from onnxq.store import sha256_of_file

    path = net.path.with_name("changed.onnx")
    onnx.save(model, path)
    ranges = net.ranges.model_copy(update={"model_sha256": sha256_of_file(path)})
    return Net(path, net.samples, ranges)


@pytest.mark.parametrize("opset", [10, 11, 12])
def test_trap_15_an_opset_below_13_is_refused_and_13_works(tmp_path, opset):
    net = conv_then(tmp_path, "[relu_1] y = Relu(c)")
    model = onnx.load(net.path)
    model.ir_version = 7
    model.opset_import[0].version = opset
    with pytest.raises(ModelError, match=rf"(?s)has opset {opset}.*onnxq export"):
        calibrated_copy(net, model).quantize("ort-x86")
    model.opset_import[0].version = 13
    close(calibrated_copy(net, model).quantize("ort-x86"))


def test_trap_17_later_opsets_work(tmp_path):
    net = conv_then(tmp_path, "[relu_1] y = Relu(c)")
    for opset in (18, 19, 21):
        model = onnx.load(net.path)
        model.ir_version, model.opset_import[0].version = 10, opset
        int8 = calibrated_copy(net, model).quantize("ort-x86")
        assert int8.model.opset_import[0].version == opset
        close(int8)


ONE_INPUT = ["Tanh", "HardSwish", "Elu", "Gelu", "Erf", "Abs", "Sigmoid", "LeakyRelu", "Softplus"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ONE_INPUT)
def test_trap_18_an_operator_has_both_dq_and_q_or_none(tmp_path, target, op):
    rest = f"[op_1] o = {op}(c) [conv_2] y = Conv(o, v)"
    opset = 20 if op == "Gelu" else 17  # where it came into being
    check_both_sides(
        conv_then(tmp_path, rest, opset, v=weights(4, 4, 1, 1)).quantize(target), "op_1"
    )


def check_both_sides(int8: Int8, name: str) -> None:
    """A float operator reads the DQ of its producer's Q, an integer one also feeds a Q.

    What makes the difference is the record: what is called integer has Q/DQ on each side, what is
    called float has no Q of its own making (the Q behind it belongs to its consumer).
    """
    close(int8, 12)
    if name in int8.record.quantized_nodes:
        assert int8.around(name) == (True, True)
    else:
        assert name in int8.float_nodes


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ["Sub", "Div", "Max", "Min", "Mul", "Add"])
def test_trap_18_holds_for_operators_of_two_inputs(tmp_path, target, op):
    net = conv_then(
        tmp_path, f"[op_1] o = {op}(c, k) [conv_2] y = Conv(o, v)",
        k=np.float32([[[1.5]], [[2.0]], [[-1.0]], [[0.7]]]), v=weights(4, 4, 1, 1),
    )  # fmt: skip
    check_both_sides(net.quantize(target), "op_1")


@pytest.mark.parametrize("target", TARGETS)
def test_trap_18_a_float_operator_at_the_end_gets_no_q_behind_it(tmp_path, target):
    int8 = conv_then(tmp_path, "[op_1] y = Softplus(c)").quantize(target)
    assert "op_1" in int8.float_nodes
    assert int8.model.graph.node[-1].name == "op_1"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("op", ["Relu(c)", "Clip(c, zero, six)"])
def test_traps_19_and_35_a_relu_is_folded_into_a_q_with_its_zero_point_at_the_minimum(
    tmp_path, target, op
):
    bounds = {"zero": np.float32(0), "six": np.float32(6)} if "Clip" in op else {}
    int8 = conv_then(tmp_path, f"[act_1] y = {op}", **bounds).quantize(target)
    assert [n.op_type for n in int8.model.graph.node if "Linear" not in n.op_type] == ["Conv"]
    found = int8.record.activations["y"]
    assert found.zero_point == found.type.qmin
    close(int8)


def test_trap_35_a_range_that_falls_below_zero_after_a_relu_is_clamped(tmp_path):
    net = conv_then(tmp_path, "[relu_1] y = Relu(c)")
    ranges = dict(net.ranges.ranges)
    ranges["y"] = ranges["y"].model_copy(update={"low": -1e-3})
    shifted = Net(net.path, net.samples, net.ranges.model_copy(update={"ranges": ranges}))
    assert shifted.quantize("ort-x86").record.activations["y"].zero_point == 0


@pytest.mark.parametrize("target", TARGETS)
def test_trap_20_a_dead_tensor_keeps_a_narrow_range_and_is_named(tmp_path, target):
    net = conv_then(tmp_path, "[mul_1] d = Mul(c, zero) [add_1] y = Add(d, c)", zero=np.float32(0))
    int8 = net.quantize(target)
    assert int8.record.activations["d"].scale == pytest.approx(1e-4 / 255)
    assert "d" in {finding.where for finding in int8.record.findings}
    close(int8)


def test_trap_21_a_channel_of_zero_weights_gives_its_bias(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD + "g (float[1,8] x) => (float[1,3] y) { [gemm_1] y = Gemm(x, w, b) }",
        w=weights(8, 3) * np.float32([1, 0, 1]),
        b=np.float32([0.1, 0.5, -0.2]),
    )
    assert np.allclose(net.quantize("ort-x86").outputs()["y"][:, 1], 0.5, atol=0.02)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("size", [1, 1e-7, 1e-9, 1e-12, 1e-30])
def test_trap_22_a_channel_of_tiny_weights_keeps_its_big_bias(tmp_path, target, size):
    w = weights(4, 3, 1, 1)
    w[1] *= np.float32(size)
    net = calibrated(
        tmp_path,
        HEAD + "g (float[1,3,4,4] x) => (float[1,4,4,4] y) { [conv_1] y = Conv(x, w, b) }",
        w=w,
        b=np.float32([0, 50, 0, 1]),
    )
    int8 = net.quantize(target)
    step = int8.record.activations["y"].scale
    exact = outputs(net.path, net.samples)["y"][:, 1]
    for optimization in ("none", "full"):
        assert abs(int8.outputs(optimization)["y"][:, 1] - exact).max() <= step
    named = [f.where for f in int8.record.findings if "beside" in f.what]
    assert bool(named) == (size < 1)


def tied(folder, transposed: str) -> Net:
    """One square weight that serves a Gemm and a MatMul, along different axes."""
    return calibrated(
        folder,
        HEAD
        + f"""g (float[1,8] x) => (float[1,8] y) {{
            [gemm_1] h = Gemm<transB={transposed}>(x, w, b)
            [mm_1] y = MatMul(h, w) }}""",
        w=weights(8, 8, size=1) * np.logspace(-2, 0, 8, dtype=np.float32)[:, None],
        b=weights(8),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("transposed", ["0", "1"])
def test_trap_23_a_tied_weight_gives_right_numbers_at_full_and_no_optimization(
    tmp_path, target, transposed
):
    int8 = tied(tmp_path, transposed).quantize(target)
    close(int8)
    copied = [step for step in int8.record.steps if step.startswith("copied")]
    assert bool(copied) == (transposed == "1")  # one for each axis


def test_trap_23_is_still_there(tmp_path):
    net = tied(tmp_path, "1")
    by_onnxruntime(net)
    exact = outputs(net.path, net.samples)["y"]
    theirs = outputs(net.path.with_name("theirs.onnx"), net.samples, "full")["y"]
    assert np.abs(theirs - exact).max() / np.ptp(exact) > 0.1


@pytest.mark.parametrize("bias", [True, False])
def test_trap_24_a_grouped_convtranspose_is_quantized_with_its_bias(tmp_path, bias):
    net = calibrated(
        tmp_path,
        HEAD
        + f"""g (float[1,4,4,4] x) => (float[1,6,8,8] y) {{
            [up_1] u = ConvTranspose<group=2, strides=[2,2]>(x, w{", b" if bias else ""})
            [conv_1] y = Conv(u, v) }}""",
        w=weights(4, 3, 2, 2),
        v=weights(6, 6, 1, 1),
        **({"b": weights(6)} if bias else {}),
    )
    int8 = net.quantize("stm32n6")
    assert int8.around("up_1") == (True, True)
    close(int8)
    assert "up_1" in net.quantize("ort-x86").float_nodes


def test_a_convtranspose_without_groups_has_a_scale_for_each_output_channel(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,4,4,4] x) => (float[1,3,8,8] y) {
            [up_1] y = ConvTranspose<strides=[2,2]>(x, w, b) }""",
        w=weights(4, 3, 2, 2),
        b=weights(3),
    )
    int8 = net.quantize("stm32n6")
    assert int8.arrays["w.s"].shape == (3,)
    close(int8)


@pytest.mark.parametrize(
    "body",
    [
        """[fork] y = If (k) <then_branch = p () => (float[1,4,4,4] o) { o = Conv(x, w) },
                             else_branch = q () => (float[1,4,4,4] r) { r = Relu(c) }>""",
        """[turn] y = Loop (trips, k, c) <body = l (int64 n, bool go, float[1,4,4,4] s)
               => (bool more, float[1,4,4,4] t) { more = Identity(go) t = Conv(s, v) }>""",
    ],
    ids=["If", "Loop"],
)
def test_trap_27_a_graph_inside_a_node_is_refused(tmp_path, body):
    x = np.random.default_rng(0).standard_normal((4, 3, 4, 4)).astype(np.float32)
    with pytest.raises(ModelError, match=r"holds a graph inside it"):
        calibrated(
            tmp_path,
            HEAD
            + f"""g (float[1,3,4,4] x, bool[1] flags) => (float[1,4,4,4] y) {{
                [conv_1] c = Conv(x, w)
                [cond] k = Squeeze(flags)
                {body} }}""",
            inputs={"x": x, "flags": np.zeros(4, bool)},
            w=weights(4, 3, 1, 1),
            v=weights(4, 4, 1, 1),
            trips=np.array(2),
        )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("first", "shape"),
    [
        ("MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)", "1,3,8,8"),
        ("Transpose<perm=[0,3,1,2]>(x)", "1,4,4,3"),
        ("Reshape(x, to)", "1,48"),
        ("Slice(x, zeros, ends)", "1,3,4,6"),
    ],
)
def test_trap_28_a_data_mover_at_the_start_runs_on_integers(tmp_path, target, first, shape):
    dims = [int(dim) for dim in shape.split(",")]
    x = np.random.default_rng(0).standard_normal((6, *dims[1:])).astype(np.float32)
    net = calibrated(
        tmp_path,
        HEAD
        + f"""g (float[{shape}] x) => (float[1,4,4,4] y) {{
            [first_1] m = {first}
            [conv_1] y = Conv(m, w) }}""",
        inputs={"x": x},
        w=weights(4, 3, 1, 1),
        to=np.array([1, 3, 4, 4]),
        zeros=np.array([0, 0, 0, 0]),
        ends=np.array([1, 3, 4, 4]),
    )
    int8 = net.quantize(target)
    assert int8.around("first_1") == (True, True)
    assert int8.record.activations["x"] == int8.record.activations["m"]
    close(int8)


def test_trap_29_smoothquant_is_not_offered():
    from pydantic import ValidationError

    from onnxq.recipe import QuantizeSection

    with pytest.raises(ValidationError):
        QuantizeSection(SmoothQuant=True)  # type: ignore[call-arg]


def test_trap_34_concat_inputs_keep_their_own_scales(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,4] x) => (float[1,8] y) {
            [gemm_1] h = Gemm(x, w)
            [cat_1] y = Concat<axis=1>(h, x) }""",
        w=weights(4, 4, size=9),
    )
    int8 = net.quantize("ort-x86")
    scales = {name: p.scale for name, p in int8.record.activations.items()}
    assert scales["h"] != scales["x"]
    close(int8)


def test_trap_36_parameters_of_activations_are_scalars(tmp_path):
    int8 = residual(tmp_path).quantize("stm32n6")
    for node in int8.model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert [int8.arrays[name].ndim for name in node.input[1:]] == [0, 0]


def test_trap_b1_every_convolution_is_executed_on_integers(tmp_path):
    from onnxq.runtime import executed_operators

    int8 = residual(tmp_path).quantize("ort-x86")
    executed = [node.op_type for node in executed_operators(int8.path).graph.node]
    assert executed.count("QLinearConv") == 2
    assert "Conv" not in executed
    assert "Relu" not in executed


def test_a_file_of_one_sample_runs_under_both_levels(tmp_path):
    int8 = residual(tmp_path).quantize("ort-arm64")
    row = Samples("s", {"x": np.zeros((1, 3, 8, 8), np.float32)}).row(0)
    assert Session(int8.path).run(row)["y"].shape == (1, 10)
