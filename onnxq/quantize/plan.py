"""Decide: which nodes become integer, and with what parameters. The graph is not touched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from jaxtyping import Float

from onnxq.affine import (
    parameters_of_range,
    powers_of_two_above,
    symmetric_weight_scales,
)
from onnxq.artifacts import DECLARED, Finding, FloatNode, TensorRange
from onnxq.errors import QuantizationError, StaleRecordError
from onnxq.gates import useful_from
from onnxq.graph import WEIGHTED, constant_input, constant_of, output_channel_axis
from onnxq.placement import (
    data_inputs,
    float_reasons,
    fold_sources,
    pad_fill,
    refuse_unknown_nodes,
    roots_of,
)
from onnxq.qtypes import AffineParameters, IntType, Range
from onnxq.quantize.blocks import Blocks, channel_scales, multiplied
from onnxq.quantize.least_error import least_error_scales, rows_of
from onnxq.quantize.narrow import narrowed_scales
from onnxq.quantize.precision import AS_THE_TARGET, Precision
from onnxq.quantize.wide import widened
from onnxq.target import Target

__all__ = ["Plan", "WeightParameters", "make_plan"]

_KEEPS_EVERY_VALUE = frozenset(
    {"Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
)
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class WeightParameters:
    """Symmetric scales of one weight: one for each channel of ``axis``, or a single one (None).

    ``type`` is the grid, −127…127 or −7…7; ``stored`` the type of the integers in the file. With
    ``blocks`` the step of a weight is that of its channel times its block's multiplier.
    """

    axis: int | None
    scales: Float[np.ndarray, " channels"]
    type: IntType
    stored: IntType = IntType.INT8
    blocks: Blocks | None = None

    def spread(self, rank: int) -> Float[np.ndarray, "..."]:
        """The scales, broadcasting to a weight of that rank."""
        return self.scales.reshape([-1 if dim == self.axis else 1 for dim in range(rank)])

    def steps(self, shape: Sequence[int]) -> Float[np.ndarray, "..."]:
        """The step of each weight, broadcasting to ``shape``."""
        wide = self.spread(len(shape))
        return wide if self.blocks is None else wide * self.blocks.spread(shape)

    def on_grid(self, weight: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The nearest reals that the integers of the file stand for."""
        steps = self.steps(weight.shape).astype(np.float32)
        integers = np.clip(np.rint(weight / steps), -self.type.qmax, self.type.qmax)
        return np.asarray(integers * steps, np.float32)


@dataclass(frozen=True)
class Plan:
    """What becomes integer, and how.

    ``activations`` holds the parameters of every tensor that will carry Q/DQ, constants of
    elementwise operators among them; ``weights`` those of the weights of ``nodes``.
    """

    nodes: tuple[str, ...]
    float_nodes: tuple[FloatNode, ...]
    activations: dict[str, AffineParameters]
    weights: dict[str, WeightParameters]
    findings: tuple[Finding, ...]


def make_plan(
    model: ir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    exclude: Mapping[str, str],
    *,
    narrow: bool = False,
    precision: Precision = AS_THE_TARGET,
) -> Plan:
    """Choose nodes by the target's operator lists, and parameters by the calibrated ranges.

    ``exclude`` maps names of nodes that stay float to the reason. With ``narrow`` the weights of
    channels that could saturate on x86 without VNNI have fewer steps, until they cannot;
    ``precision`` says which weights and activations have other types than the target's. Raises
    QuantizationError for a name that no node has, and if nothing at all can become integer;
    StaleRecordError if ``ranges`` lack a tensor that is needed.
    """
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    refuse_unknown_nodes(model.graph, exclude, "quantize: exclude")
    reasons = float_reasons(nodes, target, {**_fills_outside(nodes, target, ranges), **exclude})
    chosen = [node for node in nodes if str(node.name) not in reasons]
    if not any(node.op_type in target.integer_ops for node in chosen):
        raise QuantizationError(
            f"no node can become integer on {target.name}",
            where="quantize",
            do="`onnxq inspect MODEL --target T` lists every node with the reason",
        )
    activations = _activation_parameters(chosen, nodes, target, ranges)
    activations = widened(activations, chosen, target, precision.wide)
    weights, findings = _weight_parameters(chosen, target, activations, precision, narrow=narrow)
    return Plan(
        nodes=tuple(str(node.name) for node in chosen),
        float_nodes=tuple(
            FloatNode(node=str(node.name), op_type=node.op_type, reason=reasons[str(node.name)])
            for node in nodes
            if str(node.name) in reasons
        ),
        activations=activations,
        weights=weights,
        findings=(
            *findings,
            *_dead_tensors(activations, ranges),
            *_unpinned_domains(chosen, target, ranges),
        ),
    )


