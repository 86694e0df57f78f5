"""Which constants of a graph learn: weights and biases, also behind Q/DQ and moved values."""

import onnx

__all__ = ["MOVING", "trainable_constants"]

_LEARNT = {  # input numbers of weights and biases
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "GRU": (1, 2, 3),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "RNN": (1, 2, 3),
}
MOVING = frozenset(
    {
        "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_PASSED = MOVING | {"Cast", "DequantizeLinear", "QuantizeLinear"}
_FLOATS = frozenset(
    {
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.DOUBLE,
        onnx.TensorProto.FLOAT16,
        onnx.TensorProto.BFLOAT16,
    }
)


def trainable_constants(graph: onnx.GraphProto) -> frozenset[str]:
    """Names of the float initializers that are a weight or a bias.

    A bias is also what is added right behind a MatMul. Statistics of a BatchNormalization and the
    scales of Q/DQ are not among them.
    """
    constants = {t.name for t in graph.initializer if t.data_type in _FLOATS}
    makers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    for node in graph.node:
        for number in _learnt_inputs(node, makers):
            if number < len(node.input):
                found |= _origins(node.input[number], makers, constants)
    return frozenset(found)


def _learnt_inputs(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> tuple[int, ...]:
    if node.op_type != "Add":
        return _LEARNT.get(node.op_type, ())
    behind = [_maker(name, makers) for name in node.input]
    return tuple(1 - i for i, maker in enumerate(behind) if maker in ("MatMul", "Conv", "Gemm"))


def _maker(name: str, makers: dict[str, onnx.NodeProto]) -> str:
    """The operator that made a tensor, looking through Q/DQ."""
    while name in makers and makers[name].op_type in ("QuantizeLinear", "DequantizeLinear"):
        name = makers[name].input[0]
    return makers[name].op_type if name in makers else ""


def _origins(name: str, makers: dict[str, onnx.NodeProto], constants: set[str]) -> set[str]:
    """The float constants whose values, moved or quantized, are this tensor."""
    waiting, found = [name], set()
    while waiting:
        name = waiting.pop()
        if name in constants:
            found.add(name)
        elif name in makers and makers[name].op_type in _PASSED:
            node = makers[name]
            waiting += node.input if node.op_type == "Concat" else node.input[:1]
    return found
