"""4-bit weights as a file stores them: packed two a byte, in the form that ONNX Runtime folds.

``DequantizeLinear(int4)`` runs on every call and leaves its consumer float. An int4 initializer →
Cast to int8 → ``DequantizeLinear(int8)`` is folded when the file is loaded, and the consumer
becomes an integer kernel. Both need opset 21 and IR version 10.
Source: operators of the optimized graph, measured with ONNX Runtime 1.31.1.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from jaxtyping import Integer, UInt8
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import QuantizationError
from onnxq.qdq import DEQUANTIZE
from onnxq.qtypes import IntType

__all__ = ["IR_VERSION", "OPSET", "pack", "store_packed"]

OPSET, IR_VERSION = 21, 10
_LOW, _HIGH = IntType.INT4.qmin, IntType.INT4.qmax


def pack(integers: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, " bytes"]:
    """Two integers of −8…7 a byte in the order of the array, the first in the lower half; a last
    half that is left over is 0. Raises ValueError for others.

    Source: ONNX, onnx.proto, TensorProto.raw_data of INT4.
    """
    flat = integers.reshape(-1)
    if flat.size and not (flat.min() >= _LOW and flat.max() <= _HIGH):
        raise ValueError(f"int4 holds {_LOW} to {_HIGH}, not {flat.min()} to {flat.max()}")
    halves = np.zeros(flat.size + flat.size % 2, np.uint8)
    halves[: flat.size] = flat.astype(np.int8).view(np.uint8) & 0xF
    return halves[::2] | halves[1::2] << 4


def store_packed(model: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Store int8 initializers of ``model`` in 4 bits before a Cast, in place.

    ``names`` maps each initializer, which DequantizeLinear nodes alone may read, to what its packed
    form is to be called. Raises QuantizationError if an integer does not fit, or if the graph's
    opset is below 21.
    """
    if not names:
        return
    _refuse_old_opset(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    casts = []
    for name, packed_name in names.items():
        readers = {node.op_type for node in model.graph.node if name in node.input}
        integers = numpy_helper.to_array(tensors[name])
        if readers != {DEQUANTIZE} or integers.min() < -_HIGH or integers.max() > _HIGH:
            raise QuantizationError(
                f"cannot be stored in 4 bits: its integers are {integers.min()} to "
                f"{integers.max()}, and {', '.join(sorted(readers))} read them",
                where=f"weight `{name}`",
                do="report this graph: the plan and the rewriter disagree",
            )
        tensors[name].CopyFrom(
            TensorProto(
                name=packed_name,
                data_type=TensorProto.INT4,
                dims=integers.shape,
                raw_data=pack(integers).tobytes(),
            )
        )
        casts.append(
            helper.make_node("Cast", [packed_name], [name], packed_name, to=TensorProto.INT8)
        )
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*casts, *model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.ir_version = max(model.ir_version, IR_VERSION)


def _refuse_old_opset(model: onnx.ModelProto) -> None:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] < OPSET:
        raise QuantizationError(
            f"4-bit integers need opset {OPSET}, and the graph has {versions or 'none'}",
            where="quantize: weights",
            do=f"export it at opset {OPSET}",
        )
