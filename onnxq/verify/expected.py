"""What ONNX Runtime's CPU kernels are expected to make of a node of a Q/DQ file; if float, why.

Source: the operators of the optimized graph of 93 operators and 67 patterns, measured with ONNX
Runtime 1.31.1 on x86-64 and, under emulation, on ARM64; ``qdq_selectors.cc`` and
``qdq_s8_to_u8.cc`` of ONNX Runtime.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.artifacts import Execution, FloatCause
from onnxq.graph import WEIGHTED, constant_of
from onnxq.verify.constants import dequantizer

__all__ = ["Expected", "expected"]

_Q = "QuantizeLinear"
_INTEGER = frozenset(
    {
        "Add", "AveragePool", "Concat", "Conv", "Gemm", "GlobalAveragePool", "LeakyRelu", "MatMul",
        "Mul", "Sigmoid", "Softmax", "Where",
    }
)  # fmt: skip
_MOVERS = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "ReduceMax", "ReduceMin",
        "Reshape", "Resize", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_MOVERS_OF_8_BITS = frozenset({"DepthToSpace", "MaxPool", "ReduceMax", "ReduceMin", "Resize"})
_FOLDED = frozenset({"Relu", "Clip"})
_ELEMENTWISE = frozenset({"Add", "Mul", "Concat", "MatMul"})
_FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})  # their kernels can give float as well
_FOUR_BITS = frozenset({"int4", "uint4"})
_INSTEAD = {
    "ReduceMean": "over height and width, GlobalAveragePool computes the same on integers",
    "Pad": "put the padding into the `pads` of the Conv behind it",
    "Resize": "mode nearest moves the integers themselves",
    "PRelu": "LeakyRelu has an integer kernel",
    "Sub": "Add of the negated has an integer kernel",
    "Div": "by a constant: Mul by its reciprocal has an integer kernel",
    "ConvTranspose": "Resize (nearest) and Conv have",
    "BatchNormalization": "fold it into the Conv before it (`onnxq export` does)",
}


@dataclass(frozen=True)
class Expected:
    """How a node should run; for float, the ``cause``, ``why`` in words, and what to ``do``."""

    runs: Execution
    cause: FloatCause | None = None
    why: str = ""
    do: str = ""


def expected(node: ir.Node, *, int8_fuses: bool) -> Expected:
    """What should become of ``node``; ``int8_fuses`` on ARM64, or with qdqisint8allowed=1."""
    if not _touches_integers(node):
        return _float(
            "not quantized", "it has no Q/DQ around it", "quantize it with its neighbours"
        )
    if node.op_type in _FOLDED:
        return _of_folded(node)
    linear = node.attributes.get_string("mode", "nearest") != "nearest"
    if node.op_type == "ArgMax" and _is_dq(node.inputs[0]):
        return Expected("data")
    if node.op_type not in _INTEGER | _MOVERS or (node.op_type == "Resize" and linear):
        instead = _INSTEAD.get(node.op_type, "")
        do = f"take the Q/DQ around it out{': or ' + instead if instead else ''}"
        return _float("no integer kernel", f"there is no integer {node.op_type}", do)
    if _is_weight_only(node):
        return Expected("integer")
    causes = (_of_width(node), _of_weight(node), _of_inputs(node), _of_output(node))
    found = next((cause for cause in causes if cause is not None), None)
    if found is None and node.op_type in _MOVERS:
        found = _of_scales(node)
    return found or _of_types(node, int8_fuses) or _as_table_says(node)


def _as_table_says(node: ir.Node) -> Expected:
    return Expected("data" if node.op_type in _MOVERS else "integer")


def _float(cause: FloatCause, why: str, do: str) -> Expected:
    return Expected("float", cause, why, do)


# --- the causes ---------------------------------------------------------------------------------


def _of_folded(node: ir.Node) -> Expected:
    """A Relu or Clip vanishes where the integers of the Q behind it cannot leave its bounds."""
    behind = _quantizers(node.outputs[0])
    if len(behind) != 1 or _others(node.outputs[0]):
        return _of_output(node) or Expected("folded")
    return _clamped(node, behind[0]) or Expected("folded")


def _clamped(node: ir.Node, behind: ir.Node) -> Expected | None:
    bounds = [constant_of(value) for value in (*node.inputs[1:], None, None)[:2]]
    low = -np.inf if bounds[0] is None else float(bounds[0].item())
    high = np.inf if bounds[1] is None else float(bounds[1].item())
    low = 0.0 if node.op_type == "Relu" else low
    scale, kind = constant_of(behind.inputs[1]), _kind(behind)
    if scale is None or scale.size != 1 or kind not in {"int8", "uint8", "int16", "uint16"}:
        return None
    limits = np.iinfo(kind)
    smallest, largest = ((q - _zero(behind)) * scale.item() for q in (limits.min, limits.max))
    slack = 1e-3 * scale.item()
    if smallest >= low - slack and largest <= high + slack:
        return None
    return _float(
        "activation not folded",
        f"the Q behind it spans {smallest:.4g} to {largest:.4g}, more than {node.op_type} lets "
        "through",
        f"quantize `{node.outputs[0].name}` asymmetrically, over a range within its bounds (zero "
        "point at the smallest integer)",
    )


def _of_width(node: ir.Node) -> Expected | None:
    kinds = {_kind(dq) for dq in _data(node)} | {_kind(q) for q in _all_quantizers(node)}
    wide = kinds & {"int16", "uint16"}
    if not wide or (node.op_type in _MOVERS and node.op_type not in _MOVERS_OF_8_BITS):
        return None
    do = "quantize activations to 8 bits; with 16 bits they are simulated in float"
    return _float("16-bit activations", f"its activations are {wide.pop()}", do)


def _of_weight(node: ir.Node) -> Expected | None:
    if node.op_type not in WEIGHTED:
        return None
    dq, value = dequantizer(node.inputs[1]), node.inputs[1]
    if dq is None:
        name = "" if value is None else value.name
        return _float("float input", f"its weight `{name}` is float", "quantize the weight")
    if _kind(dq) in _FOUR_BITS:
        do = "store the weight in 4 bits before a Cast to int8, and dequantize that"
        return _float("int4 without Cast", f"its weight is dequantized from {_kind(dq)}", do)
    if dq.attributes.get_int("block_size", 0):
        do = "give the weight one scale for each output channel"
        return _float("no integer kernel", "its weight has scales for blocks", do)
    zero_point = constant_of(dq.inputs[2]) if len(dq.inputs) > 2 else None
    if _kind(dq) == "int8" and zero_point is not None and zero_point.size > 1 and zero_point.any():
        do = "quantize the weight symmetrically"
        return _float("weight's zero point", "the zero points of its int8 weight are not 0", do)
    return None


def _of_inputs(node: ir.Node) -> Expected | None:
    for value in _data_values(node):
        if not _is_dq(value):
            do = f"quantize `{value.name}`"
            return _float("float input", f"its input `{value.name}` is float", do)
    return None


def _of_output(node: ir.Node) -> Expected | None:
    if node.op_type in _FLOAT_OUTPUT:
        return None
    for output in node.outputs:
        last, folded = _behind_folded(output)
        others = _others(last)
        count = len(_quantizers(last))
        if count == 0:
            what = f"`{last.name}` is a graph output" if last.is_graph_output() else "no Q follows"
            do = f"put a Q and a DQ behind `{last.name}`"
            return _float("no Q on its output", f"{what}, and its kernel gives integers", do)
        if others or count > 1:
            who = others or f"{count} different Q"
            do = f"let `{last.name}` have one use, a Q, and give {who} what comes out of its DQ"
            return _float("used as float too", f"`{last.name}` goes to {who} as well", do)
        clamped = _clamped(folded, _quantizers(last)[0]) if folded is not None else None
        if clamped is not None:
            return clamped
    return None


def _of_scales(node: ir.Node) -> Expected | None:
    source = _data(node)[0]
    for behind in _all_quantizers(node):
        scales = [constant_of(n.inputs[1]) for n in (source, behind)]
        same = all(s is not None for s in scales) and np.array_equal(*scales)  # type: ignore[arg-type]
        if not same or _zero(source) != _zero(behind):
            return _float(
                "re-scaled data mover",
                f"it only moves values, and `{behind.inputs[0].name}` has another scale or zero "  # type: ignore[union-attr]  # a Q has one
                "point than its input",
                "give its output the scale and zero point of its input",
            )
    return None


def _of_types(node: ir.Node, int8_fuses: bool) -> Expected | None:
    nodes = [*_data(node), *_all_quantizers(node)]
    kinds = {_kind(n) if int8_fuses else _kind_on_x86(n) for n in nodes}
    if node.op_type in _MOVERS and len(kinds) == 1:
        return None
    if "int8" in kinds and not int8_fuses:
        kept = next(n for n in nodes if _kind_on_x86(n) == "int8")
        name = _integers(kept).name
        return _float(
            "int8 activations on x86",
            f"`{name}` is int8 and has several uses, or no Q: x86 keeps it int8, and its kernels "
            "want uint8",
            "make the activations uint8, the same numbers: `onnxq convert --target ort-x86`",
        )
    weight = dequantizer(node.inputs[1]) if node.op_type in WEIGHTED else None
    if len(kinds) > 1:
        do = "give both sides of the node one integer type"
        return _float("mixed types", f"its activations are {' and '.join(sorted(kinds))}", do)
    if kinds == {"int8"} and weight is not None and _kind(weight) == "uint8":
        return _float("mixed types", "int8 activations, uint8 weight", "make the weight int8")
    return None


# --- what the graph says ------------------------------------------------------------------------


def _is_dq(value: ir.Value | None) -> bool:
    return dequantizer(value) is not None


def _touches_integers(node: ir.Node) -> bool:
    behind = any(_quantizers(_behind_folded(output)[0]) for output in node.outputs)
    return behind or any(_is_dq(value) for value in node.inputs)


def _is_weight_only(node: ir.Node) -> bool:
    """A MatMul of float by dequantized constants, which ONNX Runtime makes MatMulNBits."""
    if node.op_type not in {"MatMul", "Gemm"} or node.attributes.get_int("transB", 0) == 1:
        return False
    dq = dequantizer(node.inputs[1])
    if dq is None or _is_dq(node.inputs[0]) or len(node.inputs) != 2:
        return False
    return constant_of(dq.inputs[0]) is not None


def _data_values(node: ir.Node) -> list[ir.Value]:
    """Inputs that carry activations."""
    if node.op_type in _ELEMENTWISE:
        values = node.inputs
    else:
        values = node.inputs[1:3] if node.op_type == "Where" else node.inputs[:1]
    return [value for value in values if value is not None]


def _data(node: ir.Node) -> list[ir.Node]:
    """The DQ before those inputs; a constant weight is none of them."""
    values = _data_values(node)
    found = [dq for dq in (dequantizer(value) for value in values) if dq is not None]
    if node.op_type == "MatMul":
        found = [dq for dq in found if constant_of(dq.inputs[0]) is None and not _from_cast(dq)]
    return found


def _from_cast(dq: ir.Node) -> bool:
    producer = dq.inputs[0].producer() if dq.inputs[0] is not None else None
    return producer is not None and producer.op_type == "Cast"


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type == _Q]


def _all_quantizers(node: ir.Node) -> list[ir.Node]:
    return [q for output in node.outputs for q in _quantizers(_behind_folded(output)[0])]


def _others(value: ir.Value) -> str:
    """What takes ``value`` as it is, in words; empty if only Q do."""
    if value.is_graph_output():
        return "the outputs of the graph"
    users = [use.node for use in value.uses() if use.node.op_type != _Q]
    return f"{users[0].op_type} `{users[0].name}`" if users else ""


def _behind_folded(value: ir.Value) -> tuple[ir.Value, ir.Node | None]:
    """``value``, or what an only Relu or Clip behind it makes of it, with that node."""
    users = [use.node for use in value.uses()]
    if len(users) == 1 and users[0].op_type in _FOLDED and not value.is_graph_output():
        return users[0].outputs[0], users[0]
    return value, None


def _integers(node: ir.Node) -> ir.Value:
    value = node.outputs[0] if node.op_type == _Q else node.inputs[0]
    if value is None:
        raise ValueError(f"{node.op_type} `{node.name}` has no input")
    return value


def _kind(node: ir.Node) -> str:
    """The integer type of a Q or DQ."""
    zero_point = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is not None:
        return str(zero_point.dtype)
    known = _integers(node).dtype
    return "uint8" if known is None else known.name.lower()


def _kind_on_x86(node: ir.Node) -> str:
    """Likewise, once ONNX Runtime has made uint8 of int8 where a Q has one DQ with one use."""
    kind, value = _kind(node), _integers(node)
    maker = value.producer()
    if kind != "int8" or maker is None or maker.op_type != _Q:
        return kind
    return "uint8" if sum(1 for _ in _uses(value)) == 1 else kind


def _uses(integers: ir.Value) -> Iterator[object]:
    """Uses of the real values that ``integers`` stand for; a graph output is one, too."""
    if integers.is_graph_output():
        yield integers
    for use in integers.uses():
        real = use.node.outputs[0]
        yield from real.uses() or [use]
        if real.is_graph_output() and real.uses():
            yield real


def _zero(node: ir.Node) -> float:
    zero_point = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    return 0.0 if zero_point is None else float(zero_point.reshape(-1)[0])
