"""Whole networks, quantized by us and by onnxruntime: nothing runs otherwise than it is told."""

import numpy as np
import pytest
from onnxruntime.quantization import QuantType, quantize_static

from onnxq.calibrate.readers import SampleReader
from onnxq.qtypes import IntType
from onnxq.quantize.convert import convert
from onnxq.verify.fusion import audit_fusion
from tests.quantize.nets import HEAD, Net, calibrated, weights

ATTENTION = """g (float[1,6,16] x) => (float[1,6,16] y) {
    [norm] l = LayerNormalization<axis=-1>(x, gain, bias)
    [query] q0 = MatMul(l, wq)
    [query_bias] q1 = Add(q0, bq)
    [key] k0 = MatMul(l, wk)
    [value] v0 = MatMul(l, wv)
    [turn] kt = Transpose<perm=[0,2,1]>(k0)
    [scores] s0 = MatMul(q1, kt)
    [scale] s1 = Div(s0, four)
    [soft] s2 = Softmax<axis=-1>(s1)
    [mix] a = MatMul(s2, v0)
    [residual] r = Add(a, x)
    [erf] e = Erf(r)
    [gate] m = Mul(r, e)
    [out] y = MatMul(m, wo)
}"""
SILU = """g (float[1,3,16,16] x) => (float[1,8,18,18] y) {
    [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [sigmoid_1] s = Sigmoid(a)
    [mul_1] m = Mul(a, s)
    [conv_2] b = Conv<pads=[1,1,1,1]>(m, w2, b2)
    [sigmoid_2] t = Sigmoid(b)
    [mul_2] n = Mul(b, t)
    [split] u, v = Split<axis=1>(n)
    [conv_3] c = Conv(v, w3)
    [concat] d = Concat<axis=1>(u, c)
    [up] e = Resize<mode="nearest">(d, , by2)
    [pool] f = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e)
    [pad] p = Pad(f, pads)
    [conv_4] h = Conv<pads=[1,1,1,1]>(p, w4)
    [deconv] i = ConvTranspose(h, w5)
    [swish] y = HardSwish(i)
}"""
EXCITED = """g (float[1,3,16,16] x) => (float[1,5] y) {
    [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [relu] r = Relu(a)
    [mean] s = ReduceMean<axes=[2,3]>(r)
    [conv_2] b = Conv(s, w2)
    [gate] t = HardSigmoid(b)
    [mul] m = Mul(r, t)
    [depthwise] d = Conv<pads=[1,1,1,1], group=8>(m, w3, b1)
    [clip] e = Clip(d, zero, six)
    [add] f = Add(e, m)
    [pool] h = AveragePool<kernel_shape=[2,2], strides=[2,2]>(f)
    [gap] i = GlobalAveragePool(h)
    [flat] j = Flatten(i)
    [gemm] k = Gemm<transB=1>(j, w4, b4)
    [soft] y = Softmax(k)
}"""
NETWORKS = {
    "attention": (
        ATTENTION,
        {
            "gain": weights(16), "bias": weights(16, seed=2), "bq": weights(16, seed=5),
            "four": np.float32(4),
            **{name: weights(16, 16, seed=n) for n, name in enumerate(("wq", "wk", "wv", "wo"))},
        },
    ),
    "silu": (
        SILU,
        {
            "w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 8, 3, 3, seed=1),
            "b2": weights(8, seed=2), "w3": weights(4, 4, 1, 1), "w4": weights(8, 8, 3, 3, seed=4),
            "w5": weights(8, 8, 1, 1, seed=5), "by2": np.array([1, 1, 2, 2], np.float32),
            "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        },
    ),
    "excited": (
        EXCITED,
        {
            "w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 8, 1, 1, seed=1),
            "w3": weights(8, 1, 3, 3), "w4": weights(5, 8), "b4": weights(5),
            "zero": np.float32(0), "six": np.float32(6),
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=NETWORKS)
def net(request, tmp_path_factory) -> Net:
    text, constants = NETWORKS[request.param]
    return calibrated(tmp_path_factory.mktemp(request.param), HEAD + text, **constants)


def quantized(net: Net, by: str):
    if by in {"ort-x86", "stm32n6"}:
        return net.quantize(by).path
    output = net.path.with_name("theirs.onnx")
    kind = QuantType.QUInt8 if by == "theirs, uint8" else QuantType.QInt8
    quantize_static(
        net.path, output, SampleReader(net.samples), per_channel=True,
        activation_type=kind, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return output


@pytest.mark.slow
@pytest.mark.parametrize("by", ["ort-x86", "stm32n6", "theirs, uint8", "theirs, int8"])
def test_every_node_runs_as_it_is_told_to(net, by):
    found = audit_fusion(quantized(net, by))
    assert found.findings == ()
    assert all(node.cause and node.do for node in found.nodes if node.runs == "float")
    assert "unknown" not in {node.cause for node in found.nodes}


@pytest.mark.slow
@pytest.mark.parametrize("by", ["stm32n6", "theirs, int8"])
def test_once_uint8_every_node_runs_as_it_does_on_arm(net, by, tmp_path):
    path = quantized(net, by)
    convert(path, IntType.UINT8, net.samples, tmp_path / "u8.onnx")
    before, after = audit_fusion(path), audit_fusion(tmp_path / "u8.onnx")
    assert [node.runs for node in after.nodes] == [node.elsewhere for node in before.nodes]
    assert "int8 activations on x86" not in {node.cause for node in after.nodes}
