"""Q/DQ graphs: the integers of TorchGraph are those of ONNX Runtime, code for code."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from onnxq.quantize.torch_graph import TorchGraph
from onnxq.runtime import Session

from .nets import HEAD, TARGETS, calibrated, residual, weights

NEW = '<ir_version: 10, opset_import: ["": 21]>\n'
ATTENTION = (
    HEAD
    + """g (float[1,6,8] x) => (float[1,6,8] y) {
    [norm] n = LayerNormalization(x, scale, shift)
    [key] k = MatMul(n, w1)
    [turn] t = Transpose<perm=[0,2,1]>(k)
    [like] l = MatMul(n, t)
    [soft] s = Softmax(l)
    [mix] m = MatMul(s, n)
    [proj] p = MatMul(m, w2)
    [bias] b2 = Add(p, b)
    [add] y = Add(x, b2)
}"""
)


def codes(model: onnx.ModelProto) -> list[str]:
    return [n.output[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def with_codes(model: onnx.ModelProto) -> tuple[bytes, list[str]]:
    """The model with the outputs of every QuantizeLinear among its outputs."""
    inferred = onnx.shape_inference.infer_shapes(model)
    known = {v.name: v for v in inferred.graph.value_info}
    names = [name for name in codes(model) if name in known]
    inferred.graph.output.extend(known[name] for name in names)
    return inferred.SerializeToString(), names


def assert_same_integers(path: Path, rows: list[dict[str, np.ndarray]]) -> None:
    model = onnx.load(path)
    graph, (with_outputs, names) = TorchGraph(model), with_codes(model)
    session = Session(with_outputs, optimization="none")
    assert len(names) >= 3
    for row in rows:
        expected = session.run(row)
        with torch.no_grad():
            computed = graph({k: torch.from_numpy(np.array(v)) for k, v in row.items()}, names)
        for name in names:
            found = computed[name].numpy()
            assert found.dtype == expected[name].dtype
            assert np.array_equal(found, expected[name]), name


@pytest.mark.parametrize("target", TARGETS)
def test_every_integer_of_a_quantized_network_is_that_of_the_runtime(tmp_path, target):
    net = residual(tmp_path)
    assert_same_integers(net.quantize(target).path, list(net.samples.rows()))


@pytest.mark.parametrize("target", ["ort-x86", "stm32n6"])
def test_every_integer_of_quantized_attention_is_that_of_the_runtime(tmp_path, target):
    net = calibrated(
        tmp_path,
        ATTENTION,
        scale=np.ones(8, np.float32),
        shift=weights(8, seed=4),
        w1=weights(8, 8, seed=1),
        w2=weights(8, 8, seed=2),
        b=weights(8, seed=3),
    )
    assert_same_integers(net.quantize(target).path, list(net.samples.rows()))


def ladder(type_: str, scale: float, zero_point: int) -> onnx.ModelProto:
    return onnx.parser.parse_model(
        NEW
        + f"""g (float[n] x) => ({type_}[n] q, float[n] y)
        <float s = {{{scale}}}, {type_} z = {{{zero_point}}}> {{
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z)
    }}"""
    )


@pytest.mark.parametrize(
    ("type_", "zero_point"),
    [("int8", -3), ("uint8", 128), ("int16", 5), ("uint16", 32768), ("int8", 127), ("uint8", 0)],
)
def test_halves_go_to_the_even_code_and_values_outside_to_the_last(type_, zero_point):
    model = ladder(type_, 0.25, zero_point)
    halves = np.arange(-140000, 140001, dtype=np.float32) / 8
    x = np.concatenate([halves, np.nextafter(halves, np.float32(0)), [np.inf, -np.inf]])
    x = x.astype(np.float32)
    expected = Session(model.SerializeToString(), optimization="none").run({"x": x})
    computed = TorchGraph(model)({"x": torch.from_numpy(x)})
    assert np.array_equal(computed["q"].numpy(), expected["q"])
    assert np.array_equal(computed["y"].numpy(), expected["y"])


STORED = """g (float[3,8] x) => (float[3,6] y) {
    wide = Cast<to=3>(w)
    weight = DequantizeLinear<axis=1>(wide, scale)
    y = MatMul(x, weight)
}"""


def test_weights_stored_in_four_bits_are_cast_and_dequantized_as_by_the_runtime():
    model = onnx.parser.parse_model(NEW + STORED)
    random = np.random.default_rng(0)
    packed = onnx.helper.make_tensor(
        "w", onnx.TensorProto.INT4, (8, 6), random.integers(-8, 8, 48).tolist()
    )
    scale = random.uniform(0.01, 0.1, 6).astype(np.float32)
    model.graph.initializer.extend([packed, onnx.numpy_helper.from_array(scale, "scale")])
    x = weights(3, 8)
    expected = Session(model.SerializeToString(), optimization="none").run({"x": x})["y"]
    computed = TorchGraph(model)({"x": torch.from_numpy(x)})["y"].detach().numpy()
    np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=1e-7)


BLOCKS = """g (float[8,6] x) => (int32[8,6] code, float[8,6] y) {
    q = QuantizeLinear<axis=0, block_size=4>(x, s, z)
    code = Cast<to=6>(q)
    y = DequantizeLinear<axis=0, block_size=4>(q, s, z)
}"""


@pytest.mark.parametrize("type_", ["int8", "uint8", "int4", "uint4", "int16", "uint16"])
def test_blocks_have_scales_of_their_own(type_):
    model = onnx.parser.parse_model(NEW + BLOCKS)
    scales = np.arange(1, 13, dtype=np.float32).reshape(2, 6) / 100
    kind = getattr(onnx.TensorProto, type_.upper())
    zeros = onnx.helper.make_tensor("z", kind, (2, 6), [1] * 12)
    model.graph.initializer.extend([onnx.numpy_helper.from_array(scales, "s"), zeros])
    x = weights(8, 6, size=1.0)
    expected = Session(model.SerializeToString(), optimization="none").run({"x": x})
    computed = TorchGraph(model)({"x": torch.from_numpy(x)})
    assert np.array_equal(computed["y"].numpy(), expected["y"])
    assert np.array_equal(computed["code"].numpy(), expected["code"])


def test_codes_that_are_moved_or_pooled_keep_their_gradient_and_their_integers():
    text = """g (float[1,2,4,4] x) => (float[1,4,2,2] y, uint8[1,4,2,2] moved)
        <float s = {0.05}, uint8 z = {100}> {
        q = QuantizeLinear(x, s, z)
        pooled = MaxPool<kernel_shape=[2,2], strides=[2,2]>(q)
        moved = Concat<axis=1>(pooled, pooled)
        y = DequantizeLinear(moved, s, z)
    }"""
    model = onnx.parser.parse_model(HEAD + text)
    x = weights(1, 2, 4, 4, size=1.0)
    expected = Session(model.SerializeToString(), optimization="none").run({"x": x})
    leaf = torch.from_numpy(x).requires_grad_()
    computed = TorchGraph(model)({"x": leaf})
    assert np.array_equal(computed["moved"].numpy(), expected["moved"])
    computed["y"].sum().backward()
    assert sorted(set(leaf.grad.ravel().tolist())) == [0.0, 2.0]
    assert int((leaf.grad > 0).sum()) == 8
