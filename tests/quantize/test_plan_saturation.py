"""Weights narrowed so that no sum of pairs leaves int16, judged by products written out in full."""

import numpy as np
import onnx
import pytest

from onnxq.graph import load_graph
from onnxq.quantize.plan import make_plan
from onnxq.quantize.stage import quantize
from onnxq.recipe import QuantizeSection
from onnxq.target import load_target

from .nets import HEAD, Int8, calibrated, weights

NET = (
    HEAD
    + """g (float[1,3,8,8] x) => (float[1,6] y) {
    [stem] a = Conv<pads=[1,1,1,1]>(x, w1, b1)  [relu] b = Relu(a)
    [deep] c = Conv<group=8>(b, w2)  [grouped] d = Conv<group=2>(c, w3)
    [pool] e = GlobalAveragePool(d)  [flat] f = Flatten(e)
    [gemm] g1 = Gemm<transB=1>(f, w4, b4)  [matmul] y = MatMul(g1, w5) }"""
)


@pytest.fixture
def net(tmp_path):
    return calibrated(
        tmp_path, NET, w1=weights(8, 3, 3, 3), b1=weights(8), w2=weights(8, 1, 3, 3),
        w3=weights(8, 4, 3, 3), w4=weights(16, 8), b4=weights(16), w5=weights(16, 6),
    )  # fmt: skip


def made(net, name="ort-x86", **options):
    output = net.path.with_name(f"{name}-{'-'.join(options.values())}.onnx")
    section = QuantizeSection(**options)
    record = quantize(net.path, net.ranges, load_target(name), section, output)
    return Int8(net, output, record, onnx.load(output))


ORDER = {  # weight → the order in which it is summed: output channels first
    "w1": lambda w: w.transpose(0, 2, 3, 1),
    "w3": lambda w: w.transpose(0, 2, 3, 1),
    "w4": lambda w: w,
    "w5": lambda w: w.T,
}


def rows_of(file, name):
    rows = ORDER[name](file.arrays[f"{name}.i"]).astype(int)
    return rows.reshape(len(rows), -1)


def worst(file, name):
    """Largest magnitude of any pair sum, for each output channel, over the corners of uint8."""
    rows = rows_of(file, name)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    corners = [(a, b) for a in (0, 255) for b in (0, 255)]
    return np.array(
        [max(abs(u * a + v * b) for u, v in row.reshape(-1, 2) for a, b in corners) for row in rows]
    )


@pytest.mark.parametrize("name", ORDER)
def test_without_narrowing_some_channels_could_saturate(net, name):
    assert (worst(made(net, saturation="ignore"), name) > 32767).any()


@pytest.mark.parametrize("name", ORDER)
def test_narrowed_no_channel_can_saturate(net, name):
    assert (worst(made(net, saturation="narrow"), name) <= 32767).all()


@pytest.mark.parametrize("name", ORDER)
def test_channels_that_cannot_saturate_keep_every_step(net, name):
    wide, narrow = made(net, saturation="ignore"), made(net, saturation="narrow")
    safe = worst(wide, name) <= 32767
    scales = [file.arrays[f"{name}.s"] for file in (wide, narrow)]
    assert np.array_equal(scales[0][safe], scales[1][safe])
    assert (scales[0][~safe] < scales[1][~safe]).all()


@pytest.mark.parametrize("name", ORDER)
def test_no_channel_has_fewer_than_64_steps(net, name):
    rows = rows_of(made(net, saturation="narrow"), name)
    assert (np.abs(rows).max(1) >= 64).all()


def test_a_depthwise_conv_keeps_its_scales(net):
    wide, narrow = made(net, saturation="ignore"), made(net, saturation="narrow")
    assert np.array_equal(wide.arrays["w2.s"], narrow.arrays["w2.s"])


def test_every_narrowed_node_is_named(net):
    file = made(net, saturation="narrow")
    found = {finding.where.split(",")[0]: finding.what for finding in file.record.findings}
    assert set(found) == {"stem", "grouped", "gemm", "matmul"}
    assert all("could saturate" in what for what in found.values())
    assert not made(net, saturation="ignore").record.findings


@pytest.mark.parametrize(("name", "narrows"), [("ort-x86", False), ("ort-x86-avx2", True)])
def test_the_target_decides_unless_the_recipe_does(net, name, narrows):
    target = load_target(name)
    section = QuantizeSection()
    output = net.path.with_name("by_target.onnx")
    file = Int8(
        net, output, quantize(net.path, net.ranges, target, section, output), onnx.load(output)
    )
    wanted = made(net, saturation="narrow" if narrows else "ignore")
    for weight in ORDER:
        assert np.array_equal(rows_of(file, weight), rows_of(wanted, weight))


def test_narrowed_files_keep_their_bias(net):
    """The scale of a bias follows that of its weights: outputs stay near FP32."""
    wide, narrow = (made(net, saturation=way).error() for way in ("ignore", "narrow"))
    assert narrow < wide + 3


def test_one_scale_for_all_channels_is_narrowed_for_all(net):
    target = load_target("ort-x86").model_copy(update={"per_channel": False})
    graph = load_graph(net.path)
    wide = make_plan(graph, target, net.ranges.ranges, {})
    narrow = make_plan(graph, target, net.ranges.ranges, {}, narrow=True)
    for weight in ORDER:
        assert narrow.weights[weight].scales.shape == (1,)
        assert narrow.weights[weight].scales > wide.weights[weight].scales


def test_with_powers_of_two_narrowed_scales_are_such(net):
    target = load_target("ort-x86").model_copy(update={"power_of_two": True})
    plan = make_plan(load_graph(net.path), target, net.ranges.ranges, {}, narrow=True)
    exact = {"w1": weights(8, 3, 3, 3), "w3": weights(8, 4, 3, 3)}
    for name, weight in plan.weights.items():
        assert (np.frexp(weight.scales)[0] == 0.5).all()
        if name in exact:
            rounded = np.rint(exact[name] / weight.scales.reshape(-1, 1, 1, 1))
            rows = ORDER[name](rounded).reshape(len(rounded), -1)
            pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(len(rows), -1, 2)
            for side in (pairs.clip(0), -pairs.clip(None, 0)):
                assert side.sum(-1).max() <= 128
