"""Memory: lifetimes against a run that counts what it holds, placement against brute force."""

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from benchmarks.networks import mobilenet_v2
from handoff.qdq_models import small_net, with_constants
from onnxq.graph import with_batch_of_one
from onnxq.handoff.arena import height_of, place
from onnxq.handoff.liveness import Buffer, fused_lives, lives_in_float, most_at_once
from onnxq.handoff.memory import memory_lines, memory_of
from onnxq.target import load_target

N6, X86 = load_target("stm32n6"), load_target("ort-x86")
UNALIGNED = N6.model_copy(update={"alignment_bytes": 1, "in_place_ops": ()})
HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
SCALES = {"s": np.float32(0.1), "s2": np.float32(0.2), "z": np.int8(0)}
SHAPE = "float[1,2,4,4]"  # 32 elements


def graph(body, *, inputs=f"{SHAPE} x", outputs=f"{SHAPE} y", **constants):
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    known = {name: value for name, value in SCALES.items() if name in words} | constants
    return with_constants(f"{HEAD}\ng ({inputs}) => ({outputs}) {{{body}}}", **known)


def pair(name, scale="s"):
    """A Q/DQ pair behind ``name``, which gives ``{name}d``."""
    q = f"{name}q"
    return f"{q} = QuantizeLinear({name}, {scale}, z) {name}d = DequantizeLinear({q}, {scale}, z) "


def of(model):
    return ir.from_proto(with_batch_of_one(model)).graph


def peak(lives):
    return most_at_once(lives)[1]


# --- lifetimes ----------------------------------------------------------------------------------


def held_at_most(model):
    """Most bytes of arrays that a run holds at once, counting references, by onnx.reference."""
    (value,) = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    arrays = ReferenceEvaluator(model).run(
        None, {value.name: np.ones(shape, np.float32)}, intermediate=True
    )
    constants = {tensor.name for tensor in model.graph.initializer}
    outputs = {value.name for value in model.graph.output}
    uses = [name for node in model.graph.node for name in node.input if name not in constants]
    held, most = {value.name}, 0
    for node in model.graph.node:
        held |= set(node.output)
        most = max(most, sum(arrays[name].nbytes for name in held))
        for name in node.input:
            if name in uses:
                uses.remove(name)
        held = {name for name in held if name in uses or name in outputs}
    return most


@st.composite
def random_nets(draw):
    """Names of operators and the numbers of the values that each takes: a net of 4×4 pictures."""
    count = draw(st.integers(1, 8))
    return [
        (
            draw(st.sampled_from(["Abs", "Add", "Concat", "MaxPool"])),
            draw(st.integers(0, index)),
            draw(st.integers(0, index)),
        )
        for index in range(count)
    ]


def text_of(net, quantized):
    """The nodes of a random net; with a Q/DQ pair behind every value if ``quantized``."""
    lines, channels, at = [], [2], ["v0"]
    if quantized:
        lines.append(pair("v0"))
    for number, (op_type, left, right) in enumerate(net, start=1):
        name = f"v{number}"
        first, second = (f"v{n}d" if quantized else f"v{n}" for n in (left, right))
        joins = op_type == "Concat" or (op_type == "Add" and channels[left] != channels[right])
        match "Concat" if joins else op_type:
            case "Abs":
                lines.append(f"{name} = Abs({first})")
            case "Add":
                lines.append(f"{name} = Add({first}, {second})")
            case "Concat":
                lines.append(f"{name} = Concat<axis=1>({first}, {second})")
            case "MaxPool":
                taken = "kernel_shape=[3,3], pads=[1,1,1,1]"
                lines.append(f"{name} = MaxPool<{taken}>({first})")
        channels.append(channels[left] + channels[right] if joins else channels[left])
        at.append(name)
        if quantized:
            lines.append(pair(name))
    last = f"{at[-1]}d" if quantized else at[-1]
    return " ".join(lines), last, channels[-1]


def net_of(net, quantized):
    body, last, channels = text_of(net, quantized)
    return graph(body, inputs=f"{SHAPE} v0", outputs=f"float[1,{channels},4,4] {last}")


