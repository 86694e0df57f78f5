"""Files of one Conv, Gemm or MatMul in Q/DQ form, and what a saturating processor makes of it."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TYPES = {"u8": np.uint8, "s8": np.int8}


def one_product(
    path: Path,
    op_type: str,
    weight: np.ndarray,
    shape: tuple[int, ...],
    *,
    kind: str = "u8",
    zero_point: int | None = None,
    bias: np.ndarray | None = None,
    before: str = "",
    after: str = "",
    **attributes: object,
) -> Path:
    """x → [before] → Q → DQ → operator → [after] → Q → DQ → y, with given int8 weights.

    Input and output grids are such that a random input reaches all of them.
    """
    of = TYPES[kind]
    middle = 128 if kind == "u8" else 0
    zero = middle if zero_point is None else zero_point
    channels = _channels(op_type, weight, attributes)
    fan_in = weight.size / channels
    scales = np.linspace(0.5, 1.5, channels).astype(np.float32) / 64
    constants = {
        "xs": np.float32(1 / 32),
        "xz": of(zero),
        "w": weight,
        "ws": scales,
        "wz": np.zeros(channels, np.int8),
        "ys": np.float32(np.sqrt(fan_in) / 24),
        "yz": of(middle - 128 if after == "Relu" else middle),
    }
    axis = {"Conv": 0, "Gemm": 0 if attributes.get("transB") else 1}.get(op_type, weight.ndim - 1)
    first, last = before and "b", after and "a"
    nodes = [
        *([helper.make_node(before, ["x"], ["b"], "before")] if before else []),
        helper.make_node("QuantizeLinear", [first or "x", "xs", "xz"], ["xq"], "xq"),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"], "xd"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wd", axis=axis),
        helper.make_node(
            op_type, ["xd", "wd", *(["bd"] if bias is not None else [])], ["p"], "op", **attributes
        ),
        *([helper.make_node(after, ["p"], ["a"], "after")] if after else []),
        helper.make_node("QuantizeLinear", [last or "p", "ys", "yz"], ["yq"], "yq"),
        helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"], "yd"),
    ]
    if bias is not None:
        constants |= {"bi": bias.astype(np.int32), "bs": np.float32(1 / 32) * scales}
        constants["bz"] = np.zeros(channels, np.int32)
        nodes.insert(0, helper.make_node("DequantizeLinear", ["bi", "bs", "bz"], ["bd"], axis=0))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def _channels(op_type: str, weight: np.ndarray, attributes: dict) -> int:
    if op_type == "Conv" or attributes.get("transB"):
        return weight.shape[0]
    return weight.shape[-1]


def full_range(*shape: int, seed: int = 0, limit: int = 127) -> np.ndarray:
    """Weights that are evenly spread over int8."""
    random = np.random.default_rng(seed)
    return random.integers(-limit, limit + 1, shape).astype(np.int8)


def inputs(shape: tuple[int, ...], count: int = 2, seed: int = 1) -> np.ndarray:
    """Values over all of the input's grid, many of them near its ends."""
    random = np.random.default_rng(seed)
    return np.clip(random.normal(0, 3, (count, *shape)), -4, 3.97).astype(np.float32)


def madd(activations: np.ndarray, weights: np.ndarray) -> int:
    """A dot product as PMADDUBSW and PMADDWD make it: one pair after the other, each saturated."""
    total = 0
    for start in range(0, len(weights), 2):
        pair = zip(activations[start : start + 2], weights[start : start + 2], strict=True)
        total += max(min(sum(int(a) * int(w) for a, w in pair), 32767), -32768)
    return total
