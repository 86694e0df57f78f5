"""What goes into the model and comes out of it, read from the very file that ships.

Scales and zero points are taken from the first QuantizeLinear and the last DequantizeLinear of the
graph, never from a record; a record that says otherwise is stale.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Int
from pydantic import BaseModel, ConfigDict

from onnxq.affine import quantize
from onnxq.artifacts import ExportedModel, PartFacts, QuantizedModel, ValueFacts
from onnxq.errors import ModelError, StaleRecordError
from onnxq.graph import constant_input, values_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE, quantized_type
from onnxq.qtypes import AffineParameters, IntType

__all__ = [
    "Contract",
    "InputOutput",
    "QuantizationFacts",
    "byte_table",
    "contract",
    "plain_layout",
]

_MOVERS = frozenset(
    {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Split"}
)
_IMAGE_LAYOUTS = {3: "NCL", 4: "NCHW", 5: "NCDHW"}
_IMAGE_OPERATORS = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QuantizationFacts(_Facts):
    """How real values and integers belong together: ``real = (q - zero_point) * scale``.

    ``node`` is the Q or DQ of the file that says so; ``examples`` are real values with their
    integers; ``real_low`` and ``real_high`` the ends of what can be said. Of an input that is made
    of picture bytes, ``byte / byte_divisor`` is the real value; ``byte_image`` says it in words.
    """

    node: str
    type: IntType
    scale: float
    zero_point: int
    real_low: float
    real_high: float
    quantize: str
    dequantize: str
    examples: tuple[tuple[float, int], ...]
    domain_covered: bool | None = None
    byte_divisor: int | None = None
    byte_image: str = ""

    @property
    def affine(self) -> AffineParameters:
        """Scale, zero point and type."""
        return AffineParameters(self.scale, self.zero_point, self.type)


class InputOutput(_Facts):
    """A graph input or output. ``dtype`` is its type in the file; ``quantization.type`` the one it
    has where the target's compiler makes inputs and outputs integer."""

    name: str
    direction: Literal["input", "output"]
    dtype: str
    shape: tuple[int | str, ...]
    layout: str
    domain: tuple[float, float] | None
    quantization: QuantizationFacts | None
    note: str = ""


class Contract(_Facts):
    """Every input and output of one file, in the order of its graph."""

    model: str
    sha256: str
    rounding: str = (
        "q = saturate(round_half_even(x / scale) + zero_point), in float32; a cast without "
        "rounding or saturation is wrong"
    )
    inputs: tuple[InputOutput, ...]
    outputs: tuple[InputOutput, ...]


def contract(
    model: onnx.ModelProto,
    quantized: QuantizedModel | None,
    exported: ExportedModel | PartFacts | None,
    *,
    name: str,
    sha256: str,
) -> Contract:
    """The contract of ``model``, whose file is called ``name`` and has the digest ``sha256``.

    Without records the domains are unknown and nothing is compared. Raises StaleRecordError if
    the file's inputs, outputs, scales or zero points are not those of the records; ModelError if a
    scale is computed at run time.
    """
    graph = ir.from_proto(model).graph
    recorded = (*exported.inputs, *exported.outputs) if exported is not None else ()
    domains = {value.name: value.domain for value in recorded}
    inputs, outputs = values_of(model, domains)
    if exported is not None:
        _compare_names(inputs, exported.inputs, "inputs", name)
        _compare_names(outputs, exported.outputs, "outputs", name)
    values = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    result = Contract(
        model=name,
        sha256=sha256,
        inputs=tuple(_of_input(facts, values[facts.name]) for facts in inputs),
        outputs=tuple(_of_output(facts, values[facts.name]) for facts in outputs),
    )
    if quantized is not None:
        for value in (*result.inputs, *result.outputs):
            _compare_parameters(value, quantized, name)
    return result


