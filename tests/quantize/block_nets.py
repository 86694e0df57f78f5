"""Blocks of the networks that people quantize, small enough for a test, as ONNX text."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .nets import HEAD, Net, calibrated, weights

__all__ = ["BLOCKS"]

_EFFICIENT = (
    HEAD
    + """g (float[1,3,24,24] x) => (float[1,10] y) {
    [stem] a = Conv<pads=[0,0,1,1], strides=[2,2]>(x, w1, b1)
    [stem_s] as = Sigmoid(a)
    [stem_m] am = Mul(a, as)
    [wide] b = Conv(am, w2, b2)
    [wide_c] bc = Clip(b, zero, six)
    [depth] c = Conv<group=24, pads=[1,1,1,1]>(bc, w3, b3)
    [depth_c] cc = Clip(c, zero, six)
    [squeeze] s = GlobalAveragePool(cc)
    [less] s1 = Conv(s, w4, b4)
    [less_r] s2 = Relu(s1)
    [more] s3 = Conv(s2, w5, b5)
    [gate] s4 = Sigmoid(s3)
    [gated] d = Mul(cc, s4)
    [project] e = Conv(d, w6, b6)
    [residual] f = Add(e, am)
    [pool] p = AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(f)
    [mean] m = GlobalAveragePool(p)
    [flat] n = Flatten(m)
    [head] y = Gemm<transB=1>(n, w7, b7)
}"""
)
_TRANSFORMER = (
    HEAD
    + """g (float[1,12,16] x) => (float[1,12,16] y) {
    [norm_1] n = LayerNormalization(x, g1, h1)
    [query] q0 = MatMul(n, wq)
    [query_b] q1 = Add(q0, bq)
    [key] k0 = MatMul(n, wk)
    [value] v0 = MatMul(n, wv)
    [q_heads] q2 = Reshape(q1, heads)
    [k_heads] k2 = Reshape(k0, heads)
    [v_heads] v2 = Reshape(v0, heads)
    [q_turn] q3 = Transpose<perm=[0,2,1,3]>(q2)
    [k_turn] k3 = Transpose<perm=[0,2,3,1]>(k2)
    [v_turn] v3 = Transpose<perm=[0,2,1,3]>(v2)
    [likeness] l = MatMul(q3, k3)
    [scaled] ls = Mul(l, root)
    [soft] s = Softmax<axis=-1>(ls)
    [mix] m = MatMul(s, v3)
    [turn_back] t = Transpose<perm=[0,2,1,3]>(m)
    [join] j = Reshape(t, joined)
    [project] p = MatMul(j, wp)
    [residual_1] r = Add(x, p)
    [norm_2] n2 = LayerNormalization(r, g2, h2)
    [up] u = MatMul(n2, wu)
    [up_b] ub = Add(u, bu)
    [erf_in] e0 = Mul(ub, half_root)
    [erf] e1 = Erf(e0)
    [erf_1] e2 = Add(e1, one)
    [erf_m] e3 = Mul(ub, e2)
    [gelu] e4 = Mul(e3, half)
    [down] d = MatMul(e4, wd)
    [residual_2] y = Add(r, d)
}"""
)
_UNET = (
    HEAD
    + """g (float[1,3,12,12] x, float[1,16] time) => (float[1,3,12,12] y) {
    [first] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [group] a1 = Reshape(a, groups)
    [norm] a2 = InstanceNormalization(a1, two, none)
    [apart] a3 = Reshape(a2, whole)
    [gate] a4 = Sigmoid(a3)
    [swish] a5 = Mul(a3, a4)
    [embed] t = Gemm<transB=1>(time, w2, b2)
    [wide] t1 = Reshape(t, column)
    [shifted] b = Add(a5, t1)
    [down] c = Conv<pads=[1,1,1,1], strides=[2,2]>(b, w3, b3)
    [down_r] c1 = Relu(c)
    [up] d = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor">(c1, , twice)
    [deep] e = Conv<pads=[1,1,1,1]>(d, w4, b4)
    [both] f = Concat<axis=1>(d, b, e)
    [last] y = Conv<pads=[1,1,1,1]>(f, w5, b5)
}"""
)
_POINTS = (
    HEAD
    + """g (float[1,6,32] x) => (float[1,5,32] y) {
    [lift] a = Conv(x, w1, b1)
    [lift_r] a1 = Relu(a)
    [neighbours] b = Reshape(a1, grouped)
    [local] c = Conv(b, w2, b2)
    [local_r] c1 = Relu(c)
    [largest] d = ReduceMax<axes=[3], keepdims=0>(c1)
    [mlp] e = Conv(d, w3, b3)
    [mlp_r] e1 = Relu(e)
    [back] f = Conv(e1, w4, b4)
    [residual] f1 = Add(f, d)
    [out_r] f2 = Relu(f1)
    [near] g1 = Gather<axis=2>(f2, nearest)
    [skip] h = Concat<axis=1>(g1, a1)
    [head] y = Conv(h, w5, b5)
}"""
)
_TEXT = (
    HEAD
    + """g (float[1,1,16,32] x) => (float[1,16,11] y) {
    [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [three] a1 = Add(a, plus)
    [six] a2 = Clip(a1, zero, most)
    [hard] a3 = Mul(a2, sixth)
    [swish] a4 = Mul(a, a3)
    [pool_1] b = MaxPool<kernel_shape=[2,2], strides=[2,2]>(a4)
    [depth] c = Conv<group=8, pads=[1,1,1,1], strides=[2,1]>(b, w2, b2)
    [depth_r] c1 = Relu(c)
    [point] d = Conv(c1, w3, b3)
    [height] e = AveragePool<kernel_shape=[4,1], strides=[4,1]>(d)
    [row] e1 = Squeeze(e, second)
    [steps] e2 = Transpose<perm=[0,2,1]>(e1)
    [keys] k = MatMul(e2, wk)
    [turned] k1 = Transpose<perm=[0,2,1]>(k)
    [likeness] l = MatMul(e2, k1)
    [soft] s = Softmax<axis=-1>(l)
    [mix] m = MatMul(s, e2)
    [residual] r = Add(e2, m)
    [head] h = MatMul(r, wh)
    [head_b] y = Add(h, bh)
}"""
)


def _efficient(folder: Path) -> Net:
    shapes = [(8, 3, 3, 3), (24, 8, 1, 1), (24, 1, 3, 3), (6, 24, 1, 1), (24, 6, 1, 1)]
    shapes += [(8, 24, 1, 1), (10, 8)]
    return calibrated(folder, _EFFICIENT, **_layers(shapes), **_bounds())


def _transformer(folder: Path) -> Net:
    square = {name: weights(16, 16, seed=i) for i, name in enumerate(("wq", "wk", "wv", "wp"))}
    vectors = {name: weights(16, seed=9) for name in ("h1", "h2", "bq")}
    numbers = {"root": 0.35, "half_root": 0.70710677, "one": 1.0, "half": 0.5}
    return calibrated(
        folder,
        _TRANSFORMER,
        **square,
        **vectors,
        **{name: np.float32(number) for name, number in numbers.items()},
        g1=np.ones(16, np.float32),
        g2=np.ones(16, np.float32),
        wu=weights(16, 32, seed=5),
        bu=weights(32, seed=6),
        wd=weights(32, 16, seed=7),
        heads=np.array([1, 12, 2, 8]),
        joined=np.array([1, 12, 16]),
    )


def _unet(folder: Path) -> Net:
    layers = _layers([(8, 3, 3, 3), (8, 16), (8, 8, 3, 3), (4, 8, 3, 3), (3, 20, 3, 3)])
    return calibrated(
        folder,
        _UNET,
        **layers,
        two=np.ones(2, np.float32),
        none=np.zeros(2, np.float32),
        groups=np.array([1, 2, -1]),
        whole=np.array([1, 8, 12, 12]),
        column=np.array([1, 8, 1, 1]),
        twice=np.array([1, 1, 2, 2], np.float32),
    )


def _points(folder: Path) -> Net:
    layers = _layers([(16, 6, 1), (16, 16, 1, 1), (32, 16, 1), (16, 32, 1), (5, 32, 1)])
    nearest = np.random.default_rng(2).integers(0, 8, 32)
    return calibrated(folder, _POINTS, **layers, grouped=np.array([1, 16, 8, 4]), nearest=nearest)


def _text(folder: Path) -> Net:
    layers = _layers([(8, 1, 3, 3), (8, 1, 3, 3), (16, 8, 1, 1)])
    return calibrated(
        folder,
        _TEXT,
        **layers,
        wk=weights(16, 16, seed=8),
        wh=weights(16, 11, seed=9),
        bh=weights(11, seed=10),
        second=np.array([2]),
        plus=np.float32(3),
        zero=np.float32(0),
        most=np.float32(6),
        sixth=np.float32(1 / 6),
    )


def _layers(shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    """w1, b1, w2, b2, ... of these shapes."""
    found = {}
    for number, shape in enumerate(shapes, 1):
        found[f"w{number}"] = weights(*shape, seed=2 * number)
        found[f"b{number}"] = weights(shape[0], seed=2 * number + 1)
    return found


def _bounds() -> dict[str, np.ndarray]:
    return {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}


BLOCKS: dict[str, Callable[[Path], Net]] = {
    "efficient": _efficient,
    "transformer": _transformer,
    "unet": _unet,
    "points": _points,
    "text": _text,
}
