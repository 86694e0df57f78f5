"""Where NaN and infinities have to be looked for, and where arithmetic rules them out.

A reduction over a tensor costs a reading of the memory, and keeps ONNX Runtime from fusing what
stands around it. Most tensors need none: a convolution of finite numbers cannot leave the finite as
long as max|x| · Σ|w| + |b| stays below the largest float32, and both are known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

__all__ = ["Probes", "float_tensors", "probes_of"]

_LARGEST = float(np.finfo(np.float32).max)
# From finite inputs these give finite outputs, whatever the values.
_CLOSED = frozenset(
    {
        "Abs", "Clip", "Concat", "DepthToSpace", "Dropout", "Erf", "Expand", "Flatten", "Gather",
        "HardSigmoid", "Identity", "Max", "MaxPool", "Min", "Neg", "Pad", "ReduceMax", "ReduceMin",
        "Relu", "Reshape", "Sigmoid", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tanh", "Tile",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
# From finite inputs these give no NaN; an infinity shows in the smallest and largest value.
_WITHOUT_NAN = frozenset({"Add", "Mul", "Sub"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# These hand on values as they are, so that what bounds their input bounds their output.
_MOVERS = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice",
        "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Probes:
    """``sums`` are tensors whose sum is taken, as a NaN in them could pass unseen otherwise; some
    are looked at anyway, the others are not. ``limits`` are magnitudes that tensors which are
    looked at must not exceed, lest what is computed from them overflow.
    """

    sums: tuple[str, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)


def float_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of all float32 tensors that are computed at run time, graph inputs first."""
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    computed = [
        name for node in model.graph.node if node.op_type != "Constant" for name in node.output
    ]
    return tuple(n for n in (*inputs, *computed) if types.get(n) == TensorProto.FLOAT)


def probes_of(model: onnx.ModelProto, observed: Iterable[str]) -> Probes:
    """What has to be probed beside the extremes of ``observed`` tensors.

    Every float tensor is then an input (which is checked before), looked at, finite by arithmetic,
    or probed.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    seen = set(observed)
    tensors = set(float_tensors(model)) - {value.name for value in model.graph.input}
    unsure = tensors - seen  # an infinity may be in them; so may it in what a Constant gives
    unsure |= {n for node in model.graph.node if node.op_type == "Constant" for n in node.output}
    roots: dict[str, str] = {}  # of a tensor that is looked at under another name
    sums: list[str] = []
    limits: dict[str, float] = {}
    for node in model.graph.node:
        outputs = [name for name in node.output if name in tensors]
        if not outputs:
            continue
        source = node.input[0] if node.input else ""
        known = source if source in seen else roots.get(source, "")
        if node.op_type in _MOVERS and known:
            roots |= dict.fromkeys(outputs, known)
        is_finite = _finite_constants(node, constants)
        of_finite = is_finite and unsure.isdisjoint(node.input)
        if node.op_type in _CLOSED and is_finite:
            unsure -= set(outputs) if of_finite else set()
            continue
        limit = _limit(node, constants) if known and is_finite else 0.0
        if limit > 0:
            limits[known] = min(limit, limits.get(known, _LARGEST))
            unsure -= set(outputs)
            continue
        exact = node.op_type in _WITHOUT_NAN and of_finite
        sums += [name for name in outputs if not (exact and name in seen)]
    return Probes(tuple(sums), limits)


def _finite_constants(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    found = [constants[name] for name in node.input if name in constants]
    return all(
        np.isfinite(numpy_helper.to_array(tensor)).all()
        for tensor in found
        if tensor.data_type == TensorProto.FLOAT
    )


def _limit(node: onnx.NodeProto, constants: Mapping[str, TensorProto]) -> float:
    """Largest magnitude of the data at which no sum of the node's products can overflow.

    0 where the node is no such sum of data and constants, which are finite. All weights are counted
    into one sum: it bounds that of every output, and leaves room enough.
    """
    if node.op_type not in _WEIGHTED or not all(name in constants for name in node.input[1:]):
        return 0.0
    weight, *bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:] if name)
    factors = {a.name: abs(a.f) for a in node.attribute if a.name in {"alpha", "beta"}}
    total = float(np.abs(weight).sum(dtype=np.float64)) * factors.get("alpha", 1.0)
    added = float(np.abs(bias[0]).max(initial=0.0)) * factors.get("beta", 1.0) if bias else 0.0
    return max((_LARGEST / 2 - added) / total if total else _LARGEST, 0.0)
