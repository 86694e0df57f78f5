"""Forms that Q/DQ files take: other quantizers' grids, integer inputs, 4-bit weights."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from quantize.nets import residual

from handoff.qdq_models import with_constants
from handoff.runtime_integers import normal, runtime_integers
from onnxq.errors import ModelError
from onnxq.graph import load_model
from onnxq.handoff.reference.evaluate import Reference
from onnxq.runtime import Session

BESIDE_THE_MIDDLE = 1e-3


def agrees(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, str]:
    """Every layer is onnxruntime's but for one step beside a middle; how each was computed."""
    typed = onnx.shape_inference.infer_shapes(model)
    wanted = runtime_integers(typed, feed, "none")
    found = {}
    for layer, computed in Reference(typed).each(feed, wanted):
        away = np.abs(computed.integers.astype(int) - wanted[layer.name])
        assert away.max() <= 1, layer.name
        assert np.abs(computed.exact % 1 - 0.5)[away > 0].max(initial=0) <= BESIDE_THE_MIDDLE
        found[layer.name] = computed.by
    return found


def draw(*shape: int, seed: int = 0, dtype: type = np.int8) -> np.ndarray:
    ends = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(ends.min, ends.max + 1, shape, dtype)


@pytest.mark.parametrize("target", ["ort-x86", "stm32n6"])
def test_a_file_of_onnxqs_own_quantizer_is_computed(tmp_path, target):
    int8 = residual(tmp_path).quantize(target)
    feed = next(iter(int8.net.samples.rows()))
    found = agrees(load_model(int8.path), feed)
    assert set(found.values()) == {"integer", "float64"}
    assert [name for name, by in found.items() if by == "float64"] == ["x"]


INTEGERS = """<ir_version: 10, opset_import: ["" : 21]>
net (uint8[2,4,5,5] x) => (int8[2,3,5,5] y, float[2,3,5,5] z) {
    dx = DequantizeLinear (x, sx, zx)
    dw = DequantizeLinear <axis=0> (w, sw, zw)
    db = DequantizeLinear <axis=0> (b, sb)
    [conv_1] m = Conv (dx, dw, db)
    y = QuantizeLinear (m, sy, zy)
    d = DequantizeLinear (y, sy, zy)
    n = Neg (d)
    q = QuantizeLinear (n, sy, zy)
    z = DequantizeLinear (q, sy, zy)
}"""


def with_integers(**changes: np.ndarray) -> onnx.ModelProto:
    scales = np.float32([0.01, 0.02, 0.005])
    constants = {
        "sx": np.float32(0.02), "zx": np.uint8(117), "w": draw(3, 4, 1, 1), "sw": scales,
        "zw": np.int8([0, 0, 0]), "b": draw(3, seed=1, dtype=np.int16).astype(np.int32) // 40,
        "sb": np.float32(0.02) * scales, "sy": np.float32(0.06), "zy": np.int8(-9),
    }  # fmt: skip
    return with_constants(INTEGERS, **(constants | changes))


def test_integer_inputs_and_outputs_are_layers():
    model = with_integers()
    feed = {"x": draw(2, 4, 5, 5, seed=2, dtype=np.uint8)}
    assert agrees(model, feed) == {"x": "integer", "m": "integer", "z": "float64"}
    layers, outputs = Reference(onnx.shape_inference.infer_shapes(model)).run(feed)
    exact = Session(model.SerializeToString(), optimization="none").run(feed)
    np.testing.assert_array_equal(outputs["y"], exact["y"])
    np.testing.assert_array_equal(layers["m"], exact["y"])
    np.testing.assert_array_equal(outputs["z"], exact["z"])


@pytest.mark.parametrize(
    ("changes", "by"),
    [
        ({"w": draw(3, 4, 1, 1, dtype=np.uint8), "zw": np.uint8([130, 120, 0])}, "integer"),
        ({"w": draw(3, 4, 1, 1), "sw": np.float32(0.01), "zw": np.int8(-3)}, "integer"),
        ({"sb": np.float32([1e-4, 3e-4, 2e-4])}, "integer"),  # no product of scales: a term more
        ({"sb": np.float32(0.0002)}, "integer"),
    ],
)
def test_weights_with_zero_points_and_biases_of_their_own_scale_are_exact(changes, by):
    feed = {"x": draw(2, 4, 5, 5, seed=3, dtype=np.uint8)}
    assert agrees(with_integers(**changes), feed)["m"] == by