def _fills_outside(
    nodes: Sequence[ir.Node], target: Target, ranges: Mapping[str, TensorRange]
) -> dict[str, str]:
    """Every Pad that fills with what the range of its input does not hold, and that as a reason."""
    found = {}
    for node in nodes:
        fill = pad_fill(node)
        if fill and node.op_type in target.data_ops and node.inputs[0] is not None:
            seen = ranges.get(str(node.inputs[0].name))
            if seen is not None and not seen.range.low <= fill <= seen.range.high:
                reason = f"it fills with {fill:g}, which its input's range does not hold"
                found[str(node.name)] = reason
    return found


# --- activations --------------------------------------------------------------------------------


def _activation_parameters(
    chosen: Sequence[ir.Node],
    nodes: Sequence[ir.Node],
    target: Target,
    ranges: Mapping[str, TensorRange],
) -> dict[str, AffineParameters]:
    roots = roots_of([node for node in nodes if node in chosen], target)
    pinned = _pinned_roots(chosen, target, ranges)
    folds = fold_sources(chosen, target)
    lowest = useful_from(nodes)
    parameters: dict[str, AffineParameters] = {}
    for value in dict.fromkeys(
        value for node in chosen for value in (*data_inputs(node), *node.outputs)
    ):
        name = str(value.name)
        constant = constant_of(value)
        if constant is not None:
            if _is_weight(value, chosen) or constant.dtype != np.float32:
                continue
            range_ = Range.including_zero(float(constant.min()), float(constant.max()))
        elif value.dtype == ir.DataType.FLOAT:
            source = folds.get(name, name)  # before a folded Relu: what comes out of it
            root = roots.get(source, source)
            range_ = _possible(pinned.get(root) or _range_of(root, ranges), root, chosen)
            if root in lowest:
                range_ = range_.clamped(lowest[root], np.inf)
        else:
            continue
        parameters[name] = parameters_of_range(
            range_,
            target.activation_type,
            symmetric=target.activation_symmetric,
            power_of_two=target.power_of_two,
        )
    return parameters


def _range_of(tensor: str, ranges: Mapping[str, TensorRange]) -> Range:
    if tensor not in ranges:
        raise StaleRecordError(
            "calibration has not looked at this tensor: it was made for another target, or with "
            "other nodes excluded",
            where=f"tensor `{tensor}`",
            do="run `onnxq calibrate` again with the same --target and --exclude",
        )
    return ranges[tensor].range


def _pinned_roots(
    chosen: Sequence[ir.Node], target: Target, ranges: Mapping[str, TensorRange]
) -> dict[str, Range]:
    """Range of every tensor whose own values, or all of whose values further on, have a domain.

    A domain behind an operator that keeps only some values (Slice, Split, MaxPool) says nothing of
    the others: it widens the range where it reaches further, and cuts nothing.
    """
    roots = roots_of(chosen, target)
    whole = roots_of([node for node in chosen if node.op_type in _KEEPS_EVERY_VALUE], target)
    pinned: dict[str, Range] = {}
    for name, seen in ranges.items():
        if seen.pinned != DECLARED:
            continue
        root = roots.get(name, name)
        range_ = seen.range
        if whole.get(name, name) != root:
            range_ = range_.union(pinned.get(root) or _range_of(root, ranges))
        elif root in pinned:
            range_ = range_.union(pinned[root])
        pinned[root] = range_
    return pinned


def _unpinned_domains(
    chosen: Sequence[ir.Node], target: Target, ranges: Mapping[str, TensorRange]
) -> list[Finding]:
    """Declared domains that do not decide their tensor's scale, as it is shared with others."""
    roots = roots_of(chosen, target)
    pinned = _pinned_roots(chosen, target, ranges)
    return [
        Finding(
            where=name,
            what=f"its declared domain does not pin its scale: it shares that of `{roots[name]}`, "
            "which holds other values too",
            do="nothing, if that range will do; else give this output an operator of its own",
        )
        for name, seen in ranges.items()
        if seen.pinned == DECLARED and name in roots and pinned[roots[name]] != seen.range
    ]


def _possible(range_: Range, name: str, chosen: Sequence[ir.Node]) -> Range:
    """``range_`` without what a Relu or Clip that makes the tensor can never give."""
    for node in chosen:
        if str(node.outputs[0].name) != name:
            continue
        if node.op_type == "Relu":
            return range_.clamped(0.0, np.inf)
        if node.op_type == "Clip":
            bounds = [constant_of(bound) for bound in node.inputs[1:]]
            low = bounds[0] if bounds and bounds[0] is not None else -np.inf
            high = bounds[1] if len(bounds) > 1 and bounds[1] is not None else np.inf
            return range_.clamped(float(low), float(high))
    return range_


def _is_weight(value: ir.Value, chosen: Sequence[ir.Node]) -> bool:
    return any(
        use.node in chosen and use.node.op_type in WEIGHTED and use.idx == 1 for use in value.uses()
    )


