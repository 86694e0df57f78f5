"""What a Q/DQ file does that no rule forbids and that costs accuracy: told from the file alone.

Every figure is exact for the file: scales, ranges that integers can stand for, bounds on sums. How
much of it real samples feel is for the verification to say.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Float, Float64, Integer, Shaped

from onnxq.artifacts import Finding
from onnxq.graph import WEIGHTED, constant_input, constant_of, output_channel_axis
from onnxq.handoff.subject import Quantized, Subject, is_constant, label_of, subject_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE, quantized_type, stored_integers
from onnxq.target import Target

__all__ = ["RATIO", "hazards"]

RATIO = 8.0  # between two scales: three bits of eight
_SIGN_SHARE = 0.55  # of a joint range: what is left of it to a branch that has one sign
_DEAD_WIDTH = 1.01e-4  # affine.py gives 1e-4 to a tensor that was always zero
_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
_INT32_MAX, _INT32_MIN = 2**31 - 1, -(2**31)
_LIMITS = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "uint16": (0, 2**16 - 1),
}
_VIEWS = frozenset(
    {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Identity"}
)
_PASSED = _VIEWS | {QUANTIZE, DEQUANTIZE, "Relu", "Clip"}
_CHANNELS_SHOWN = 8


class _Grid(NamedTuple):
    """The integers of an activation: the step between two, and the reals of first and last."""

    step: float
    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low

    @property
    def has_one_sign(self) -> bool:
        return self.low >= 0 or self.high <= 0


def hazards(
    model: ir.Model | onnx.ModelProto, target: Target, *, ratio: float = RATIO
) -> tuple[Finding, ...]:
    """Places of a Q/DQ file where integers are few for what they have to tell apart.

    Sums of values with steps ``ratio`` times apart; a Concat of branches whose ranges are, or that
    differ in sign; an output whose channels are (boxes and scores in one tensor); biases that leave
    int32; weight channels of zeros; scales that are subnormal, or of a tensor that was always zero.
    """
    subject = subject_of(model, target, "")
    heads = _heads(subject)
    return (
        *_sums(subject, ratio),
        *_joins(subject, heads, ratio),
        *_channels(subject, heads, ratio),
        *_biases(subject),
        *_zero_channels(subject),
        *_scales(subject),
    )


# --- activations that meet ----------------------------------------------------------------------


def _sums(subject: Subject, ratio: float) -> Iterator[Finding]:
    for node in subject.of_type("Add", "Sub"):
        grids = {str(v.name): _grid(v) for v in node.inputs if v is not None and _is_computed(v)}
        known = {name: grid for name, grid in grids.items() if grid is not None}
        if len(known) < 2:
            continue
        fine, coarse = sorted(known, key=lambda name: known[name].step)
        apart = known[coarse].step / known[fine].step
        if apart >= ratio:
            yield Finding(
                where=label_of(node),
                what=f"adds `{fine}` in steps of {known[fine].step:.3g} to `{coarse}` in steps of "
                f"{known[coarse].step:.3g}: {apart:.0f} steps of the one are one of the other, so "
                f"that {np.log2(apart):.1f} of its 8 bits are lost in the sum",
                do="bring the branches to like ranges (equalization, clipping the wide one), or "
                "exclude this node so that it stays float",
            )


def _joins(subject: Subject, heads: dict[ir.Node, str], ratio: float) -> Iterator[Finding]:
    for node in subject.of_type("Concat"):
        grids = {str(v.name): _grid(v) for v in node.inputs if v is not None and _is_computed(v)}
        known = {name: grid for name, grid in grids.items() if grid is not None}
        if len(known) < 2:
            continue
        joint = _behind(node) or _hull(known.values())
        narrow = min(known, key=lambda name: known[name].width)
        wide = max(known, key=lambda name: known[name].width)
        apart = known[wide].width / known[narrow].width
        one_sided = _one_sided(known, joint)
        name = narrow if apart >= ratio else one_sided
        if name is None:
            continue
        grid = known[name]
        why = f"{apart:.0f} times as wide" if apart >= ratio else "of the other sign too"
        levels = max(1, round(grid.width / joint.step))
        head = heads.get(node)
        yield Finding(
            where=f"output `{head}`, {label_of(node)}" if head else label_of(node),
            what=f"joins `{name}` ({grid.low:.3g} to {grid.high:.3g}) to values {why} "
            f"({joint.low:.3g} to {joint.high:.3g} together): {levels} of 256 integers are left to "
            "it",
            do="give boxes and scores an output each"
            if head
            else "name it in the recipe's `export.split_concats`, so that the layer behind "
            "multiplies the branches apart, or scale the branches alike",
        )


def _one_sided(known: dict[str, _Grid], joint: _Grid) -> str | None:
    """A branch of one sign that has to share its integers with values of the other."""
    for name, grid in known.items():
        other_sign = joint.low < 0 if grid.low >= 0 else joint.high > 0
        if grid.has_one_sign and other_sign and grid.width <= _SIGN_SHARE * joint.width:
            return name
    return None


def _channels(subject: Subject, heads: dict[ir.Node, str], ratio: float) -> Iterator[Finding]:
    """Outputs with channels that cannot reach far: bounded by weights and the range of the data."""
    for node, output in heads.items():
        grid = _behind(node)
        spans = _spans(node) if node.op_type in WEIGHTED else None
        if grid is None or spans is None:
            continue
        few = np.flatnonzero((spans > 0) & (spans < grid.width / ratio))
        if 0 < few.size < np.count_nonzero(spans):
            least = int(few[np.argmin(spans[few])])
            levels = spans[least] / grid.step
            yield Finding(
                where=f"output `{output}`, {label_of(node)}",
                what=f"channels {_listed(few)} of {spans.size} cannot span more than "
                f"1/{grid.width / spans[few].max():.0f} of the output's range "
                f"({grid.low:.3g} to {grid.high:.3g}); channel {least} has {levels:.1f} of 256 "
                "integers",
                do="give channels of unlike ranges (boxes and scores) an output each, or scale "
                "them alike inside the network",
            )


def _spans(node: ir.Node) -> Float64[np.ndarray, " channels"] | None:
    """Widest range of each output channel: Σ |w| · (width of the data), its bias left out."""
    data = _grid(node.inputs[0])
    weight = _real_weight(node)
    if data is None or weight is None:
        return None
    axis = output_channel_axis(node) % weight.ndim
    others = tuple(dim for dim in range(weight.ndim) if dim != axis)
    spans = np.abs(weight).sum(axis=others) * data.width
    return np.asarray(spans, np.float64)


# --- constants ----------------------------------------------------------------------------------


def _biases(subject: Subject) -> Iterator[Finding]:
    for use in subject.constants:
        integers = constant_of(use.dequantize.inputs[0])
        if use.role != "bias" or integers is None or integers.dtype != np.int32:
            continue
        wide = integers.astype(np.int64).reshape(-1)
        clipped = np.flatnonzero((wide == _INT32_MAX) | (wide == _INT32_MIN))
        if clipped.size:
            yield Finding(
                where=label_of(use.consumer),
                what=f"the biases of channels {_listed(clipped)} are cut off at the end of int32: "
                "input scale x weight scale is too small for them",
                do="raise the weight scales of these channels, or fold them to their bias",
            )
            continue
        sums = _largest_sums(use.consumer)
        if sums is None or sums.size != wide.size:
            continue
        over = np.flatnonzero(sums + np.abs(wide) > _INT32_MAX)
        if over.size:
            worst = int(np.argmax(sums + np.abs(wide)))
            yield Finding(
                where=label_of(use.consumer),
                what=f"sums of channels {_listed(over)} can leave int32: channel {worst} has a "
                f"bias of {wide[worst]} and products of up to {sums[worst]}",
                do="raise the weight scales of these channels",
            )


def _largest_sums(node: ir.Node) -> Shaped[np.ndarray, " channels"] | None:
    """Σ |w| · max |x − zero point| in integers, for each output channel."""
    data, weight = _dequantizer(node.inputs[0]), _dequantizer(node.inputs[1])
    integers = _integers(weight) if weight is not None else None
    if data is None or weight is None or integers is None or quantized_type(data) not in _LIMITS:
        return None
    low, high = _LIMITS[quantized_type(data)]
    zero = _zero(data)
    axis = output_channel_axis(node) % integers.ndim
    others = tuple(dim for dim in range(integers.ndim) if dim != axis)
    largest = np.abs(integers - _zero(weight)).sum(axis=others)
    return np.asarray(largest * max(zero - low, high - zero))


def _zero_channels(subject: Subject) -> Iterator[Finding]:
    for use in subject.constants:
        integers = _integers(use.dequantize)
        if use.role != "weight" or integers is None or not integers.size:
            continue
        axis = output_channel_axis(use.consumer) % integers.ndim
        others = tuple(dim for dim in range(integers.ndim) if dim != axis)
        dead = np.flatnonzero(np.all(integers == _zero(use.dequantize), axis=others))
        if dead.size:
            yield Finding(
                where=label_of(use.consumer),
                what=f"the weights of channels {_listed(dead)} of {integers.shape[axis]} are all "
                "zero: they give their bias whatever comes in",
                do="if the FP32 weights are not zero, quantize per channel and look at the bias; "
                "else take the channels out",
            )


# --- scales -------------------------------------------------------------------------------------


def _scales(subject: Subject) -> Iterator[Finding]:
    inputs = {value.name for value in subject.inputs}
    for node in subject.quantizers:
        name = str(node.inputs[0].name) if node.inputs[0] is not None else ""
        yield from _faulty(node, f"value `{name}`")
        grid = _grid(node.outputs[0])
        if grid is None or not grid.step >= _SMALLEST_SCALE:
            continue
        marked = grid.step == 1.0 and _zero(node) == 0 and name not in inputs
        if grid.width <= _DEAD_WIDTH or marked:
            yield Finding(
                where=f"value `{name}`",
                what=f"has a scale of {grid.step:.3g} and a zero point of {_zero(node)}, as a "
                "tensor gets that was zero on every sample of the calibration",
                do="find out why nothing arrives here, calibrate on samples that reach it, or "
                "declare its domain",
            )
    for use in _first_uses(subject):
        yield from _faulty(use.dequantize, f"{use.role} of {label_of(use.consumer)}")


def _faulty(node: ir.Node, where: str) -> Iterator[Finding]:
    scale = constant_input(node, 1)
    if scale is None:
        return
    real = scale.astype(np.float64).reshape(-1)
    bad = np.flatnonzero(~(np.isfinite(real) & (real > 0)))
    small = np.flatnonzero((real > 0) & (real < _SMALLEST_SCALE))
    if bad.size:
        what, worst = "is not a positive number", real[bad[0]]
    elif small.size:
        what, worst = "is subnormal: a processor may take it for 0", float(real[small].min())
    else:
        return
    count = f"one of {real.size} scales" if real.size > 1 else "the scale"
    yield Finding(
        where=where,
        what=f"{count} {what} ({worst:.3g})",
        do="quantize it again: a scale is at least 1.2e-38",
    )


def _first_uses(subject: Subject) -> list[Quantized]:
    """One use of every quantized constant."""
    first: dict[ir.Node, Quantized] = {}
    for use in subject.constants:
        first.setdefault(use.dequantize, use)
    return list(first.values())


# --- what the graph says ------------------------------------------------------------------------


def _heads(subject: Subject) -> dict[ir.Node, str]:
    """The node that computes each graph output, before Q, DQ, views, Relu and Clip: its output."""
    found = {}
    for output in subject.model.graph.outputs:
        node = output.producer()
        while node is not None and node.op_type in _PASSED:
            node = node.inputs[0].producer() if node.inputs[0] is not None else None
        if node is not None:
            found[node] = str(output.name)
    return found


def _is_computed(value: ir.Value) -> bool:
    return not is_constant(value)


def _grid(value: ir.Value | None) -> _Grid | None:
    """The grid of a value that a Q or a DQ makes; None for any other, and for per-axis scales."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in (QUANTIZE, DEQUANTIZE):
        return None
    scale, kind = constant_input(node, 1), quantized_type(node)
    if scale is None or scale.size != 1 or kind not in _LIMITS:
        return None
    step, zero = float(scale.reshape(-1)[0]), _zero(node)
    low, high = _LIMITS[kind]
    return _Grid(step, (low - zero) * step, (high - zero) * step)


