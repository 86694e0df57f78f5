"""Small Q/DQ graphs as text, with the constants that they name."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser

RANDOM = np.random.default_rng(0)
IN = "q = QuantizeLinear(x, s, z)\n d = DequantizeLinear(q, s, z)\n"
OUT = "r = QuantizeLinear(o, s, z)\n y = DequantizeLinear(r, s, z)\n"
CONV = "wd = DequantizeLinear<axis=0>(w, ws, wz)\n"
MATMUL = "wd = DequantizeLinear<axis=1>(k, ks, kz)\n"
LINEAR = "wd = DequantizeLinear<axis=0>(k, ks, kz)\n"


def _weight(*shape: int) -> np.ndarray:
    return RANDOM.integers(-60, 60, shape).astype(np.int8)


CONSTANTS = {
    "s": np.float32(0.05), "s2": np.float32(0.07), "six": np.float32(6), "zero": np.float32(0),
    "w": _weight(4, 4, 1, 1), "ws": np.full(4, 0.01, "f"), "wz": np.zeros(4, np.int8),
    "k": _weight(8, 8), "ks": np.full(8, 0.01, "f"), "kz": np.zeros(8, np.int8),
    "wodd": np.array([1, 2, 3, 4], np.int8), "wf": RANDOM.standard_normal((4, 4, 1, 1)).astype("f"),
    "b": np.zeros(8, "f"), "bi": np.zeros(8, np.int32), "bs": np.full(8, 5e-4, "f"),
    "t0": np.array([0]), "t2": np.array([2]), "t3": np.array([3]), "t4": np.array([4]),
    "two": np.array([0, 1]), "shape": np.array([1, 4, 64]), "twice": np.array([1, 2, 1, 1]),
    "wide": np.array([2, 4, 8, 8]), "by2": np.array([1, 1, 2, 2], "f"),
    "yes": np.ones((1, 4, 8, 8), bool), "half": np.full((1, 4, 1, 1), 0.3, "f"),
}  # fmt: skip


def write(
    path: Path,
    body: str,
    kind: str = "uint8",
    *,
    opset: int = 18,
    shape: str = "1,4,8,8",
    gives: str = "float",
) -> Path:
    """The graph ``x`` → ``y``; ``z`` is the smallest integer of ``kind``, ``mid`` the
    middle one."""
    head = f'<ir_version: 10, opset_import: ["": {opset}]>\n'
    model = onnx.parser.parse_model(f"{head}g (float[{shape}] x) => ({gives}[?] y) {{\n{body}}}")
    limits = np.iinfo(kind)
    low = np.array(limits.min, kind)
    middle = np.array((limits.min + limits.max + 1) // 2, kind)
    known = {name for tensor in model.graph.node for name in tensor.input}
    for name, array in {**CONSTANTS, "z": low, "mid": middle}.items():
        if name in known:
            tensor = onnx.numpy_helper.from_array(np.asarray(array), name)
            model.graph.initializer.append(tensor)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path
