"""Cross-layer equalization: which channels it evens out, which it leaves alone, and why."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.graph import constant_of, load_model
from onnxq.quantize.float_steps.bounds import intervals
from onnxq.quantize.float_steps.equalize import equalize
from onnxq.quantize.float_steps.types import Given, Stepped
from onnxq.samples import Samples

from . import float_nets
from .nets import HEAD, outputs, save, weights


def stepped(folder, text: str, kept: frozenset[str] = frozenset(), **constants) -> Stepped:
    path = save(folder / "fp32.onnx", HEAD + text, **constants)
    return equalize(ir.from_proto(load_model(path)), Given(kept=kept))


def array(step: Stepped, name: str) -> np.ndarray:
    found = constant_of(step.graph.graph.initializers[name])
    assert found is not None
    return found


def reasons(step: Stepped) -> dict[str, str]:
    return {row.node: row.reason for row in step.skipped}


PAIR = """g (float[1,3,6,6] x) => (float[1,5,6,6] y) {{
    [conv_1] a = Conv(x, w1, b1)
    [act] b = {act}
    [conv_2] y = Conv(b, w2)
}}"""


def pair(folder, act: str = "Relu(a)", size: float = 1.0, **more) -> Stepped:
    factors = float_nets.uneven(8, 3)
    return stepped(
        folder, PAIR.format(act=act),
        w1=weights(8, 3, 1, 1, seed=1, size=size) * factors.reshape(-1, 1, 1, 1),
        b1=weights(8, seed=2, size=0.1 * size) * factors,
        w2=weights(5, 8, 1, 1, seed=3), **more,
    )  # fmt: skip


def test_both_sides_of_every_channel_end_with_the_same_range_but_for_one_factor(tmp_path):
    step = pair(tmp_path)
    made = np.maximum(np.abs(array(step, "w1")).max((1, 2, 3)), np.abs(array(step, "b1")))
    read = np.abs(array(step, "w2")).max((0, 2, 3))
    np.testing.assert_allclose(made / read, np.median(made / read), rtol=5e-3)


def test_factors_are_the_square_roots_of_the_papers_ratio(tmp_path):
    step = pair(tmp_path)
    before = {
        t.name: onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "fp32.onnx").graph.initializer
    }
    made = np.maximum(np.abs(before["w1"]).max((1, 2, 3)), np.abs(before["b1"]))
    wanted = np.sqrt(made / np.abs(before["w2"]).max((0, 2, 3)))
    wanted /= np.median(wanted)
    found = before["b1"] / array(step, "b1")
    np.testing.assert_allclose(found, wanted, rtol=5e-3)
    (row,) = step.links
    assert (row.source, row.through, row.sinks) == ("conv_1", ("act",), ("conv_2",))
    np.testing.assert_allclose([row.smallest, row.largest], [wanted.min(), wanted.max()], rtol=5e-3)


@pytest.mark.parametrize(
    ("nodes", "shapes"),
    [
        ("[l] a = Conv<group=2>(x, w1)  b = Relu(a)  y = Conv<group=2>(b, w2)",
         {"w1": (8, 2, 1, 1), "w2": (6, 4, 1, 1)}),
        ("[l] a = ConvTranspose<group=2>(x, w1)  b = Relu(a)  y = ConvTranspose<group=2>(b, w2)",
         {"w1": (4, 4, 1, 1), "w2": (8, 3, 1, 1)}),
        ("[l] a = Conv(x, w1)  b = GlobalAveragePool(a)  c = Flatten(b)  y = Gemm<transB=1>(c, w2)",
         {"w1": (8, 4, 1, 1), "w2": (6, 8)}),
        ("[l] a = Conv(x, w1)  b = MaxPool<kernel_shape=[2,2]>(a)  c = Transpose<perm=[0,2,3,1]>(b)"
         "  y = MatMul(c, w2)", {"w1": (8, 4, 1, 1), "w2": (8, 6)}),
    ],
)  # fmt: skip
def test_layers_of_every_kind_are_linked_and_keep_the_function(tmp_path, nodes, shapes):
    made = {name: weights(*shape, seed=3) for name, shape in shapes.items()}
    channels = 8
    factors = float_nets.uneven(channels, 1)
    if "ConvTranspose" in nodes:
        split = made["w1"].reshape(2, 2, 4, 1, 1) * factors.reshape(2, 1, 4, 1, 1)
        made["w1"] = split.reshape(4, 4, 1, 1)
    else:
        made["w1"] = made["w1"] * factors.reshape(8, 1, 1, 1)
    text = "g (float[1,4,4,4] x) => (float y) {" + "\n".join(nodes.split("  ")) + "}"
    step = stepped(tmp_path, text, **made)
    assert [row.source for row in step.links] == ["l"]
    assert step.links[0].changed > 4
    ir.save(step.graph, tmp_path / "after.onnx")
    samples = Samples("s", {"x": weights(4, 4, 4, 4, size=1.0)})
    exact, got = (outputs(tmp_path / f"{n}.onnx", samples)["y"] for n in ("fp32", "after"))
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("b = Relu(a) c = Add(b, x) y = Conv(c, w2)", "joins it with another tensor: a branch"),
        ("b = Tanh(a) y = Conv(b, w2)", "does not let factors of channels pass"),
        ("b = Relu(a) c = Conv(b, w1) y = Relu(c)", "the weight of `l` is shared"),
        ("b = Clip(a, low, six) y = Conv(b, w2)", "cuts at other places once it is scaled"),
        ("b = Clip(a, zero, six) y = Conv(b, w2)", "could cut at 6 in every channel"),
        ("y = Relu(a)", "`y` is an output of the graph"),
        ("b = Relu(a) c = Mul(b, a) y = Conv(c, w2)", "joins it with another tensor: a branch"),
    ],
)
def test_what_cannot_be_scaled_is_skipped_by_name_with_its_reason(tmp_path, nodes, reason):
    text = "g (float[1,4,4,4] x) => (float y) { [l] a = Conv(x, w1) " + nodes + "}"
    step = stepped(
        tmp_path, text, w1=weights(4, 4, 1, 1), w2=weights(4, 4, 1, 1),
        zero=np.float32(0), low=np.float32(-1), six=np.float32(6),
    )  # fmt: skip
    assert reason in reasons(step)["l"]
    assert step.links == ()
    np.testing.assert_array_equal(array(step, "w1"), weights(4, 4, 1, 1))


def clipped(folder, reach: np.ndarray) -> Stepped:
    """conv_1 of values from 0 to 1 under a Clip at 6, its channels reaching what ``reach`` says."""
    text = """g (float[1,2,4,4] x) => (float[1,5,4,4] y) {
        s = Sigmoid(x)
        [conv_1] a = Conv(s, w1)
        [clip] b = Clip(a, zero, six)
        [conv_2] y = Conv(b, w2)
    }"""
    w1 = np.repeat(reach.reshape(-1, 1, 1, 1) / 2, 2, 1).astype(np.float32)
    return stepped(
        folder, text, w1=w1, w2=weights(5, len(reach), 1, 1), zero=np.float32(0), six=np.float32(6)
    )


def test_below_a_clip_only_channels_that_never_reach_it_are_scaled(tmp_path):
    reach = np.array([0.01, 0.1, 1.0, 5.9, 6.1, 60.0])
    step = clipped(tmp_path, reach)
    before, after = onnx.load(tmp_path / "fp32.onnx").graph.initializer[0], array(step, "w1")
    factors = (onnx.numpy_helper.to_array(before) / after)[:, 0, 0, 0]
    assert (factors[:3] != 1).all()
    np.testing.assert_array_equal(factors[4:], 1)
    assert (reach[:4] / factors[:4] <= 6.001).all()  # none is pushed into the Clip
    ir.save(step.graph, tmp_path / "after.onnx")
    samples = Samples("far", {"x": weights(16, 2, 4, 4, size=20.0)})
    exact, got = (outputs(tmp_path / f"{n}.onnx", samples)["y"] for n in ("fp32", "after"))
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["clip", "random-1", "random-2", "random-4"])
def test_no_value_leaves_the_interval_that_the_graph_promises(tmp_path, name):
    net = float_nets.make(name, tmp_path)
    bounded = onnx.load(net.path)
    bounded.graph.node[0].input[0] = "bounded"
    bounded.graph.node.insert(0, onnx.helper.make_node("Sigmoid", ["x"], ["bounded"]))
    known = intervals(ir.from_proto(bounded).graph)
    tensors = [n.output[0] for n in bounded.graph.node]
    del bounded.graph.output[:]
    bounded.graph.output.extend(
        onnx.helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in tensors
    )
    onnx.save(bounded, tmp_path / "all.onnx")
    far = Samples("far", {k: v * np.float32(9) for k, v in net.samples.inputs.items()})
    told = 0
    for tensor, values in outputs(tmp_path / "all.onnx", far).items():
        low, high = known[tensor]
        shape = (1, -1, *[1] * (values.ndim - 2))
        assert (values >= low.reshape(shape) - 1e-6).all()
        assert (values <= high.reshape(shape) + 1e-6).all()
        told += int(np.isfinite(high).all())
    assert told > 3


def test_channels_that_are_even_already_are_left_alone(tmp_path):
    step = stepped(
        tmp_path, PAIR.format(act="Relu(a)"),
        w1=weights(8, 3, 1, 1, seed=1), b1=weights(8, seed=2), w2=weights(5, 8, 1, 1),
    )  # fmt: skip
    assert reasons(step)["conv_1"].startswith("its channels are even: the largest is 2.0 times")
    np.testing.assert_array_equal(array(step, "w1"), weights(8, 3, 1, 1, seed=1))


def test_a_channel_with_nothing_but_a_bias_is_not_blown_up(tmp_path):
    w1, b1 = weights(8, 3, 1, 1, seed=1), weights(8, seed=2)
    w1[0], b1[0], w1[1] = 1e-9, 0.5, 30.0
    step = stepped(tmp_path, PAIR.format(act="Relu(a)"), w1=w1, b1=b1, w2=weights(5, 8, 1, 1))
    assert np.abs(array(step, "b1")).max() < 1.5