def _behind(node: ir.Node) -> _Grid | None:
    """The grid of the Q behind a node, a Relu or Clip between them left out."""
    for consumer in node.outputs[0].consumers():
        if consumer.op_type == QUANTIZE:
            return _grid(consumer.outputs[0])
        if consumer.op_type in ("Relu", "Clip"):
            return _behind(consumer)
    return None


def _hull(grids: Iterable[_Grid]) -> _Grid:
    listed = list(grids)
    low, high = min(g.low for g in listed), max(g.high for g in listed)
    return _Grid((high - low) / 255, low, high)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == DEQUANTIZE else None


def _integers(dequantize: ir.Node) -> Integer[np.ndarray, "..."] | None:
    """What a DQ takes, if it is constant."""
    integers = stored_integers(dequantize)
    return None if integers is None else integers.astype(np.int64)


def _real_weight(node: ir.Node) -> Float[np.ndarray, "..."] | None:
    """The numbers that the integers of a weight stand for; None for a float or computed one."""
    dequantize = _dequantizer(node.inputs[1])
    integers = _integers(dequantize) if dequantize is not None else None
    scale = constant_input(dequantize, 1) if dequantize is not None else None
    if dequantize is None or integers is None or scale is None:
        return None
    if scale.size > 1:
        if scale.ndim != 1:
            return None  # scales of blocks
        axis = dequantize.attributes.get_int("axis", 1) % integers.ndim
        scale = scale.reshape([-1 if dim == axis else 1 for dim in range(integers.ndim)])
    centred = integers.astype(np.float64) - _zero(dequantize)
    return np.asarray(centred * scale.astype(np.float64))


def _zero(node: ir.Node) -> int:
    """The zero point; of several, which is that of weights with one each, the first."""
    points = constant_input(node, 2)
    return 0 if points is None else int(points.reshape(-1)[0])


def _listed(channels: Shaped[np.ndarray, " channels"]) -> str:
    shown = ", ".join(map(str, channels[:_CHANNELS_SHOWN].tolist()))
    more = channels.size - _CHANNELS_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