def _of_input(facts: ValueFacts, value: ir.Value) -> InputOutput:
    nodes = _first_quantizers(value)
    found = {_text_of(_parameters(node)): node for node in nodes}
    note = ""
    if not found:
        note = "the file does not quantize it: feed it as it is"
    elif len(found) > 1:
        note = "the file quantizes it in several ways: keep it float. " + "; ".join(sorted(found))
    elif _is_taken_exactly(value):
        note = "part of the graph takes it before it is quantized: keep it float"
    node = next(iter(found.values())) if len(found) == 1 and not note else None
    return _entry(facts, "input", _layout(value), node, note)


def _of_output(facts: ValueFacts, value: ir.Value) -> InputOutput:
    node = value.producer()
    while node is not None and node.op_type in _MOVERS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    known = node is not None and node.op_type == DEQUANTIZE
    note = "" if known else "computed in float: no integer form of it exists in the file"
    return _entry(facts, "output", plain_layout(facts.shape), node if known else None, note)


def _entry(
    facts: ValueFacts,
    direction: Literal["input", "output"],
    layout: str,
    node: ir.Node | None,
    note: str,
) -> InputOutput:
    return InputOutput(
        name=facts.name,
        direction=direction,
        dtype=facts.dtype,
        shape=facts.shape,
        layout=layout,
        domain=facts.domain,
        quantization=None
        if node is None
        else _quantization(node, facts.domain, layout if direction == "input" else ""),
        note=note,
    )


def _first_quantizers(value: ir.Value) -> list[ir.Node]:
    """Q nodes (or DQ nodes, of an integer input) that take ``value``, past pure data movers."""
    found: list[ir.Node] = []
    for node in value.consumers():
        if node.op_type in (QUANTIZE, DEQUANTIZE) and node.inputs[0] is value:
            found.append(node)
        elif node.op_type in _MOVERS and node.inputs[0] is value:
            found += [quantizer for moved in node.outputs for quantizer in _first_quantizers(moved)]
    return found


def _is_taken_exactly(value: ir.Value) -> bool:
    """Whether a node that computes takes ``value`` as it is given, past pure data movers."""
    for node in value.consumers():
        if node.op_type in _MOVERS and node.inputs[0] is value:
            if any(_is_taken_exactly(moved) for moved in node.outputs):
                return True
        elif node.op_type not in (QUANTIZE, DEQUANTIZE, "Shape"):
            return True
    return False


def _parameters(node: ir.Node) -> AffineParameters:
    scale, point = constant_input(node, 1), constant_input(node, 2)
    kind = quantized_type(node)
    absent = len(node.inputs) < 3 or node.inputs[2] is None
    if scale is None or scale.size != 1 or (point is None and not absent):
        raise ModelError(
            "has no single constant scale and zero point",
            where=f"{node.op_type} `{node.name}`",
            do="quantize it with one scale per activation",
        )
    if kind not in (IntType.INT8, IntType.UINT8):
        raise ModelError(f"is of {kind}, not of 8 bits", where=f"{node.op_type} `{node.name}`")
    zero_point = 0 if point is None else int(point.reshape(-1)[0])
    return AffineParameters(float(scale.reshape(-1)[0]), zero_point, IntType(kind))


def _text_of(parameters: AffineParameters) -> str:
    return f"{parameters.type} scale {parameters.scale!r} zero point {parameters.zero_point}"


def _quantization(
    node: ir.Node, domain: tuple[float, float] | None, input_layout: str
) -> QuantizationFacts:
    known = _parameters(node)
    scale, point, kind = known.scale, known.zero_point, known.type
    low, high = known.range
    reals = sorted({low, 0.0, high} | set(domain or ()))
    integers = quantize(np.array(reals, np.float32), scale, point, kind)
    half = scale / 2
    divisor = _byte_divisor(domain, input_layout) if input_layout else None
    return QuantizationFacts(
        node=node.name or node.outputs[0].name or node.op_type,
        type=kind,
        scale=scale,
        zero_point=point,
        real_low=low,
        real_high=high,
        quantize=(
            f"q = saturate(round_half_even(x / {scale!r}) + ({point})), "
            f"saturated to {kind.qmin}…{kind.qmax}"
        ),
        dequantize=f"x = (q - ({point})) * {scale!r}",
        examples=tuple(zip(reals, integers.tolist(), strict=True)),
        domain_covered=(
            None if domain is None else low - half <= domain[0] and domain[1] <= high + half
        ),
        byte_divisor=divisor,
        byte_image=_byte_image(known, divisor, known_domain=domain is not None) if divisor else "",
    )


