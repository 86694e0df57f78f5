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
from onnxq.graph import WEIGHTED, constant_input, constant_of
from onnxq.qdq import QUANTIZE, dequantizer, quantized_type, stored_integers

__all__ = ["Expected", "expected"]

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
# a Q is moved up, a DQ down, through these: one on either side of them is enough
_PROPAGATED = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
_WEIGHTS_AT_LOAD = frozenset({"Conv", "Gemm"})  # their float weights are quantized at load
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
    if not _has_kernel(node):
        instead = _INSTEAD.get(node.op_type, "")
        do = f"take the Q/DQ around it out{', or change it: ' + instead if instead else ''}"
        return _float("no integer kernel", f"there is no integer {node.op_type}", do)
    if _is_weight_only(node):
        return Expected("integer")
    if _is_between(node):
        return Expected("data")
    return _of_pattern(node, int8_fuses)


def _of_pattern(node: ir.Node, int8_fuses: bool) -> Expected:
    """Whether DQ, node and Q have the form that becomes one kernel."""
    causes = (_of_width(node), _of_weight(node), _of_inputs(node), _of_output(node))
    found = next((cause for cause in causes if cause is not None), None)
    if found is None and node.op_type in _MOVERS:
        found = _of_scales(node)
    kind: Execution = "data" if node.op_type in _MOVERS else "integer"
    return found or _of_types(node, int8_fuses) or Expected(kind)


def _has_kernel(node: ir.Node) -> bool:
    if node.op_type == "Resize":
        return node.attributes.get_string("mode", "nearest") == "nearest"
    return node.op_type in _INTEGER | _MOVERS | {"ArgMax"}


def _is_between(node: ir.Node) -> bool:
    """Whether one of DQ and Q is enough: that can be moved through the node, or the DQ dropped."""
    if node.op_type == "ArgMax":
        return _is_dq(node.inputs[0])
    from_dq, into_q = _is_dq(node.inputs[0]), bool(_all_quantizers(node))
    if into_q and not from_dq and _others(_behind(node.outputs[0])[0]):
        return False
    return node.op_type in _PROPAGATED and not (from_dq and into_q)


def _float(cause: FloatCause, why: str, do: str) -> Expected:
    return Expected("float", cause, why, do)


# --- the causes ---------------------------------------------------------------------------------


def _of_folded(node: ir.Node) -> Expected:
    """A Relu or Clip vanishes where the integers of the Q behind it cannot leave its bounds."""
    found = _of_output(node)
    if found is not None:
        return found
    return _clamped(node, _all_quantizers(node)[0]) or Expected("folded")


def _clamped(node: ir.Node, behind: ir.Node) -> Expected | None:
    if node.op_type not in _FOLDED:
        return None
    bounds = [constant_of(value) for value in (*node.inputs[1:], None, None)[:2]]
    low = -np.inf if bounds[0] is None else float(bounds[0].item())
    high = np.inf if bounds[1] is None else float(bounds[1].item())
    low = 0.0 if node.op_type == "Relu" else low
    scale, kind = constant_of(behind.inputs[1]), quantized_type(behind)
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
    kinds = {quantized_type(dq) for _, dq in _data(node)} | {
        quantized_type(q) for q in _all_quantizers(node)
    }
    wide = kinds & {"int16", "uint16"}
    if not wide or (node.op_type in _MOVERS and node.op_type not in _MOVERS_OF_8_BITS):
        return None
    do = "quantize activations to 8 bits; with 16 bits they are simulated in float"
    return _float("16-bit activations", f"its activations are {wide.pop()}", do)


def _of_weight(node: ir.Node) -> Expected | None:
    value = node.inputs[1] if node.op_type in WEIGHTED else None
    dq = dequantizer(value)
    if dq is not None:
        return _of_stored(dq)
    at_load = node.op_type in _WEIGHTS_AT_LOAD and constant_of(value) is not None
    if value is None or at_load or node.op_type == "MatMul":  # whose operands are all inputs
        return None
    return _float("float input", f"its weight `{value.name}` is float", "quantize the weight")


