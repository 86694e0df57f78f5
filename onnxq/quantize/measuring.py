"""Sessions of Q/DQ graphs for steps that measure: the integers that the graph says, everywhere."""

import tempfile
from collections import Counter
from pathlib import Path

import onnx

from onnxq.graph import cut_to, save_model
from onnxq.qdq import DEQUANTIZE
from onnxq.runtime import Session

__all__ = ["measuring_session"]

_NO_SATURATION = {"session.x64quantprecision": "1"}  # exact integers on x86 without VNNI too


def measuring_session(model: onnx.ModelProto) -> Session:
    """What the outputs of ``model`` need of it, loaded; ``model`` is cut to that.

    Optimized, with exact sums of products on every x86. Where two nodes share a dequantized
    constant, ONNX Runtime 1.31 cannot give both (it replaces a tensor that is replaced already):
    such a graph is run as it is written, which is exact and slower. Raises RuntimeFailureError.
    """
    needed = cut_to(model)
    constants = {tensor.name for tensor in needed.graph.initializer}
    readers = Counter(name for node in needed.graph.node for name in node.input)
    is_shared = any(
        node.op_type == DEQUANTIZE and node.input[0] in constants and readers[node.output[0]] > 1
        for node in needed.graph.node
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.onnx"
        save_model(needed, path)
        if is_shared:
            return Session(path, optimization="none")
        return Session(path, config=_NO_SATURATION)