def _byte_divisor(domain: tuple[float, float] | None, layout: str) -> int | None:
    """What makes real values of picture bytes; None for an input that is no picture."""
    if domain is None:
        return 255 if {"C", "H", "W"} <= set(layout) else None
    return {(0.0, 1.0): 255, (0.0, 255.0): 1}.get(domain)


def byte_table(parameters: AffineParameters, divisor: int) -> Int[np.ndarray, "256"]:
    """The integer of every byte of a picture, where ``byte / divisor`` is the real value."""
    reals = (np.arange(256) / divisor).astype(np.float32)
    return quantize(reals, parameters.scale, parameters.zero_point, parameters.type).astype(int)


def _byte_image(parameters: AffineParameters, divisor: int, *, known_domain: bool) -> str:
    """How a byte of a picture becomes this integer."""
    known = "" if known_domain else "no domain is declared; if byte / 255 is the real value: "
    shift = parameters.type.qmin
    short = f"q = byte - {-shift}" if shift else "q = byte"
    off = np.abs(byte_table(parameters, divisor) - (np.arange(256) + shift))
    if not off.any():
        return f"{known}{short} is exact for all 256 bytes"
    return (
        f"{known}{'divide the byte by 255' if divisor == 255 else 'take the byte as it is'} and "
        f"quantize as said; {short} is WRONG here, by up to {off.max()} steps, as the scale is "
        f"{parameters.scale!r} and the zero point {parameters.zero_point}"
    )


def _layout(value: ir.Value) -> str:
    """Layout of an input, from the first image operator that takes it and the transpositions
    before it; else its plain order."""
    rank = len(value.shape) if value.shape is not None else 0
    order = list(range(rank))
    at: ir.Value | None = value
    while at is not None and rank in _IMAGE_LAYOUTS:
        consumers = at.consumers()
        node = consumers[0] if consumers else None
        if node is None:
            break
        if node.op_type in _IMAGE_OPERATORS:
            letters = _IMAGE_LAYOUTS[rank]
            return "".join(letters[order.index(axis)] for axis in range(rank))
        if node.op_type == "Transpose":
            order = [order[axis] for axis in node.attributes.get_ints("perm", ())]
        elif node.op_type not in (QUANTIZE, DEQUANTIZE):
            break
        at = node.outputs[0] if len(order) == rank else None
    return plain_layout(tuple(value.shape or ()))


def plain_layout(shape: Sequence[object]) -> str:
    """The order of numbers, in words, where no letters are known for the axes."""
    return f"row-major, {len(shape)} axes, the last varying fastest"


def _compare_names(
    found: Sequence[ValueFacts], recorded: Sequence[ValueFacts], what: str, where: str
) -> None:
    names, wanted = [v.name for v in found], [v.name for v in recorded]
    if names != wanted:
        raise StaleRecordError(
            f"has the {what} {', '.join(names)}; the export's record says {', '.join(wanted)}",
            where=where,
            do="run the stages again from export",
        )


def _compare_parameters(value: InputOutput, quantized: QuantizedModel, where: str) -> None:
    recorded = quantized.activations.get(value.name)
    known = value.quantization
    if recorded is None or known is None:
        return
    in_file = AffineParameters(known.scale, known.zero_point, known.type)
    if (
        np.float32(recorded.scale) != np.float32(known.scale)
        or recorded.zero_point != known.zero_point
        or recorded.type != known.type
    ):
        raise StaleRecordError(
            f"{value.direction} `{value.name}` has {_text_of(in_file)} in the file and "
            f"{_text_of(recorded.affine)} in the quantization's record",
            where=where,
            do="run the stages again from quantize",
        )
