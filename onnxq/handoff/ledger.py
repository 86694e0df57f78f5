"""What a model weighs and what one sample costs, from files and graph alone.

A size is counted from the artefact, never from a parameter count; a cost is that of one call times
the calls that a sample takes; a time is a bound from a rate that somebody states, and called so.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from onnxq.artifacts import (
    CostTotal,
    LayerCost,
    Ledger,
    Manifest,
    RunStep,
    SizeLine,
    TimeBound,
)
from onnxq.computed_shapes import with_computed_shapes
from onnxq.errors import UsageError
from onnxq.graph import WEIGHTED, load_model, macs_of, output_channel_axis
from onnxq.handoff.subject import is_constant
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.sizes import size_lines
from onnxq.target import Target

__all__ = [
    "StoredConstant",
    "constants_of_node",
    "ledger",
    "ledger_lines",
    "ledgers_of_parts",
    "operators_of",
    "parameters_bytes",
    "per_sample",
    "stored_bytes",
]

_CONFIGURED = frozenset({"Clip", "Pad", "Resize", "Upsample"})  # their constants are settings
_INDEXED = ("Gather", "Scatter")  # integers beside these are data
_LISTED = 5
_RATIO_SLACK = 1.02  # names and shapes take bytes too


@dataclass(frozen=True)
class StoredConstant:
    """A constant that a node computes with: the name under which it is stored, and its bytes."""

    name: str
    bytes: int


# --- constants ----------------------------------------------------------------------------------


def operators_of(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that run: no Q, no DQ, nothing that is constant already."""
    return [
        node
        for node in graph
        if node.op_type not in (QUANTIZE, DEQUANTIZE, "Constant")
        and not all(is_constant(value) for value in node.outputs)
    ]


def constants_of_node(node: ir.Node) -> list[StoredConstant]:
    """Weights, biases and operands of a node as they are stored: behind a DequantizeLinear the
    integers (int4 two a byte), else the floats. Shapes, axes and bounds are left out."""
    found = []
    for value in node.inputs:
        stored = _stored(value)
        if value is None or stored is None or node.op_type in _CONFIGURED:
            continue
        integer = value.dtype in (ir.DataType.INT64, ir.DataType.BOOL)
        if not integer or node.op_type.startswith(_INDEXED):
            found.append(stored)
    return found


def stored_bytes(constants: Iterable[StoredConstant]) -> int:
    """Sum of the bytes, what is shared counted once."""
    return sum({constant.name: constant.bytes for constant in constants}.values())


def parameters_bytes(graph: ir.Graph) -> int:
    """Bytes of all scales and zero points."""
    return stored_bytes(
        stored
        for node in graph
        if node.op_type in (QUANTIZE, DEQUANTIZE)
        for value in node.inputs[1:]
        if (stored := _stored(value)) is not None
    )


def _stored(value: ir.Value | None) -> StoredConstant | None:
    """The initializer or Constant behind ``value``; None if it is computed at run time."""
    if value is None or not is_constant(value):
        return None
    item_bytes: float | None = None
    beside = 0  # multipliers of blocks
    while (tensor := ir.convenience.get_const_tensor(value)) is None:
        node = value.producer()
        if node is None or node.inputs[0] is None:
            return None
        if node.op_type == QUANTIZE and value.dtype is not None:
            item_bytes = value.dtype.itemsize
        if node.op_type == "Mul" and (more := _stored(node.inputs[1])) is not None:
            beside += more.bytes
        value = node.inputs[0]
    size = tensor.nbytes if item_bytes is None else int(tensor.size * item_bytes)
    return StoredConstant(str(value.name), size + beside)


# --- the ledger ---------------------------------------------------------------------------------


def ledger(
    model: Path,
    target: Target,
    *,
    fp32: Path | None = None,
    calls: int = 1,
    claimed_ratio: float | None = None,
) -> Ledger:
    """The ledger of ``model``, ``calls`` times for each sample, beside the FP32 file it came from.

    ``claimed_ratio`` is a "FP32 over INT8" that somebody states; above what the formula gives it
    is warned of. Raises UsageError for fewer calls than one, ModelError.
    """
    if calls < 1:
        raise UsageError(f"{calls} calls for a sample", where="calls", do="give 1 or more")
    graph = _graph_of(model)
    nodes = [node for node in operators_of(graph) if constants_of_node(node)]
    before = {} if fp32 is None else {str(n.name): n for n in operators_of(_graph_of(fp32))}
    layers = tuple(
        LayerCost(
            node=str(node.name),
            op_type=node.op_type,
            macs=macs_of(node),
            weight_bytes=stored_bytes(constants_of_node(node)),
            fp32_bytes=_bytes_before(before.get(str(node.name))),
        )
        for node in nodes
    )
    macs = sum(macs_of(node) for node in operators_of(graph))
    sizes: tuple[SizeLine, ...] = ()
    ratio = predicted = None
    if fp32 is not None:
        sizes = size_lines(fp32, model)
        ratio = sizes[0].fp32_bytes / max(sizes[0].int8_bytes or 0, 1)
        predicted = _predicted_ratio(_graph_of(fp32))
    return Ledger(
        model=model.name,
        calls=calls,
        sizes=sizes,
        layers=layers,
        macs=macs,
        weight_bytes=stored_bytes(c for node in nodes for c in constants_of_node(node)),
        ratio=ratio,
        predicted_ratio=predicted,
        bound=_bound(macs * calls, target),
        warnings=_warnings(ratio, predicted, claimed_ratio),
    )


