"""A Q and its DQ as one step give what the two give: numbers to the last bit, and gradients."""

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from onnxq.errors import ModelError
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.runtime import Session

HEAD = '<ir_version: 10, opset_import: ["": 21]>\n'
TENSOR = """g (float[2,3,40] x) => (float[2,3,40] y)
    <float s = {0.0371}, uint8 z = {119}> {
    q = QuantizeLinear(x, s, z)
    y = DequantizeLinear(q, s, z)
}"""
CHANNELS = """g (float[2,3,40] x) => (float[2,3,40] y)
    <float[3] s = {0.02, 0.013, 0.05}, int8[3] z = {0, 5, -7}> {
    q = QuantizeLinear<axis=1>(x, s, z)
    y = DequantizeLinear<axis=1>(q, s, z)
}"""
BLOCKS = """g (float[2,3,40] x) => (float[2,3,40] y) {
    q = QuantizeLinear<axis=2, block_size=20>(x, s, z)
    y = DequantizeLinear<axis=2, block_size=20>(q, s, z)
}"""
TWICE = """g (float[2,3,40] x) => (float[2,3,40] y)
    <float s = {0.0371}, int16 z = {-119}> {
    q = QuantizeLinear(x, s, z)
    a = DequantizeLinear(q, s, z)
    b = DequantizeLinear(q, s, z)
    y = Mul(a, b)
}"""


def read(text: str) -> onnx.ModelProto:
    model = onnx.parser.parse_model(HEAD + text)
    if "block_size" in text:
        scales = np.linspace(0.01, 0.03, 12, dtype=np.float32).reshape(2, 3, 2)
        points = np.arange(-6, 6, dtype=np.int8).reshape(2, 3, 2)
        for name, array in (("s", scales), ("z", points)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def drawn() -> np.ndarray:
    """Values on both sides of every grid's ends, and in the middle between codes."""
    random = np.random.default_rng(5).standard_normal((2, 3, 40)).astype(np.float32) * 3
    random[:, :, ::4] = np.arange(10) * np.float32(0.0371) + np.float32(0.0371) / 2
    return random


@pytest.mark.parametrize("text", [TENSOR, CHANNELS, BLOCKS, TWICE])
def test_values_and_gradients_are_the_same_whether_the_codes_are_asked_for_or_not(text):
    results = []
    for wanted in ((), ("q",)):
        graph = TorchGraph(read(text))
        scale = graph.make_trainable("s")
        x = torch.from_numpy(drawn()).requires_grad_()
        y = graph({"x": x}, wanted)["y"]
        (y * torch.linspace(-1, 1, 40)).sum().backward()
        results.append((y.detach(), x.grad, scale.grad))
    (one, of_x, of_scale), (other, of_x_too, of_scale_too) = results
    assert torch.equal(one, other)
    torch.testing.assert_close(of_x, of_x_too)
    torch.testing.assert_close(of_scale, of_scale_too, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("text", [TENSOR, CHANNELS, BLOCKS, TWICE])
def test_what_a_pair_gives_is_what_the_runtime_gives(text):
    model = read(text)
    expected = Session(model.SerializeToString(), optimization="none").run({"x": drawn()})["y"]
    with torch.no_grad():
        computed = TorchGraph(model)({"x": torch.from_numpy(drawn())})["y"].numpy()
    assert np.array_equal(computed, expected)


def test_codes_that_somebody_else_takes_are_still_made():
    text = TENSOR.replace("y = Deq", "shape = Cast<to=6>(q)\n n = ReduceMax(shape)\n y = Deq")
    model = onnx.parser.parse_model(
        HEAD + text.replace("(float[2,3,40] y)", "(float[2,3,40] y, int32[1,1,1] n)", 1)
    )
    expected = Session(model.SerializeToString(), optimization="none").run({"x": drawn()})
    computed = TorchGraph(model)({"x": torch.from_numpy(drawn())})
    assert np.array_equal(computed["n"].numpy(), expected["n"])
    assert np.array_equal(computed["y"].numpy(), expected["y"])


def test_a_pair_that_does_not_saturate_is_refused_as_before():
    with pytest.raises(ModelError, match="saturate = 0"):
        TorchGraph(read(TENSOR.replace("QuantizeLinear(x", "QuantizeLinear<saturate=0>(x")))(
            {"x": torch.from_numpy(drawn())}
        )