def test_four_bit_weights_behind_a_cast_are_computed():
    """The form in which 4-bit weights reach onnxruntime's integer kernels."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    net (float[1,4,6,6] x) => (float[1,5,6,6] y) {
        qx = QuantizeLinear (x, sx, zx)
        dx = DequantizeLinear (qx, sx, zx)
        w8 = Cast <to=3> (w4)
        dw = DequantizeLinear <axis=0> (w8, sw, zw)
        m = Conv (dx, dw)
        qy = QuantizeLinear (m, sx, zx)
        y = DequantizeLinear (qy, sx, zx)
    }"""
    model = with_constants(
        text, sx=np.float32(0.05), zx=np.uint8(100),
        sw=np.abs(normal(5)), zw=np.zeros(5, np.int8),
    )  # fmt: skip
    integers = np.random.default_rng(0).integers(-8, 8, 20)
    model.graph.initializer.append(
        onnx.helper.make_tensor("w4", TensorProto.INT4, [5, 4, 1, 1], integers)
    )
    found = agrees(model, {"x": normal(1, 4, 6, 6, size=2.0)})
    assert found["y"] == "integer"


GEMM = """<ir_version: 8, opset_import: ["" : 17]>
net (float[5,3] x) => (float[3,4] y) {
    qx = QuantizeLinear (x, sx, zx)
    dx = DequantizeLinear (qx, sx, zx)
    dw = DequantizeLinear <axis=1> (w, sw, zw)
    dc = DequantizeLinear <axis=0> (c, sc, zc)
    m = Gemm <transA=1, alpha=0.5, beta=2.0> (dx, dw, dc)
    qy = QuantizeLinear (m, sy, zy)
    y = DequantizeLinear (qy, sy, zy)
}"""


@pytest.mark.parametrize("rows", [None, 1, 3])
def test_a_gemm_with_factors_and_any_bias_is_exact(rows):
    shape = (4,) if rows is None else (rows, 4)
    text = GEMM if rows is None else GEMM.replace("<axis=0> (c", "<axis=1> (c")
    model = with_constants(
        text, sx=np.float32(0.04), zx=np.int8(5), w=draw(5, 4), sw=np.abs(normal(4)) / 20,
        zw=np.zeros(4, np.int8), c=draw(*shape, seed=4).astype(np.int32),
        sc=np.abs(normal(4, seed=5)) / 300, zc=np.zeros(4, np.int32),
        sy=np.float32(0.06), zy=np.int8(2),
    )  # fmt: skip
    assert agrees(model, {"x": normal(5, 3, size=2.0)})["y"] == "integer"


TWO = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1,2,4,4] a, float[1,3,4,4] b) => (float[1,6,2,4] y) {
    qa = QuantizeLinear (a, sa, za)
    da = DequantizeLinear (qa, sa, za)
    qb = QuantizeLinear (b, sb, zb)
    db = DequantizeLinear (qb, sb, zb)
    c = Concat <axis=1> (da, db)
    p = MaxPool <kernel_shape=[2,1], strides=[2,1]> (c)
    t = Transpose <perm=[0,1,3,2]> (p)
    dw = DequantizeLinear <axis=0> (w, sw, zw)
    m = Conv (t, dw)
    o = Transpose <perm=[0,1,3,2]> (m)
    qy = QuantizeLinear (o, sy, zy)
    y = DequantizeLinear (qy, sy, zy)
}"""


def test_scales_that_differ_from_channel_to_channel_go_through_pools_and_turns():
    """No quantization behind the Concat: what follows is of two scales, and no longer integer."""
    model = with_constants(
        TWO, sa=np.float32(0.03), za=np.int8(1), sb=np.float32(0.3), zb=np.int8(-20),
        w=draw(6, 5, 1, 1), sw=np.abs(normal(6)) / 30, zw=np.zeros(6, np.int8),
        sy=np.float32(0.4), zy=np.int8(0),
    )  # fmt: skip
    feed = {"a": normal(1, 2, 4, 4), "b": normal(1, 3, 4, 4, seed=1, size=4.0)}
    assert agrees(model, feed)["y"] == "float64"


def test_a_tensor_that_is_quantized_twice_makes_two_layers():
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[1,8] x) => (float[1,8] y) {
        q1 = QuantizeLinear (x, s1, z)
        d1 = DequantizeLinear (q1, s1, z)
        q2 = QuantizeLinear (x, s2, z)
        d2 = DequantizeLinear (q2, s2, z)
        m = Mul (d1, d2)
        q3 = QuantizeLinear (m, s1, z)
        y = DequantizeLinear (q3, s1, z)
    }"""
    model = with_constants(text, s1=np.float32(0.1), s2=np.float32(0.01), z=np.int8(3))
    assert list(agrees(model, {"x": normal(1, 8)})) == ["x", "q2", "y"]


def test_a_scale_for_other_channels_than_there_are_is_refused():
    model = with_integers(sw=np.float32([0.1, 0.2]), zw=np.int8([0, 0]))
    with pytest.raises(ModelError, match="2 scales or zero points for 3 channels"):
        Reference(model).run({"x": draw(2, 4, 5, 5, dtype=np.uint8)})