def _of_stored(dq: ir.Node) -> Expected | None:
    """What of the form of a weight is in the way."""
    if quantized_type(dq) in _FOUR_BITS:
        do = "store the weight in 4 bits before a Cast to int8, and dequantize that"
        return _float(
            "int4 without Cast", f"its weight is dequantized from {quantized_type(dq)}", do
        )
    if dq.attributes.get_int("block_size", 0):
        do = "give the weight one scale for each output channel"
        return _float("no integer kernel", "its weight has scales for blocks", do)
    return None


def _of_inputs(node: ir.Node) -> Expected | None:
    for value in _data_values(node):
        if not _is_dq(value):
            do = f"quantize `{value.name}`"
            return _float("float input", f"its input `{value.name}` is float", do)
    return None


def _of_output(node: ir.Node) -> Expected | None:
    if _gives_float(node):
        return None
    for output in node.outputs:
        last, passed = _behind(output)
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
        clamped = [_clamped(other, _quantizers(last)[0]) for other in passed]
        if any(clamped):
            return next(cause for cause in clamped if cause is not None)
    return None


def _gives_float(node: ir.Node) -> bool:
    """Whether the node has no Q behind it and a kernel that gives float: MatMulIntegerToFloat, or
    QGemm if a bias is not float itself."""
    bias = (*node.inputs, None, None)[2]
    able = node.op_type == "MatMul" or (node.op_type == "Gemm" and (bias is None or _is_dq(bias)))
    return able and not _all_quantizers(node)


def _of_scales(node: ir.Node) -> Expected | None:
    source = _data(node)[0][1]
    for behind in _all_quantizers(node):
        given, made = constant_of(source.inputs[1]), constant_of(behind.inputs[1])
        same = given is not None and made is not None and np.array_equal(given, made)
        if not same or _zero(source) != _zero(behind):
            moved = behind.inputs[0]
            return _float(
                "re-scaled data mover",
                f"it only moves values, and `{moved.name if moved else ''}` has another scale or "
                "zero point than its input",
                "give its output the scale and zero point of its input",
            )
    return None


def _of_types(node: ir.Node, int8_fuses: bool) -> Expected | None:
    kinds = _kinds(node, int8_fuses)
    found = set(kinds.values())
    if node.op_type in _MOVERS and len(found) == 1:
        return None
    if "int8" in found and not int8_fuses:
        kept = next(value for value, kind in kinds.items() if kind == "int8")
        return _float(
            "int8 activations on x86",
            f"`{kept.name}` is int8 and has several uses, or no Q: x86 keeps it int8, and its "
            "kernels want uint8",
            "make the activations uint8, the same numbers: `onnxq convert --target ort-x86`",
        )
    weight = dequantizer(node.inputs[1]) if node.op_type in WEIGHTED else None
    if len(found) > 1:
        do = "give both sides of the node one integer type"
        return _float("mixed types", f"its activations are {' and '.join(sorted(found))}", do)
    if found == {"int8"} and weight is not None and quantized_type(weight) == "uint8":
        return _float("mixed types", "int8 activations, uint8 weight", "make the weight int8")
    return None


def _kinds(node: ir.Node, int8_fuses: bool) -> dict[ir.Value, str]:
    """Integer types of the node's activations as they are when kernels are looked for.

    On x86, what a Q or DQ that is moved there makes has one use, and is uint8.
    """
    kinds = {}
    for value, dq in _data(node):
        alone = len(value.uses()) == 1 and value is not dq.outputs[0]
        kinds[_integers(dq)] = (
            "uint8" if alone and quantized_type(dq) == "int8" else _kind_on_x86(dq)
        )
    for output in node.outputs:
        last, passed = _behind(output)
        moved = any(other.op_type in _PROPAGATED for other in passed)
        for q in _quantizers(last):
            kinds[_integers(q)] = (
                "uint8" if moved and quantized_type(q) == "int8" else _kind_on_x86(q)
            )
    if int8_fuses:
        nodes = [*(dq for _, dq in _data(node)), *_all_quantizers(node)]
        return {_integers(n): quantized_type(n) for n in nodes}
    return kinds


