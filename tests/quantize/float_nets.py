"""Small float networks whose channels differ by much, as ONNX text, with samples."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.samples import Samples

from .nets import HEAD, save, weights


@dataclass(frozen=True)
class FloatNet:
    """A float model on disk, and samples for it."""

    path: Path
    samples: Samples


def _images(*shape: int, seed: int = 7) -> Samples:
    rng = np.random.default_rng(seed)
    return Samples("s", {"x": rng.standard_normal((24, *shape)).astype(np.float32)})


def uneven(channels: int, seed: int, spread: float = 1.5) -> np.ndarray:
    """Factors from 10^-spread to 10^spread, one a channel, in random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(10 ** np.linspace(-spread, spread, channels)).astype(np.float32)


def depthwise(folder: Path, act: str = "Relu", act2: str = "Relu", **more: np.ndarray) -> FloatNet:
    """Conv → act → depthwise Conv → act → Conv, its channels scaled apart and back."""
    f, g = uneven(16, 1), uneven(16, 2)
    column = (-1, 1, 1, 1)
    text = f"""g (float[1,3,8,8] x) => (float[1,10] y) {{
        [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
        [act_1] b = {act}(a{_extra(act)})
        [conv_2] c = Conv<pads=[1,1,1,1], group=16>(b, w2, b2)
        [act_2] d = {act2}(c{_extra(act2)})
        [conv_3] e = Conv(d, w3, b3)
        [pool_1] p = GlobalAveragePool(e)
        [flat_1] y = Flatten(p)
    }}"""
    path = save(
        folder / "fp32.onnx",
        HEAD + text,
        w1=weights(16, 3, 3, 3, seed=1) * f.reshape(column),
        b1=weights(16, seed=2) * f,
        w2=weights(16, 1, 3, 3, seed=3) * (g / f).reshape(column),
        b2=weights(16, seed=4) * g,
        w3=weights(10, 16, 1, 1, seed=5) / g.reshape(1, -1, 1, 1),
        b3=weights(10, seed=6),
        slope=np.linspace(-0.2, 0.4, 16, dtype=np.float32).reshape(16, 1, 1),
        zero=np.float32(0),
        six=np.float32(6),
        **more,
    )
    return FloatNet(path, _images(3, 8, 8))


def _extra(act: str) -> str:
    return {"PRelu": ", slope", "Clip": ", zero, six"}.get(act.split("<", maxsplit=1)[0], "")


def transformer(folder: Path, *, decomposed: bool = False) -> FloatNet:
    """A block of attention and one of two layers, each behind a LayerNormalization."""

    def norm(data: str, name: str, out: str, number: int) -> str:
        if not decomposed:
            return f"[{name}] {out} = LayerNormalization<axis=-1>({data}, s{number}, t{number})"
        return f"""
        m{number} = ReduceMean<axes=[-1]>({data})
        d{number} = Sub({data}, m{number})
        q{number} = Mul(d{number}, d{number})
        v{number} = ReduceMean<axes=[-1]>(q{number})
        r{number} = Sqrt(v{number})
        n{number} = Div(d{number}, r{number})
        [{name}] o{number} = Mul(n{number}, s{number})
        [{name}_shift] {out} = Add(o{number}, t{number})"""

    text = f"""g (float[1,6,16] x) => (float[1,6,16] y) {{
        {norm("x", "norm_1", "h", 1)}
        [q] q = MatMul(h, wq)
        [k] k0 = MatMul(h, wk)
        k = Transpose<perm=[0,2,1]>(k0)
        [v] v = MatMul(h, wv)
        scores = MatMul(q, k)
        shares = Softmax<axis=-1>(scores)
        mixed = MatMul(shares, v)
        [out] o = MatMul(mixed, wo)
        [add_1] z = Add(x, o)
        {norm("z", "norm_2", "u", 2)}
        [up] a0 = MatMul(u, w1)
        [up_bias] a = Add(a0, b1)
        [relu] b = Relu(a)
        [down] c = MatMul(b, w2)
        [add_2] y = Add(z, c)
    }}"""
    far = uneven(16, 5, spread=1.0)
    size = {"size": 0.2}
    path = save(
        folder / "fp32.onnx",
        HEAD + text,
        s1=far, t1=weights(16, seed=1) * far, s2=far[::-1].copy(), t2=weights(16, seed=2),
        wq=weights(16, 16, seed=3, **size) / far[:, None],
        wk=weights(16, 16, seed=4, **size) / far[:, None],
        wv=weights(16, 16, seed=5, **size) / far[:, None],
        wo=weights(16, 16, seed=6), w1=weights(16, 32, seed=7), b1=weights(32, seed=8),
        w2=weights(32, 16, seed=9),
    )  # fmt: skip
    return FloatNet(path, _images(6, 16))


def random(folder: Path, seed: int) -> FloatNet:
    """Layers, activations, views and branches drawn at random."""
    rng = np.random.default_rng(seed)
    lines, constants, value, channels, size = [], {}, "x", 3, 8
    for number in range(int(rng.integers(3, 7))):
        out = int(rng.integers(2, 9))
        depthwise_ = bool(rng.integers(0, 3) == 0)
        out = channels if depthwise_ else out
        group, kernel = (channels, 3) if depthwise_ else (1, int(rng.choice([1, 3])))
        pad = kernel // 2 if rng.integers(0, 2) else 0
        pad = pad if size - kernel + 1 >= 3 else kernel // 2
        constants[f"w{number}"] = weights(
            out, channels // group, kernel, kernel, seed=seed * 31 + number
        )
        constants[f"w{number}"] *= uneven(out, number).reshape(-1, 1, 1, 1)
        constants[f"b{number}"] = weights(out, seed=number, size=1.0) + np.float32(1)
        lines.append(
            f"[conv_{number}] c{number} = Conv<pads=[{pad},{pad},{pad},{pad}], group={group}>"
            f"({value}, w{number}, b{number})"
        )
        act = str(rng.choice(["Relu", "LeakyRelu<alpha=0.1>", "Clip", "Tanh", "Relu", "Identity"]))
        lines.append(f"[act_{number}] v{number} = {act}(c{number}{_extra(act)})")
        value, channels, size = f"v{number}", out, size + 2 * pad - kernel + 1
        if rng.integers(0, 4) == 0:
            lines.append(f"[add_{number}] j{number} = Add(v{number}, c{number})")
            value = f"j{number}"
    lines += [
        f"[pool] p = GlobalAveragePool({value})",
        "[flat] f = Flatten(p)",
        "[gemm] y = Gemm<transB=1>(f, wg, bg)",
    ]
    constants |= {"wg": weights(5, channels, seed=99), "bg": weights(5, seed=98)}
    constants |= {"zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    text = "g (float[1,3,8,8] x) => (float[1,5] y) {\n" + "\n".join(lines) + "\n}"
    return FloatNet(save(folder / "fp32.onnx", HEAD + text, **constants), _images(3, 8, 8))


NAMED: dict[str, Callable[[Path], FloatNet]] = {
    "relu": depthwise,
    "prelu": lambda folder: depthwise(folder, "PRelu", "LeakyRelu<alpha=0.1>"),
    "clip": lambda folder: depthwise(folder, "Clip", "Clip"),
    "transformer": transformer,
    "decomposed": lambda folder: transformer(folder, decomposed=True),
}


def make(name: str, folder: Path) -> FloatNet:
    """The network of this name, or ``random-SEED``."""
    if name in NAMED:
        return NAMED[name](folder)
    return random(folder, int(name.removeprefix("random-")))