@settings(max_examples=60)
@given(random_nets())
def test_the_peak_in_float_is_what_a_run_that_frees_what_it_can_holds(net):
    model = net_of(net, quantized=False)
    assert peak(lives_in_float(of(model), UNALIGNED)) == held_at_most(model)


@settings(max_examples=60)
@given(random_nets())
def test_between_q_and_dq_a_tensor_takes_a_quarter_of_its_float_form(net):
    held = held_at_most(net_of(net, quantized=False))
    quantized = of(net_of(net, quantized=True))
    lives = fused_lives(quantized, UNALIGNED)
    assert peak(lives) * 4 == held
    assert lives.float_nodes == lives.unknown == ()
    assert peak(lives_in_float(quantized, UNALIGNED)) == held


def test_onnxruntime_writes_outputs_of_the_sizes_that_are_counted(tmp_path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    model = small_net()
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    session.run(None, {"image": np.zeros((1, 3, 8, 8), np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    executed = {
        event["args"]["node_index"]: int(event["args"]["output_size"])
        for event in events
        if event["name"].endswith("_kernel_time")
    }
    no_folding = UNALIGNED.model_copy(update={"folded_ops": ()})
    buffers = lives_in_float(of(model), no_folding).buffers
    ours = {buffer.tensor: buffer.bytes for buffer in buffers}
    theirs = [executed[key] for key in sorted(executed, key=int)]
    assert [ours[node.output[0]] for node in model.graph.node] == theirs


def test_a_folded_relu_takes_no_memory_of_its_own():
    weight = {"w": np.ones((2, 2, 1, 1), np.int8), "w0": np.int8(0)}
    conv = pair("x") + "wd = DequantizeLinear(w, s, w0) c = Conv(xd, wd) "
    plain = graph(conv + pair("c") + "y = Identity(cd)", **weight)
    folded = graph(conv + "r = Relu(c) " + pair("r") + "y = Identity(rd)", **weight)
    assert peak(fused_lives(of(folded), UNALIGNED)) == peak(fused_lives(of(plain), UNALIGNED))


def test_a_float_operator_between_integers_needs_both_forms_of_its_tensors():
    # Neural-ART has no integer Softplus: it reads and writes floats, Q and DQ around it or not
    body = pair("x") + "a = Softplus(xd) " + pair("a") + "y = Abs(ad)"
    model = graph(body + " " + pair("y"), outputs=f"{SHAPE} yd")
    lives = fused_lives(of(model), UNALIGNED)
    assert peak(lives) == 32 * 4 + 32 * 4
    assert [name.split()[0] for name in lives.float_nodes] == ["Softplus"]
    assert [step.split()[0] for step in lives.steps] == [
        "DequantizeLinear", "Softplus", "QuantizeLinear", "Abs",
    ]  # fmt: skip


def test_a_reshape_in_place_adds_nothing_unless_the_scale_changes():
    body = pair("x") + "r = Reshape(xd, shape) {}" + "y = Abs(rd) " + pair("y")
    shape = {"shape": np.array([1, 2, 4, 4], np.int64)}
    same = graph(body.format(pair("r")), outputs=f"{SHAPE} yd", **shape)
    other = graph(body.format(pair("r", "s2")), outputs=f"{SHAPE} yd", **shape)
    assert len(fused_lives(of(same), N6).buffers) == 2
    assert len(fused_lives(of(other), N6).buffers) == 3
    assert len(fused_lives(of(same), UNALIGNED).buffers) == 3


def test_a_relu_overwrites_a_float_that_nobody_else_reads():
    alone = graph("a = Abs(x) r = Relu(a) y = Abs(r)")
    shared = graph("a = Abs(x) r = Relu(a) y = Add(a, r)")
    assert [b.tensor for b in lives_in_float(of(alone), UNALIGNED).buffers] == ["x", "a", "y"]
    assert [b.tensor for b in lives_in_float(of(shared), UNALIGNED).buffers] == list("xary")


def test_an_output_that_nobody_takes_makes_no_operator_float():
    body = pair("x") + "a, b = Split<axis=1>(xd, half) " + pair("a")
    half = {"half": np.array([1, 1], np.int64)}
    lives = fused_lives(of(graph(body, outputs="float[1,1,4,4] ad", **half)), UNALIGNED)
    assert lives.float_nodes == ()
    assert [(b.tensor, b.bytes) for b in lives.buffers] == [("x", 32), ("a", 16)]


def test_branches_with_scales_of_their_own_are_stored_once_each():
    both = "x1 = QuantizeLinear(x, s, z) x2 = QuantizeLinear(x, s2, z) "
    both += "d1 = DequantizeLinear(x1, s, z) d2 = DequantizeLinear(x2, s2, z) "
    model = graph(both + "y = Add(d1, d2) " + pair("y"), outputs=f"{SHAPE} yd")
    assert peak(fused_lives(of(model), UNALIGNED)) == 3 * 32


def test_a_skip_connection_keeps_its_tensor_alive():
    body = "a = Abs(x) b = Abs(a) c = Abs(b) y = Add(a, c)"
    lives = lives_in_float(of(graph(body)), UNALIGNED)
    (kept,) = (buffer for buffer in lives.buffers if buffer.tensor == "a")
    assert (kept.born, kept.dies) == (0, 3)
    assert peak(lives) == 3 * 128


def test_a_size_that_is_not_known_is_named_and_not_counted():
    free = 'float["n",2,"h"]'
    model = graph("a = Abs(x) y = Abs(a)", inputs=f"{free} x", outputs=f"{free} y")
    lives = lives_in_float(of(model), UNALIGNED)
    assert lives.unknown == ("the size of `x`", "the size of `a`", "the size of `y`")
    assert peak(lives) == 0


# --- placement ----------------------------------------------------------------------------------


def buffers_of(rows):
    return [Buffer(str(n), size, born, born + life) for n, (size, born, life) in enumerate(rows)]


rows = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=6
)


def least_height(buffers):
    """The optimum: some order puts each buffer lowest in turn and reaches it."""
    best = sum(buffer.bytes for buffer in buffers)
    for order in itertools.permutations(buffers):
        placed = []
        for buffer in order:
            together = sorted(
                (low, low + other.bytes)
                for other, low in placed
                if other.born <= buffer.dies and buffer.born <= other.dies
            )
            low = 0
            for start, end in together:
                if start - low >= buffer.bytes:
                    break
                low = max(low, end)
            placed.append((buffer, low))
        best = min(best, max(low + buffer.bytes for buffer, low in placed))
    return best


def peak_of(buffers):
    return max(sum(b.bytes for b in buffers if b.born <= step <= b.dies) for step in range(12))


@given(rows)
def test_no_two_tensors_that_live_together_overlap(drawn):
    buffers = buffers_of(drawn)
    placed = list(zip(buffers, place(buffers), strict=True))
    for (left, low), (right, high) in itertools.combinations(placed, 2):
        together = left.born <= right.dies and right.born <= left.dies
        assert not together or low + left.bytes <= high or high + right.bytes <= low


def test_the_greedy_placement_is_near_the_best_of_all_orders():
    draw = np.random.default_rng(0)
    over = []
    for _ in range(60):
        drawn = [tuple(map(int, draw.integers((1, 0, 0), (20, 7, 5)))) for _ in range(6)]
        buffers = buffers_of(drawn)
        best = least_height(buffers)
        height = height_of(buffers, place(buffers))
        assert peak_of(buffers) <= best <= height
        over.append(height / best)
    assert np.mean(np.array(over) == 1) >= 0.9
    assert max(over) < 1.2


@given(rows, st.integers(1, 40))
def test_what_finds_no_room_is_left_out_and_the_rest_stays_inside(drawn, capacity):
    buffers = buffers_of(drawn)
    offsets = place(buffers, capacity)
    assert height_of(buffers, offsets) <= capacity
    for buffer, offset in zip(buffers, offsets, strict=True):
        if offset is None:
            alone = buffer.bytes > capacity
            beside = [b for b in buffers if b.born <= buffer.dies and buffer.born <= b.dies]
            assert alone or sum(b.bytes for b in beside) > capacity


# --- the estimate -------------------------------------------------------------------------------


def test_the_estimate_of_a_quantized_net_is_that_of_its_layers(nets):
    estimate = memory_of(nets["stm32n6"], N6)
    # int8 weights 162 + 30 + 20, int32 biases 4·(6 + 5 + 4), the added constant 5
    assert estimate.weights_bytes == estimate.flash_bytes == 212 + 60 + 5
    # the first Conv: 3·8·8 in, 6·8·8 out
    assert estimate.peak_bytes == 192 + 384
    assert estimate.peak_node.startswith("Conv")
    assert sorted(estimate.alive) == ["image", "r"]
    assert estimate.float_peak_bytes == 4 * (192 + 384)
    assert (estimate.internal_bytes, estimate.external_bytes) == (192 + 384, 0)
    assert estimate.float_nodes == estimate.unknown == estimate.overflow == ()
    low, high = estimate.band
    assert low < estimate.peak_bytes < high


def test_the_estimate_of_mobilenet_v2_is_as_far_from_sts_figure_as_the_sources_say(tmp_path):
    mobilenet_v2(tmp_path / "m.onnx")
    estimate = memory_of(tmp_path / "m.onnx", N6)
    # ST's model zoo, MobileNetV2 1.0 at 224 x 224, int8, Core 2.0: 2058 KiB RAM, 4235 KiB flash
    ours = estimate.float_peak_bytes / 4
    assert ours == 112 * 112 * 96 + 56 * 56 * 96
    assert 0.71 <= ours / (2058 * 1024) <= 1.14
    assert 0.75 <= estimate.weights_bytes / 4 / (4235 * 1024) <= 1


def test_a_chip_that_is_too_small_spills_and_then_overflows(nets):
    def with_sizes(chip, spill):
        sizes = {"activations": chip, "spill": spill}
        pools = [
            pool.model_copy(update={"size_bytes": sizes.get(pool.use, pool.size_bytes)})
            for pool in N6.memory
        ]
        update = {"memory": tuple(pools), "on_chip_bytes": chip}
        return memory_of(nets["stm32n6"], N6.model_copy(update=update))

    spilled = with_sizes(chip=400, spill=400)
    assert spilled.internal_bytes <= 400
    assert spilled.external_bytes >= 192
    assert spilled.overflow == ()
    lost = with_sizes(chip=400, spill=100).overflow
    assert lost == ("`image` (0.2 KiB) fits into no memory for activations",)


def test_a_target_without_memory_pools_gets_the_peaks_alone(nets):
    estimate = memory_of(nets["ort-x86"], X86)
    assert estimate.peak_bytes > 0
    assert (estimate.internal_bytes, estimate.flash_bytes, estimate.band) == (None, None, None)


def test_the_readme_gives_the_triple_and_calls_it_an_estimate(nets):
    lines = memory_lines(memory_of(nets["stm32n6"], N6))
    assert lines[0].startswith("ESTIMATE")
    assert lines[2] == (
        "- internal RAM 0.6 KiB, external RAM 0.0 KiB, weights in flash 0.3 KiB (+ code, unknown)"
    )


def test_where_operators_compute_in_float_no_band_is_promised(tmp_path):
    onnx.save(small_net(), tmp_path / "float.onnx")
    estimate = memory_of(tmp_path / "float.onnx", N6)
    assert estimate.band is None
    assert "12 times too low" in "\n".join(memory_lines(estimate))
    assert estimate.peak_bytes == estimate.float_peak_bytes


@pytest.mark.parametrize("bits", [4, 8])
def test_int4_weights_take_half_a_byte(tmp_path, bits):
    type_ = onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8
    body = pair("x") + "wi = Cast<to=3>(w) wd = DequantizeLinear(wi, s, z) c = Conv(xd, wd) "
    model = graph(body + pair("c"), outputs=f"{SHAPE} cd")
    model.opset_import[0].version, model.ir_version = 21, 10
    model.graph.initializer.append(
        onnx.helper.make_tensor("w", type_, [2, 2, 1, 1], np.ones(4, np.int8).tolist())
    )
    onnx.save(model, tmp_path / "m.onnx")
    assert memory_of(tmp_path / "m.onnx", N6).weights_bytes == 4 * bits // 8