# --- what the graph says ------------------------------------------------------------------------


def _dq_of(value: ir.Value | None) -> ir.Node | None:
    """The DQ that a value comes from, through operators that it is moved down through."""
    producer = value.producer() if value is not None else None
    if producer is not None and producer.op_type in _PROPAGATED:
        return _dq_of(producer.inputs[0])
    return dequantizer(value)


def _is_dq(value: ir.Value | None) -> bool:
    return _dq_of(value) is not None


def _touches_integers(node: ir.Node) -> bool:
    behind = any(_quantizers(_behind(output)[0]) for output in node.outputs)
    return behind or any(_is_dq(value) for value in node.inputs)


def _is_weight_only(node: ir.Node) -> bool:
    """A MatMul of float by dequantized constants, which ONNX Runtime makes MatMulNBits."""
    if node.op_type not in {"MatMul", "Gemm"} or node.attributes.get_int("transB", 0) == 1:
        return False
    dq = dequantizer(node.inputs[1])
    if dq is None or _is_dq(node.inputs[0]) or _all_quantizers(node):
        return False
    return stored_integers(dq) is not None


def _data_values(node: ir.Node) -> list[ir.Value]:
    """Inputs that carry activations."""
    if node.op_type in _ELEMENTWISE:
        values = node.inputs
    else:
        values = node.inputs[1:3] if node.op_type == "Where" else node.inputs[:1]
    return [value for value in values if value is not None]


def _data(node: ir.Node) -> list[tuple[ir.Value, ir.Node]]:
    """Those inputs with the DQ they come from; a constant weight is none of them."""
    found = [(value, dq) for value in _data_values(node) if (dq := _dq_of(value)) is not None]
    if node.op_type == "MatMul":
        return [(v, q) for v, q in found if stored_integers(q) is None]
    return found


def _quantizers(value: ir.Value) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type == QUANTIZE]


def _all_quantizers(node: ir.Node) -> list[ir.Node]:
    return [q for output in node.outputs for q in _quantizers(_behind(output)[0])]


def _others(value: ir.Value) -> str:
    """What takes ``value`` as it is, in words; empty if only Q do."""
    if value.is_graph_output():
        return "the outputs of the graph"
    users = [use.node for use in value.uses() if use.node.op_type != QUANTIZE]
    return f"{users[0].op_type} `{users[0].name}`" if users else ""


def _behind(value: ir.Value) -> tuple[ir.Value, tuple[ir.Node, ...]]:
    """``value``, or what it becomes through operators that vanish or that a Q is moved up through,
    while it has one use only; and those operators."""
    passed: list[ir.Node] = []
    while not value.is_graph_output():
        users = [use.node for use in value.uses()]
        if len(users) != 1 or users[0].op_type not in _FOLDED | _PROPAGATED:
            break
        passed.append(users[0])
        value = users[0].outputs[0]
    return value, tuple(passed)


def _integers(node: ir.Node) -> ir.Value:
    value = node.outputs[0] if node.op_type == QUANTIZE else node.inputs[0]
    if value is None:
        raise ValueError(f"{node.op_type} `{node.name}` has no input")
    return value


def _kind_on_x86(node: ir.Node) -> str:
    """The integer type of a Q or DQ once ONNX Runtime has made uint8 of int8 where a Q has one DQ
    with one use."""
    kind, value = quantized_type(node), _integers(node)
    maker = value.producer()
    if kind != "int8" or maker is None or maker.op_type != QUANTIZE:
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
    zero_point = constant_input(node, 2)
    return 0.0 if zero_point is None else float(zero_point.reshape(-1)[0])
