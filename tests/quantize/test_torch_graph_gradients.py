"""Gradients against finite differences, and against torch's own learnable quantization."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch.autograd import gradcheck

from onnxq.quantize.torch_graph import TorchGraph

HEAD = '<ir_version: 8, opset_import: ["": 18]>\n'


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


GRAPHS = {
    "Conv, folded Relu and MaxPool": (
        """g (double[1,2,6,6] x, double[4,1,3,3] w) => (double[1,4,a,b] y) {
        c = Conv<group=2, pads=[1,0,2,1], strides=[2,1], dilations=[1,2]>(x, w)
        r = Relu(c)
        y = MaxPool<kernel_shape=[2,2], ceil_mode=1>(r)
    }""",
        [(1, 2, 6, 6), (4, 1, 3, 3)],
    ),
    "ConvTranspose, LeakyRelu, AveragePool": (
        """g (double[1,2,5] x, double[2,3,3] w) => (double[1,3,a] y) {
        c = ConvTranspose<strides=[2], output_padding=[1], pads=[1,0]>(x, w)
        r = LeakyRelu(c)
        y = AveragePool<kernel_shape=[3], strides=[2], pads=[1,1], ceil_mode=1>(r)
    }""",
        [(1, 2, 5), (2, 3, 3)],
    ),
    "attention with LayerNormalization": (
        """g (double[1,3,4] x, double[4,4] w, double[4] scale) => (double[1,3,4] y) {
        n = LayerNormalization(x, scale)
        k = MatMul(n, w)
        t = Transpose<perm=[0,2,1]>(k)
        likeness = MatMul(n, t)
        s = Softmax(likeness)
        m = MatMul(s, n)
        g1 = Erf(m)
        y = Add(x, g1)
    }""",
        [(1, 3, 4), (4, 4), (4,)],
    ),
    "moved values": (
        """g (double[2,4,4] x, double[2,2,2] u) => (double[a,b] y) {
        first = Constant<value = int64[1] {-1}>()
        last = Constant<value = int64[1] {-5}>()
        axis = Constant<value = int64[1] {1}>()
        back = Constant<value = int64[1] {-2}>()
        some = Constant<value = int64[3] {2, 0, 2}>()
        where = Constant<value = int64[2,1] {1, 0}>()
        pads = Constant<value = int64[6] {0, 1, -1, 0, 2, 0}>()
        s = Slice(x, first, last, axis, back)
        p = Pad<mode="reflect">(s, pads)
        g1 = Gather<axis=2>(p, some)
        h1, h2, h3 = Split<axis=1, num_outputs=3>(g1)
        j = ReduceLogSumExp(h1, axis)
        e = Einsum<equation="bij,bjk->bk">(u, h2)
        f = Flatten(j)
        y = Mul(e, f)
    }""",
        [(2, 4, 4), (2, 2, 2)],
    ),
    "Resize, cubic and linear": (
        """g (double[1,1,5,4] x) => (double[1,1,a,b] y) {
        scales = Constant<value = float[4] {1.0, 1.0, 1.7, 0.6}>()
        c = Resize<mode="cubic", antialias=1>(x, , scales)
        l = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , scales)
        y = Mul(c, l)
    }""",
        [(1, 1, 5, 4)],
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_are_those_of_finite_differences(name):
    text, shapes = GRAPHS[name]
    graph = TorchGraph(onnx.parser.parse_model(HEAD + text))
    names = [value.name for value in onnx.parser.parse_model(HEAD + text).graph.input]
    tensors = [drawn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]

    def run(*given: torch.Tensor) -> torch.Tensor:
        return graph(dict(zip(names, given, strict=True)))["y"]

    assert gradcheck(run, tensors)


PER_TENSOR = """g (float[40] x) => (float[40] y)
    <float s = {0.11}, int8 z = {3}> {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s, z)
}"""
PER_AXIS = """g (float[2,3,8] x) => (float[2,3,8] y)
    <float[3] s = {0.02, 0.013, 0.05}, int8[3] z = {0, 0, 0}> {
    q = QuantizeLinear<axis=1>(x, s, z)
    y = DequantizeLinear<axis=1>(q, s, z)
}"""


def test_scale_and_value_have_the_gradients_of_torchs_learnable_quantization():
    graph = TorchGraph(onnx.parser.parse_model(HEAD + PER_TENSOR))
    scale = graph.make_trainable("s")
    x = (drawn(40, seed=2) * 10).float().requires_grad_()  # none within half a step of the bounds
    outer = drawn(40, seed=1).float()
    (graph({"x": x})["y"] * outer).sum().backward()
    theirs_x = x.detach().clone().requires_grad_()
    theirs_scale = torch.tensor([0.11], requires_grad=True)
    theirs = torch._fake_quantize_learnable_per_tensor_affine(
        theirs_x, theirs_scale, torch.tensor([3.0]), -128, 127, 1.0
    )
    (theirs * outer).sum().backward()
    assert 0 < int((x.grad == 0).sum()) < 40
    torch.testing.assert_close(x.grad, theirs_x.grad)
    torch.testing.assert_close(scale.grad, theirs_scale.grad.reshape(()), rtol=1e-4, atol=1e-4)


def test_scales_of_channels_have_those_gradients_too():
    graph = TorchGraph(onnx.parser.parse_model(HEAD + PER_AXIS))
    scale = graph.make_trainable("s")
    x = drawn(2, 3, 8).float()
    outer = drawn(2, 3, 8, seed=1).float()
    (graph({"x": x})["y"] * outer).sum().backward()
    theirs = scale.detach().clone().requires_grad_()
    quantized = torch._fake_quantize_learnable_per_channel_affine(
        x, theirs, torch.zeros(3), 1, -128, 127, 1.0
    )
    (quantized * outer).sum().backward()
    torch.testing.assert_close(scale.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_a_value_on_the_bound_moves_the_scale_and_not_itself():
    graph = TorchGraph(onnx.parser.parse_model(HEAD + PER_TENSOR))
    scale = graph.make_trainable("s")
    with torch.no_grad():
        scale.fill_(0.5)
    x = torch.full((40,), 62.0, requires_grad=True)  # 124 steps, zero point 3: the code 127
    graph({"x": x})["y"].sum().backward()
    assert torch.equal(x.grad, torch.zeros(40))
    assert scale.grad == 40 * 124


TRAINED = """g (float[1,4] x) => (float[1,2] y)
    <float ws = {0.02}, int8 wz = {0}, float xs = {0.1}, uint8 xz = {128}, int64[2] turn = {4, 2}> {
    flat = Reshape(w.weight, turn)
    wq = QuantizeLinear(flat, ws, wz)
    wd = DequantizeLinear(wq, ws, wz)
    xq = QuantizeLinear(x, xs, xz)
    xd = DequantizeLinear(xq, xs, xz)
    product = MatMul(xd, wd)
    added = Add(product, bias)
    y = Mul(added, factor)
}"""


def trained() -> TorchGraph:
    arrays = {"w.weight": drawn(8), "bias": drawn(2), "factor": drawn(1) + 1}
    text = HEAD + TRAINED.replace("w.weight", "weight")
    model = onnx.parser.parse_model(text)
    model.graph.node[0].input[0] = "w.weight"
    for name, tensor in arrays.items():
        array = tensor.numpy().astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return TorchGraph(model)


def test_weights_and_biases_learn_also_behind_quantization_and_nothing_else_does():
    graph = trained()
    assert set(graph.weights) == {"w.weight", "bias"}
    assert len(list(graph.parameters())) == 2
    graph({"x": drawn(1, 4).float()})["y"].square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in graph.weights.values())


def test_training_lowers_the_loss_and_is_kept_by_the_state():
    graph, x = trained(), drawn(1, 4).float()
    optimizer = torch.optim.SGD(graph.parameters(), 0.05)
    losses = []
    for _ in range(20):
        loss = (graph({"x": x})["y"] - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.1 * losses[0]
    other = trained()
    other.load_state_dict(graph.state_dict())
    assert torch.equal(other({"x": x})["y"], graph({"x": x})["y"])