def ledgers_of_parts(manifest: Manifest, folder: Path, target: Target) -> tuple[Ledger, ...]:
    """The ledgers of a graph that ships in parts, each called as often as the manifest runs it.

    ``folder`` is where the manifest lies. Raises ModelError.
    """
    calls = Counter[str]()
    for step in manifest.steps:
        if isinstance(step, RunStep):
            calls[step.part] += step.times
    return tuple(
        ledger(folder / part.file.name, target, calls=calls[part.name])
        for part in manifest.parts
        if calls[part.name]
    )


def per_sample(ledgers: Sequence[Ledger], target: Target) -> CostTotal:
    """What one sample costs over all models of a system, each as often as it is called."""
    macs = sum(entry.macs * entry.calls for entry in ledgers)
    return CostTotal(
        macs_per_sample=macs,
        weight_bytes_per_sample=sum(entry.weight_bytes * entry.calls for entry in ledgers),
        calls={entry.model: entry.calls for entry in ledgers},
        bound=_bound(macs, target),
    )


def _graph_of(path: Path) -> ir.Graph:
    return ir.from_proto(with_computed_shapes(load_model(path))).graph


def _bytes_before(node: ir.Node | None) -> int | None:
    return None if node is None else stored_bytes(constants_of_node(node))


def _bound(macs: int, target: Target) -> TimeBound | None:
    rate = target.mac_rate
    if rate is None or not macs:
        return None
    return TimeBound(
        at_least_ms=macs / rate.per_second * 1e3,
        how=f"{macs:,} multiply-accumulates at {rate.per_second / 1e9:g} G/s, nothing else counted",
        source=rate.source,
    )


def _warnings(
    ratio: float | None, predicted: float | None, claimed: float | None
) -> tuple[str, ...]:
    if predicted is None:
        return () if claimed is None else ("a claimed ratio cannot be judged without an FP32 file",)
    found = []
    for what, value in (("the files' ratio", ratio), ("the claimed ratio", claimed)):
        if value is not None and value > predicted * _RATIO_SLACK:
            found.append(
                f"{what} of {value:.2f} is more than the {predicted:.2f} that 8-bit weights, "
                "32-bit biases and their scales allow"
            )
    return tuple(found)


# --- the ratio ----------------------------------------------------------------------------------


def _predicted_ratio(graph: ir.Graph) -> float:
    """FP32 constants over the same with int8 weights, int32 biases, and 5 and 8 bytes of scale and
    zero point for each channel of them."""
    before = after = 0
    for node in operators_of(graph):
        for position, value in enumerate(node.inputs):
            stored = _stored(value)
            if value is None or stored is None or stored not in constants_of_node(node):
                continue
            before += stored.bytes
            after += _predicted_bytes(node, position, stored)
    return before / after if after else 1.0


def _predicted_bytes(node: ir.Node, position: int, stored: StoredConstant) -> int:
    if node.op_type not in WEIGHTED or position == 0:
        return stored.bytes
    value = node.inputs[position]
    elements = stored.bytes // 4
    if position > 1 or value is None or value.shape is None:
        return stored.bytes + 8 * elements
    channels = value.shape[output_channel_axis(node)]
    return elements + 5 * (channels if isinstance(channels, int) else 1)


# --- what a report says -------------------------------------------------------------------------


def ledger_lines(ledgers: Sequence[Ledger], target: Target) -> list[str]:
    """Lines of Markdown: sizes, the heaviest layers, the cost of one sample over all models."""
    lines: list[str] = []
    for entry in ledgers:
        lines.append(
            f"- `{entry.model}`: {entry.macs:,} multiply-accumulates and {entry.weight_bytes:,} "
            f"bytes of weights a call, {entry.calls} calls a sample"
        )
        lines += [f"  - {_size_text(row)}" for row in entry.sizes]
        heaviest = sorted(entry.layers, key=lambda layer: -layer.macs)[:_LISTED]
        lines += [
            f"  - {layer.op_type} `{layer.node}`: {layer.macs:,} multiply-accumulates, "
            f"{layer.weight_bytes:,} bytes of weights"
            for layer in heaviest
        ]
        lines += [f"  - WARNING: {warning}" for warning in entry.warnings]
    total = per_sample(ledgers, target)
    lines.append(
        f"- one sample: {total.macs_per_sample:,} multiply-accumulates, "
        f"{total.weight_bytes_per_sample:,} bytes of weights read, if each call reads all of them"
    )
    if total.bound is not None:
        lines.append(
            f"- BOUND, no measurement: not below {total.bound.at_least_ms:.3g} ms a sample "
            f"({total.bound.how}; {total.bound.source})"
        )
    return lines


def _size_text(row: SizeLine) -> str:
    if row.int8_bytes is None:
        return f"{row.what}: {row.fp32_bytes:,} bytes"
    ratio = row.fp32_bytes / row.int8_bytes if row.int8_bytes else 0.0
    return f"{row.what}: {row.fp32_bytes:,} → {row.int8_bytes:,} bytes ({ratio:.2f} times less)"
