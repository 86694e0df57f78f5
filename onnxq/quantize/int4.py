"""4-bit weights as a file stores them: packed two a byte, in the form that ONNX Runtime folds.

``DequantizeLinear(int4)`` runs on every call and leaves its consumer float. An int4 initializer →
Cast to int8 → ``DequantizeLinear(int8)`` is folded when the file is loaded, and the consumer
becomes an integer kernel. Both need opset 21 and IR version 10.
Source: operators of the optimized graph, measured with ONNX Runtime 1.31.1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Int8, Integer, UInt8
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import QuantizationError
from onnxq.qdq import DEQUANTIZE
from onnxq.qtypes import IntType
from onnxq.quantize.blocks import Blocks

__all__ = ["IR_VERSION", "OPSET", "Packed", "pack", "store_packed"]

OPSET, IR_VERSION = 21, 10
_LOW, _HIGH = IntType.INT4.qmin, IntType.INT4.qmax


@dataclass(frozen=True)
class Packed:
    """What the packed form of a weight is to be called, and its blocks if it has some."""

    name: str
    blocks: Blocks | None = None


def pack(integers: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, " bytes"]:
    """Two integers of −8…7 (0…15 if unsigned) a byte in the order of the array, the first in the
    lower half; a last half that is left over is 0. Raises ValueError for others.

    Source: ONNX, onnx.proto, TensorProto.raw_data of INT4 and UINT4.
    """
    flat = integers.reshape(-1)
    low, high = (0, 15) if flat.dtype.kind == "u" else (_LOW, _HIGH)
    if flat.size and not (flat.min() >= low and flat.max() <= high):
        raise ValueError(f"4 bits hold {low} to {high}, not {flat.min()} to {flat.max()}")
    halves = np.zeros(flat.size + flat.size % 2, np.uint8)
    halves[: flat.size] = flat.astype(np.int8).view(np.uint8) & 0xF
    return halves[::2] | halves[1::2] << 4


def store_packed(model: onnx.ModelProto, weights: Mapping[str, Packed]) -> None:
    """Store int8 initializers of ``model`` in 4 bits before the nodes that make int8 of them.

    ``weights`` names them; DequantizeLinear nodes alone may read them. Works in place. Raises
    QuantizationError if an integer does not fit, or if the graph's opset is below 21.
    """
    if not weights:
        return
    _refuse_old_opset(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for name, packed in weights.items():
        readers = {node.op_type for node in model.graph.node if name in node.input}
        integers = numpy_helper.to_array(tensors[name])
        four = _of_4_bits(integers, packed.blocks) if readers == {DEQUANTIZE} else None
        if four is None:
            raise QuantizationError(
                f"cannot be stored in 4 bits: its integers are {integers.min()} to "
                f"{integers.max()}, and {', '.join(sorted(readers))} read them",
                where=f"weight `{name}`",
                do="report this graph: the plan and the rewriter disagree",
            )
        tensors[name].CopyFrom(_tensor(packed.name, four))
        if packed.blocks is None:
            nodes.append(_cast(packed.name, name))
        else:
            nodes += _unpacking(model, packed.name, name, integers.shape, packed.blocks)
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*nodes, *model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.ir_version = max(model.ir_version, IR_VERSION)


def _of_4_bits(
    integers: Int8[np.ndarray, "*shape"], blocks: Blocks | None
) -> Int8[np.ndarray, "..."] | None:
    """The integers of −7…7, without their blocks' multipliers; None if they are others."""
    divided = integers if blocks is None else integers.reshape(blocks.view)
    if blocks is not None:
        divided, left = np.divmod(divided.astype(np.int16), blocks.multipliers)
        if left.any():
            return None
    fits = not divided.size or np.abs(divided).max() <= _HIGH
    return divided.astype(np.int8) if fits else None


def _unpacking(
    model: onnx.ModelProto, packed: str, name: str, shape: Sequence[int], blocks: Blocks
) -> list[onnx.NodeProto]:
    """Nodes that multiply blocks and put them together again; their constants go into the graph."""
    model.graph.initializer.append(_tensor(f"{packed}.m", blocks.multipliers))
    model.graph.initializer.append(
        numpy_helper.from_array(np.array(shape, np.int64), f"{packed}.shape")
    )
    wide, factors, product = (f"{packed}.{what}" for what in ("i8", "m8", "product"))
    return [
        _cast(packed, wide),
        _cast(f"{packed}.m", factors),
        helper.make_node("Mul", [wide, factors], [product], product),
        helper.make_node("Reshape", [product, f"{packed}.shape"], [name], f"{packed}.whole"),
    ]


def _cast(source: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [name], source, to=TensorProto.INT8)


def _tensor(name: str, integers: Integer[np.ndarray, "*shape"]) -> onnx.TensorProto:
    """A constant of 4 bits, INT4 or UINT4."""
    kind = TensorProto.UINT4 if integers.dtype.kind == "u" else TensorProto.INT4
    packed = pack(integers).tobytes()
    return TensorProto(name=name, data_type=kind, dims=integers.shape, raw_data=packed)


def _refuse_old_opset(model: onnx.ModelProto) -> None:
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] < OPSET:
        raise QuantizationError(
            f"4-bit integers need opset {OPSET}, and the graph has {versions or 'none'}",
            where="quantize: weights",
            do=f"export it at opset {OPSET}",
        )
