"""Float nets of every operator that the integer reference has a rule for, with made-up inputs."""

from dataclasses import dataclass, field

import numpy as np

from handoff.runtime_integers import normal

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'


@dataclass(frozen=True)
class Net:
    """ONNX text, its constants, and the shape of its input ``x``."""

    text: str
    shape: tuple[int, ...]
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, count: int = 8) -> list[dict[str, np.ndarray]]:
        """Normal inputs."""
        return [{"x": normal(*self.shape, seed=100 + n, size=1.0)} for n in range(count)]


NETS = {
    "convolutions": Net(
        HEAD
        + """net (float[2,4,9,11] x) => (float[2,8,5,5] y) {
            a = Conv <pads=[1,0,2,1], strides=[1,2]> (x, w1, b1)
            r = Relu (a)
            d = Conv <group=8, pads=[2,2,2,2], dilations=[2,2]> (r, w2, b2)
            c = Clip (d, zero, six)
            y = Conv <group=2, auto_pad="SAME_UPPER", strides=[2,1]> (c, w3)
        }""",
        (2, 4, 9, 11),
        {
            "w1": normal(8, 4, 3, 3, seed=1), "b1": normal(8, seed=2),
            "w2": normal(8, 1, 3, 3, seed=3), "b2": normal(8, seed=4),
            "w3": normal(8, 4, 3, 2, seed=5),
            "zero": np.float32(0), "six": np.float32(2),
        },
    ),
    "one and three axes": Net(
        HEAD
        + """net (float[1,2,6,7,8] x) => (float[1,6,18] y) {
            a = Conv <pads=[1,1,1,1,1,1], strides=[2,2,2]> (x, w1, b1)
            r = Relu (a)
            m = MaxPool <kernel_shape=[2,2,2], ceil_mode=1, strides=[2,1,1]> (r)
            f = Reshape (m, flat)
            c = Conv <pads=[2,2], dilations=[2]> (f, w2)
            y = AveragePool <kernel_shape=[3], pads=[1,1]> (c)
        }""",
        (1, 2, 6, 7, 8),
        {
            "w1": normal(4, 2, 3, 3, 3, seed=1), "b1": normal(4, seed=2),
            "w2": normal(6, 4, 3, seed=3), "flat": np.array([1, 4, -1]),
        },
    ),
    "transposed": Net(
        HEAD
        + """net (float[1,4,5,6] x) => (float[1,6,23,32] y) {
            a = ConvTranspose <strides=[2,2], pads=[1,1,1,1], output_padding=[1,0]> (x, w1, b1)
            r = Relu (a)
            y = ConvTranspose <strides=[2,3], dilations=[2,1]> (r, w2)
        }""",
        (1, 4, 5, 6),
        {
            "w1": normal(4, 6, 3, 3, seed=1), "b1": normal(6, seed=2),
            "w2": normal(6, 6, 3, 2, seed=3),
        },
    ),
    "residual": Net(
        HEAD
        + """net (float[1,6,8,8] x) => (float[1,5] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1, b1)
            s = Add (a, x)
            r = Relu (s)
            g = GlobalAveragePool (r)
            e = Conv (g, w2, b2)
            h = Sigmoid (e)
            m = Mul (r, h)
            u = Sub (m, x)
            p = AveragePool <kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1> (u)
            q = ReduceMean <axes=[2,3], keepdims=0> (p)
            y = Gemm <transB=1> (q, w3, b3)
        }""",
        (1, 6, 8, 8),
        {
            "w1": normal(6, 6, 3, 3, seed=1), "b1": normal(6, seed=2),
            "w2": normal(6, 6, 1, 1, seed=3), "b2": normal(6, seed=4),
            "w3": normal(5, 6, seed=5), "b3": normal(5, seed=6),
        },
    ),
    "branches": Net(
        HEAD
        + """net (float[1,4,6,6] x) => (float[1,36,12] y) {
            a = Conv <pads=[1,1,1,1]> (x, w1, b1)
            t = Tanh (a)
            l, k = Split <axis=1> (a, parts)
            z = LeakyRelu <alpha=0.1> (l)
            c = Concat <axis=1> (t, z, k, x)
            v = Conv (c, w2, b2)
            h = HardSigmoid (v)
            n = Transpose <perm=[0,2,3,1]> (h)
            y = Reshape (n, flat)
        }""",
        (1, 4, 6, 6),
        {
            "w1": normal(4, 4, 3, 3, seed=1), "b1": normal(4, seed=2),
            "w2": normal(12, 12, 1, 1, seed=3), "b2": normal(12, seed=4),
            "parts": np.array([2, 2]), "flat": np.array([1, 36, 12]),
        },
    ),
    "transformer": Net(
        HEAD
        + """net (float[1,10,16] x) => (float[1,10,16] y) {
            q = MatMul (x, wq)
            k = MatMul (x, wk)
            v = MatMul (x, wv)
            kt = Transpose <perm=[0,2,1]> (k)
            s = MatMul (q, kt)
            d = Mul (s, quarter)
            p = Softmax (d)
            o = MatMul (p, v)
            r = Add (o, x)
            n = LayerNormalization (r, gain, shift)
            i = MatMul (n, w1)
            j = Add (i, b1)
            e = Erf (j)
            f = Add (e, one)
            g = Mul (j, f)
            h = MatMul (g, w2)
            y = Add (h, n)
        }""",
        (1, 10, 16),
        {
            "wq": normal(16, 16, seed=1), "wk": normal(16, 16, seed=2),
            "wv": normal(16, 16, seed=3),
            "quarter": np.float32(0.25), "one": np.float32(1),
            "gain": 1 + normal(16, seed=4, size=0.1), "shift": normal(16, seed=5, size=0.1),
            "w1": normal(16, 32, seed=6), "b1": normal(32, seed=7), "w2": normal(32, 16, seed=8),
        },
    ),
}  # fmt: skip
