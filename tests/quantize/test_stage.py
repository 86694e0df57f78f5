"""The written file: what it carries, what it computes, what is left when it cannot be written."""

import numpy as np
import onnx
import pytest

from onnxq.artifacts import QuantizedModel
from onnxq.errors import AlreadyQuantizedError, QuantizationError, StaleRecordError
from onnxq.graph import MADE_UP_STAMP
from onnxq.quantize.stage import quantize
from onnxq.recipe import QuantizeSection
from onnxq.store import load_record, sha256_of_file
from onnxq.target import load_target

from .nets import HEAD, TARGETS, Int8, calibrated, conv_then, residual, weights


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Int8]:
    """The residual network, quantized for every target from one calibration."""
    net = residual(tmp_path_factory.mktemp("residual"))
    return {target: net.quantize(target) for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("optimization", ["none", "full"])
def test_the_int8_file_computes_what_fp32_does_to_a_few_steps(files, target, optimization):
    assert files[target].error(optimization) < 6


@pytest.mark.parametrize("target", TARGETS)
def test_every_q_and_dq_carries_the_parameters_of_the_record(files, target):
    int8 = files[target]
    planned = {(np.float32(p.scale), p.zero_point) for p in int8.record.activations.values()}
    pairs = 0
    for node in int8.model.graph.node:
        if node.op_type == "QuantizeLinear":
            tensor = node.input[0].removesuffix(".f")
            wanted = int8.record.activations[tensor]
            scale, zero_point = (int8.arrays[name] for name in node.input[1:3])
            assert (scale, zero_point) == (np.float32(wanted.scale), wanted.zero_point)
            assert scale.shape == zero_point.shape == ()
            assert zero_point.dtype.name == wanted.type == int8.record.activation_type
        elif node.op_type == "DequantizeLinear" and node.input[0] not in int8.arrays:
            assert tuple(int8.arrays[name][()] for name in node.input[1:3]) in planned
            pairs += 1
    assert pairs >= 8


@pytest.mark.parametrize("target", TARGETS)
def test_data_movers_share_the_parameters_of_their_input(files, target):
    found = files[target].record.activations
    assert found["e"] == found["f"]  # MaxPool
    assert found["g1"] == found["h"]  # Flatten


@pytest.mark.parametrize("target", TARGETS)
def test_every_operator_of_the_network_is_between_dq_and_q(files, target):
    int8 = files[target]
    assert not int8.float_nodes
    left = {n.name for n in int8.model.graph.node if "quantize" not in n.op_type.lower()}
    assert left == {"conv_1", "conv_2", "add_1", "pool_1", "gap_1", "flat_1", "gemm_1"}
    assert {int8.around(name) for name in left} == {(True, True)}


@pytest.mark.parametrize("target", TARGETS)
def test_weights_are_symmetric_int8_per_output_channel(files, target):
    int8 = files[target]
    makers = {output: node for node in int8.model.graph.node for output in node.output}
    for name, channels in (("conv_1", 8), ("conv_2", 8), ("gemm_1", 10)):
        (node,) = (n for n in int8.model.graph.node if n.name == name)
        read = makers[node.input[1]]
        integers, scales, zeros = (int8.arrays[i] for i in read.input)
        assert (integers.dtype, scales.shape, set(zeros.tolist())) == (np.int8, (channels,), {0})
        assert integers.min() >= -127
        assert np.abs(integers).max() == 127
        assert onnx.helper.get_node_attr_value(read, "axis") == 0


def test_trap_25_a_bias_is_int32_with_the_product_of_its_scales(files):
    for int8 in files.values():
        makers = {output: node for node in int8.model.graph.node for output in node.output}
        for name in ("conv_1", "conv_2", "gemm_1"):
            (node,) = (n for n in int8.model.graph.node if n.name == name)
            data, weight, bias = (makers[i] for i in node.input)
            x_scale, w_scale = int8.arrays[data.input[1]], int8.arrays[weight.input[1]]
            integers, scale, *zero = (int8.arrays[i] for i in bias.input)
            assert integers.dtype == np.int32
            np.testing.assert_allclose(scale, x_scale * w_scale, rtol=1e-6)
            assert not zero or not zero[0].any()


def test_signed_and_unsigned_files_of_one_calibration_compute_the_same_numbers(files):
    signed, unsigned = files["stm32n6"], files["ort-x86"]
    for name, one in unsigned.record.activations.items():
        other = signed.record.activations[name]
        assert (other.scale, other.zero_point + 128) == (one.scale, one.zero_point)
    np.testing.assert_array_equal(signed.outputs()["y"], unsigned.outputs()["y"])


def test_the_same_input_gives_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        contents.append(residual(tmp_path / name).quantize("ort-x86").path.read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_short_and_of_one_thing_only(files, target):
    graph = files[target].model.graph
    nodes = [node.name for node in graph.node]
    tensors = [t.name for t in graph.initializer]
    tensors += [name for node in graph.node for name in node.output]
    assert len(set(nodes)) == len(nodes)
    assert len(set(tensors)) == len(tensors)
    longest = len("conv_1.f.q")
    assert max(map(len, nodes + tensors)) <= longest
    assert [v.name for v in (*graph.input, *graph.output)] == ["x", "y"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_is_a_valid_graph_in_the_targets_form(files, target):
    onnx.checker.check_model(files[target].model, full_check=True)
    assert not files[target].model.metadata_props


def test_the_record_beside_the_file_describes_it(files):
    int8 = files["ort-x86"]
    record = load_record(QuantizedModel, int8.path.with_suffix(".json"))
    assert record == int8.record
    assert record.model.sha256 == sha256_of_file(int8.path)
    assert record.fp32_sha256 == sha256_of_file(int8.net.path)
    assert tuple(record.quantized_nodes) == (
        "conv_1", "relu_1", "conv_2", "clip_1", "add_1", "pool_1", "gap_1", "flat_1", "gemm_1",
    )  # fmt: skip


def test_ranges_of_another_graph_are_stale(tmp_path):
    net = residual(tmp_path)
    other = net.ranges.model_copy(update={"model_sha256": "0" * 64})
    with pytest.raises(StaleRecordError, match="calibrated on another graph"):
        quantize(net.path, other, load_target("ort-x86"), QuantizeSection(), tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_made_up_samples_stamp_the_file(tmp_path):
    net = residual(tmp_path)
    choice = net.ranges.choice.model_copy(update={"made_up": True})
    ranges = net.ranges.model_copy(update={"choice": choice})
    output = tmp_path / "o.onnx"
    record = quantize(net.path, ranges, load_target("ort-x86"), QuantizeSection(), output)
    assert record.made_up_data
    assert [prop.key for prop in onnx.load(output).metadata_props] == [MADE_UP_STAMP]


def test_a_declared_domain_pins_input_and_output_exactly(tmp_path):
    x = np.random.default_rng(0).uniform(0.2, 0.7, (8, 3, 8, 8)).astype(np.float32)
    net = residual(tmp_path, inputs={"x": x}, domains={"x": (0.0, 1.0), "y": (-8.0, 8.0)})
    for target, zero_point in (("stm32n6", -128), ("ort-x86", 0)):
        found = net.quantize(target).record.activations
        assert (found["x"].scale, found["x"].zero_point) == (np.float32(1 / 255), zero_point)
        assert found["y"].scale == np.float32(16 / 255)


def test_trap_26_a_quantized_model_is_refused(files, tmp_path):
    int8 = files["ort-x86"]
    ranges = int8.net.ranges.model_copy(update={"model_sha256": sha256_of_file(int8.path)})
    with pytest.raises(AlreadyQuantizedError, match="is quantized already"):
        quantize(
            int8.path, ranges, load_target("ort-x86"), QuantizeSection(), tmp_path / "twice.onnx"
        )
    assert not list(tmp_path.iterdir())


def test_trap_33_a_failure_leaves_no_file(tmp_path):
    net = residual(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(QuantizationError):
        net.quantize("ort-x86", "conv_9")
    assert sorted(tmp_path.iterdir()) == before


def test_trap_33_a_failure_keeps_the_old_file(tmp_path):
    net = residual(tmp_path)
    old = net.quantize("ort-x86").path.read_bytes()
    with pytest.raises(QuantizationError):
        net.quantize("ort-x86", "conv_9")
    assert (tmp_path / "ort-x86.onnx").read_bytes() == old


def random_net(seed: int) -> tuple[str, dict[str, np.ndarray]]:
    """Convolutions of random form with random followers, a pool, one or two linear layers."""
    random = np.random.default_rng(seed)
    lines, constants, channels, value = [], {}, 3, "x"
    for number in range(int(random.integers(2, 5))):
        grouped = bool(random.integers(2)) and channels > 3
        outputs = channels if grouped else int(random.choice([4, 8]))
        group = channels if grouped else 1
        name = f"w{number}"
        constants[name] = weights(outputs, channels // group, 3, 3, seed=seed * 10 + number)
        bias = ""
        if random.integers(2):
            constants[f"b{number}"] = weights(outputs, seed=seed)
            bias = f", b{number}"
        lines.append(
            f"[conv_{number}] c{number} = "
            f"Conv<pads=[1,1,1,1], group={group}>({value}, {name}{bias})"
        )
        follower = random.choice(["", "Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish"])
        value = f"c{number}"
        if follower:
            lines.append(f"[act_{number}] a{number} = {follower}({value})")
            value = f"a{number}"
        channels = outputs
    lines.append(f"[gap] p = GlobalAveragePool({value}) [flat] f = Flatten(p)")
    constants["wl"] = weights(5, channels, seed=seed + 1, size=1)
    lines.append("[lin] y = Gemm<transB=1>(f, wl)")
    return HEAD + f"g (float[1,3,6,6] x) => (float[1,5] y) {{ {' '.join(lines)} }}", constants


@pytest.mark.parametrize("seed", range(8))
def test_random_networks_are_within_a_few_steps_on_every_target(tmp_path, seed):
    text, constants = random_net(seed)
    net = calibrated(tmp_path, text, **constants)
    for target in TARGETS:
        int8 = net.quantize(target)
        assert int8.error("none") < 12, target
        assert int8.error("full") < 12, target


# --- graphs that are easily got wrong -----------------------------------------------------------


def close(int8: Int8) -> None:
    for optimization in ("none", "full"):
        assert int8.error(optimization) < 6


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bounds", [(0, 6), (-0.5, 0.5), (-9, 9), (0.25, 6), (-6, -0.25)])
def test_a_clip_cuts_where_it_did_whether_it_is_folded_or_not(tmp_path, target, bounds):
    low, high = (np.float32(bound) for bound in bounds)
    net = conv_then(tmp_path, "[clip_1] y = Clip(c, low, high)", low=low, high=high)
    int8 = net.quantize(target)
    close(int8)
    assert int8.outputs()["y"].min() >= low - 1e-6 or low < 0
    kept = any(node.op_type == "Clip" for node in int8.model.graph.node)
    assert kept == (not low <= 0 <= high)


@pytest.mark.parametrize("target", TARGETS)
def test_a_relu_still_cuts_where_a_wider_domain_is_declared_behind_it(tmp_path, target):
    net = conv_then(tmp_path, "[relu_1] y = Relu(c)", domains={"y": (-4.0, 4.0)})
    int8 = net.quantize(target)
    assert int8.outputs()["y"].min() == 0
    close(int8)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fill", [0.0, -9.0, 0.5])
def test_a_pad_fills_with_its_value(tmp_path, target, fill):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,3,4,4] x) => (float[1,4,6,6] y) {
            [pad_1] p = Pad(x, pads, fill)
            [conv_1] y = Conv(p, w) }""",
        inputs={"x": np.random.default_rng(0).random((8, 3, 4, 4)).astype(np.float32)},
        w=weights(4, 3, 1, 1),
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        fill=np.float32(fill),
    )
    close(net.quantize(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (1,), (), (1, 1), None])
def test_a_gemm_is_right_whatever_the_shape_of_its_bias(tmp_path, target, shape):
    constants = {} if shape is None else {"b": np.full(shape, 0.7, np.float32)}
    gemm = "Gemm(x, w)" if shape is None else "Gemm(x, w, b)"
    net = calibrated(
        tmp_path,
        HEAD + f"g (float[1,8] x) => (float[1,4] y) {{ [gemm_1] y = {gemm} }}",
        w=weights(8, 4),
        **constants,
    )
    int8 = net.quantize(target)
    close(int8)
    assert int8.around("gemm_1") == (True, True)


def test_a_gemm_with_a_bias_for_each_row_stays_float_and_says_so(tmp_path):
    net = calibrated(
        tmp_path,
        HEAD + """g (float[1,8] x) => (float[1,4] y) {
            [pre] r = Reshape(x, two)
            [gemm_1] m = Gemm(r, w, b)
            [flat] f = Reshape(m, one)
            [gemm_2] y = Gemm(f, v) }""",
        two=np.array([2, 4]), one=np.array([1, 8]),
        w=weights(4, 4), b=weights(2, 4), v=weights(8, 4),
    )  # fmt: skip
    int8 = net.quantize("ort-x86")
    assert int8.float_nodes["gemm_1"] == "its bias is not one number for each output"
    close(int8)


@pytest.mark.parametrize("target", TARGETS)
def test_a_table_that_is_looked_up_does_not_stop_the_rest(tmp_path, target):
    random = np.random.default_rng(0)
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,8] x, int64[1,4] i) => (float[1,4,8] y) {
            [look] e = Gather(table, i)
            [add_1] y = Add(e, x) }""",
        inputs={
            "x": random.standard_normal((8, 8)).astype(np.float32),
            "i": random.integers(0, 10, (8, 4)),
        },
        table=weights(10, 8),
    )
    int8 = net.quantize(target)
    assert int8.float_nodes == {"look": "it moves a constant"}
    close(int8)


@pytest.mark.parametrize("target", TARGETS)
def test_a_weight_of_two_layers_holds_the_biases_of_both(tmp_path, target):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,4,4,4] x) => (float[1,4,4,4] y) {
            [conv_1] c = Conv(x, w, big)
            [conv_2] y = Conv(c, w, b) }""",
        w=weights(4, 4, 1, 1) * np.float32([1, 1, 1, 1e-9]).reshape(4, 1, 1, 1),
        big=np.float32([0, 0, 0, 60]),
        b=weights(4),
    )
    close(net.quantize(target))


@pytest.mark.parametrize("target", TARGETS)
def test_constants_of_elementwise_operators_are_quantized_too(tmp_path, target):
    net = conv_then(tmp_path, "[add_1] y = Add(c, k)", k=weights(4, 1, 1, seed=9))
    close(net.quantize(target))


@pytest.mark.parametrize("target", TARGETS)
def test_products_of_two_activations_are_right(tmp_path, target):
    net = calibrated(
        tmp_path,
        HEAD
        + """g (float[1,8,8] x) => (float[1,8,8] y) {
            [mm_1] h = MatMul(x, w)
            [soft] s = Softmax(h)
            [mm_2] y = MatMul(s, h) }""",
        w=weights(8, 8),
    )
    close(net.quantize(target))


def test_samples_with_an_outlier_lose_resolution_and_nothing_else(tmp_path):
    x = np.random.default_rng(0).standard_normal((8, 3, 8, 8)).astype(np.float32)
    x[0, 0, 0, 0] = 50
    net = residual(tmp_path, inputs={"x": x})
    close(net.quantize("ort-x86"))