def _dead_tensors(
    activations: Mapping[str, AffineParameters], ranges: Mapping[str, TensorRange]
) -> list[Finding]:
    return [
        Finding(
            where=name,
            what="has an empty range: it was zero on every calibration sample",
            do="calibrate on samples that reach it; it is quantized over [0, 0.0001]",
        )
        for name in activations
        if name in ranges and not ranges[name].range.width
    ]


# --- weights ------------------------------------------------------------------------------------


def _weight_parameters(
    chosen: Sequence[ir.Node],
    target: Target,
    activations: Mapping[str, AffineParameters],
    precision: Precision,
    *,
    narrow: bool,
) -> tuple[dict[str, WeightParameters], list[Finding]]:
    found: dict[str, WeightParameters] = {}
    findings: list[Finding] = []
    for node in chosen:
        weight = constant_of(node.inputs[1]) if node.op_type in WEIGHTED else None
        if weight is None or node.inputs[1] is None:
            continue
        axis, two = _weight_axis(node, weight, target), target.power_of_two
        bits = precision.weights.get(str(node.name))
        kind, stored = (bits.type, bits.stored) if bits else (target.weight_type,) * 2
        rows = rows_of(weight, axis)
        scales = symmetric_weight_scales(rows, 0, kind, power_of_two=two)
        view = precision.view_of(node, weight.shape, axis)
        if view is not None and axis is not None:
            scales = channel_scales(weight, axis, view, narrow=narrow)
            scales = powers_of_two_above(scales).astype(np.float32) if two else scales
        elif kind is IntType.INT4:
            scales = least_error_scales(rows, scales, kind, power_of_two=two)
        bias = constant_input(node, 2)
        input_scale = activations[str(node.inputs[0].name)].scale if node.inputs[0] else 1.0
        if bias is not None:
            scales, widened = _scales_that_hold_bias(scales, bias, input_scale)
            findings += [_widened_finding(node, widened)] if widened else []
            if two:
                scales = powers_of_two_above(scales).astype(np.float32)
        name = str(node.inputs[1].name)
        if name in found:  # its bias too must fit
            scales = np.maximum(scales, found[name].scales)
        if narrow and kind is not IntType.INT4:  # two products of 4 bits always fit into int16
            wide = scales
            scales = narrowed_scales(node, weight, wide, axis, power_of_two=two)
            findings += _narrowed_finding(node, wide, scales)
        blocks = None
        if view is not None and axis is not None:
            blocks = multiplied(weight, axis, view, scales, narrow=narrow)
        found[name] = WeightParameters(axis, scales, kind, stored, blocks)
    return found, findings


def _weight_axis(node: ir.Node, weight: np.ndarray, target: Target) -> int | None:
    """Channel axis of the weight, None where one scale must do for all of it.

    A grouped ConvTranspose holds output channels / groups on its axis, a batched MatMul several
    matrices: neither has one scale for each output channel.
    """
    grouped = node.op_type == "ConvTranspose" and node.attributes.get_int("group", 1) != 1
    batched = node.op_type == "MatMul" and weight.ndim != 2
    if not target.per_channel or grouped or batched:
        return None
    return output_channel_axis(node)


def _scales_that_hold_bias(
    scales: Float[np.ndarray, " channels"], bias: Float[np.ndarray, " outputs"], input_scale: float
) -> tuple[Float[np.ndarray, " channels"], list[int]]:
    """Weight scales large enough for ``bias / (input_scale · scale)`` to fit int32, and which grew.

    Such a channel's weights are so small beside its bias that what they lose is not seen beside it.
    """
    needed = np.abs(bias).astype(np.float64) / (input_scale * (_INT32_MAX // 2))
    if len(scales) == 1:
        needed = needed.max(keepdims=True)
    widened = np.flatnonzero(needed > scales)
    return np.maximum(scales, needed).astype(np.float32), [int(channel) for channel in widened]


def _widened_finding(node: ir.Node, channels: Sequence[int]) -> Finding:
    shown = ", ".join(map(str, channels[:8])) + (", …" if len(channels) > 8 else "")
    return Finding(
        where=f"{node.name}, {len(channels)} output channel(s): {shown}",
        what="the weights are tiny beside the bias: all or most become 0, so that it fits int32",
        do="nothing, if these channels are pruned; they are constant in effect",
    )


def _narrowed_finding(
    node: ir.Node, wide: Float[np.ndarray, " channels"], scales: Float[np.ndarray, " channels"]
) -> list[Finding]:
    steps = 127 * (wide / scales)[scales > wide]
    if not len(steps):
        return []
    return [
        Finding(
            where=f"{node.name}, {len(steps)} of {len(scales)} weight scale(s)",
            what="sums of pairs could saturate on x86 without VNNI: the weights now end at "
            f"{steps.min():.0f} to {steps.max():.0f} steps instead of 127",
            do="nothing; the steps `rounding` and `bias` win back most of what that costs, and "
            "`quantize: {saturation: ignore}` keeps all steps for processors with VNNI",
        )
    ]
