"""Bias correction, judged by ONNX Runtime's means over the samples."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.graph import load_model
from onnxq.progress import silent
from onnxq.quantize import bias
from onnxq.quantize.bias import correct_biases
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.plan import make_plan
from onnxq.runtime import Session, with_outputs
from onnxq.target import load_target

from .nets import HEAD, Net, calibrated, residual, weights

PLAIN = (
    HEAD
    + """g (float[1,4,6,6] x) => (float[1,5] y) {
    [conv_1] a = Conv(x, w1)
    [relu_1] b = Relu(a)
    [deconv_1] c = ConvTranspose<group=2>(b, w2)
    [relu_2] d = Relu(c)
    [gap_1] e = GlobalAveragePool(d)
    [flat_1] f = Flatten(e)
    [gemm_1] g1 = Gemm(f, w3)
    [matmul_1] y = MatMul(g1, w4)
}"""
)


def corrected(net: Net, target: str = "ort-x86") -> tuple[Draft, Draft, str]:
    """The draft as planned, the draft with corrected biases, and what was done."""
    graph, chosen = ir.from_proto(load_model(net.path)), load_target(target)
    draft = Draft(graph, make_plan(graph, chosen, net.ranges.ranges, {}), chosen)
    return draft, *correct_biases(draft, Evidence(load_model(net.path), net.samples, 1, silent))


def channel_means(model: onnx.ModelProto, node: str, net: Net) -> np.ndarray:
    """Mean before activation of every channel of ``node`` over all samples."""
    (tensor,) = (n.output[0] for n in model.graph.node if n.name == node)
    session = Session(with_outputs(model, [tensor]).SerializeToString(), optimization="none")
    values = np.concatenate([session.run(row)[tensor] for row in net.samples.rows()])
    return values.astype(np.float64).mean(axis=(0, *range(2, values.ndim)))


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return residual(
        tmp_path_factory.mktemp("residual"), inputs={"x": np.abs(weights(128, 3, 8, 8, size=1))}
    )


@pytest.mark.parametrize("node", ["conv_1", "conv_2", "gemm_1"])
def test_means_of_channels_come_nearer_to_those_of_fp32(net, node):
    draft, better, _ = corrected(net)
    exact = channel_means(load_model(net.path), node, net)
    plain, after = (
        np.abs(channel_means(each.quantized(), node, net) - exact) for each in (draft, better)
    )
    assert np.square(after).sum() < 0.25 * np.square(plain).sum()


def test_only_integers_of_biases_differ_in_the_file(net):
    draft, better, _ = corrected(net)
    files = [each.quantized() for each in (draft, better)]
    assert [str(n) for n in files[0].graph.node if n.op_type != "DequantizeLinear"] == [
        str(n) for n in files[1].graph.node if n.op_type != "DequantizeLinear"
    ]
    types = [
        {t.data_type for t in file.graph.initializer if t not in list(other.graph.initializer)}
        for file, other in (files, files[::-1])
    ]
    assert onnx.TensorProto.INT32 in types[0]
    sizes = [
        sorted(t.ByteSize() for t in file.graph.initializer if t.data_type != 6) for file in files
    ]
    assert sizes[0] == sizes[1]
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT)
    constants = [
        sorted(
            onnx.numpy_helper.to_array(t).tobytes()
            for t in f.graph.initializer
            if t.data_type in kinds
        )
        for f in files
    ]
    assert constants[0] == constants[1]


def test_a_convolution_and_a_gemm_without_bias_get_one_and_a_matmul_does_not(tmp_path):
    net = calibrated(
        tmp_path,
        PLAIN,
        inputs={"x": weights(64, 4, 6, 6, size=1)},
        w1=weights(6, 4, 3, 3),
        w2=weights(6, 2, 3, 3, seed=1),
        w3=weights(4, 6, seed=2),
        w4=weights(6, 5, seed=3),
    )
    draft, better, what = corrected(net, "stm32n6")
    inputs = {str(n.name): len([v for v in n.inputs if v]) for n in better.graph.graph}
    assert [inputs[name] for name in ("conv_1", "deconv_1", "gemm_1", "matmul_1")] == [3, 3, 3, 2]
    assert "of 16 channels of 3 layers, in 3 passes" in what
    exact = channel_means(load_model(net.path), "deconv_1", net)
    errors = [
        np.abs(channel_means(d.quantized(), "deconv_1", net) - exact) for d in (draft, better)
    ]
    assert np.square(errors[1]).sum() < np.square(errors[0]).sum()


def test_a_network_without_a_layer_that_has_a_bias_is_left_as_it_is(tmp_path):
    text = HEAD + "g (float[1,2,8] x) => (float[1,2,6] y) { [matmul] y = MatMul(x, w) }"
    net = calibrated(tmp_path, text, w=weights(8, 6))
    draft, better, said = corrected(net)
    assert better is draft
    assert said == "no layer has an int32 bias"


def test_layers_side_by_side_share_a_pass_and_deep_graphs_are_bounded(tmp_path, monkeypatch):
    text = (
        HEAD
        + """g (float[1,3,4,4] x) => (float[1,4,4,4] y) {
        [conv_1] a = Conv(x, w1, b1)
        [conv_2] b = Conv(x, w2, b2)
        [add_1] c = Add(a, b)
        [conv_3] y = Conv(c, w3, b3)
    }"""
    )
    net = calibrated(
        tmp_path,
        text,
        inputs={"x": weights(32, 3, 4, 4, size=1)},
        **{f"w{n}": weights(4, 3 if n < 3 else 4, 1, 1, seed=n) for n in (1, 2, 3)},
        **{f"b{n}": weights(4, seed=9 + n) for n in (1, 2, 3)},
    )
    assert corrected(net)[2].endswith("of 3 layers, in 2 passes")
    monkeypatch.setattr(bias, "MOST_ROUNDS", 1)
    assert corrected(net)[2].endswith("of 3 layers, in 1 passes")


def test_a_correction_that_would_leave_int32_is_not_made(net):
    draft, _, _ = corrected(net)
    model = draft.quantized()
    read = next(n for n in model.graph.node if n.name == "conv_1").input[2]
    name = next(n for n in model.graph.node if read in n.output).input[0]
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    full = np.full(8, 2**31 - 1, np.int32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(full, name))
    added = bias._add(model, name, np.array([1, -1] * 4, np.int64))
    assert added.tolist() == [0, -1] * 4
