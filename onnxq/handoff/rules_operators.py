"""Rules about single operators: what stays float, constant operands, forms of Resize, Slice, …"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from onnxq.graph import VIEWS, constant_input, constant_of, dims_of
from onnxq.handoff.subject import (
    FLOATS,
    Fault,
    Subject,
    at_node,
    at_value,
    float_sides,
    is_constant,
    label_of,
    size_bytes,
)
from onnxq.qdq import DEQUANTIZE, QUANTIZE, dequantizer, quantized_type
from onnxq.target import TargetRule

__all__ = [
    "batch_axis_untouched",
    "clip_bounds",
    "constant_divisor",
    "constant_gemm_bias",
    "constant_minus_value",
    "constant_second_operand",
    "large_float_outputs",
    "no_allowzero",
    "no_float_islands",
    "no_view_before_activation",
    "pad_value",
    "pool_windows",
    "reduce_form",
    "resize_form",
    "slice_bounds",
    "wide_weights_signed",
]


def wide_weights_signed(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No operator has int8 activations and an int8 weight of a magnitude above ``limit``."""
    for use in subject.constants:
        data = dequantizer(use.consumer.inputs[0])
        integers = constant_of(use.dequantize.inputs[0])
        if (
            use.role != "weight"
            or data is None
            or integers is None
            or (quantized_type(data), quantized_type(use.dequantize)) != ("int8", "int8")
        ):
            continue
        widest = int(np.abs(integers.astype(np.int64)).max(initial=0))
        if rule.limit is not None and widest > rule.limit:
            yield at_node(use.consumer, f"has int8 activations and a weight of magnitude {widest}")


def no_float_islands(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Operators that the target computes on integers take their data from DQ and give it to Q.

    A folded operator (Relu, Clip) may stand between an operator and its Q.
    """
    target = subject.target
    tier = {*target.integer_ops, *target.data_ops, *target.folded_ops}
    for node in subject.nodes:
        sides = float_sides(node, target) if node.op_type in tier else ()
        if sides:
            yield at_node(node, "is a float island: " + ", ".join(sides))


def no_view_before_activation(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Between an operator in ``values`` and the Relu or Clip behind it lies no view."""
    for node in subject.of_type("Relu", "Clip"):
        views = []
        maker = _maker(node)
        while maker is not None and maker.op_type in VIEWS:
            views.append(maker)
            maker = _maker(maker)
        if views and maker is not None and maker.op_type in rule.values:
            yield at_node(views[-1], f"lies between {label_of(maker)} and {label_of(node)}")


def _maker(node: ir.Node) -> ir.Node | None:
    """What computes the node's first input, Q and DQ left out."""
    maker = node.inputs[0].producer() if node.inputs[0] is not None else None
    while maker is not None and maker.op_type in (QUANTIZE, DEQUANTIZE):
        maker = maker.inputs[0].producer() if maker.inputs[0] is not None else None
    return maker


def constant_second_operand(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Input 1 of MatMul and Gemm is a constant."""
    for node in subject.of_type("MatMul", "Gemm"):
        if not is_constant(node.inputs[1]):
            yield at_node(node, "multiplies two values that are computed at run time")


def constant_gemm_bias(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Input 2 of Gemm is a constant with one axis."""
    for node in subject.of_type("Gemm"):
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is None:
            continue
        if not is_constant(bias):
            yield at_node(node, f"adds `{bias.name}`, computed at run time")
        elif len(dims_of(bias) or ()) > 1:
            yield at_node(node, f"adds a matrix of {list(dims_of(bias) or ())}")


def constant_minus_value(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No Sub takes a value away from a constant."""
    for node in subject.of_type("Sub"):
        if is_constant(node.inputs[0]):
            yield at_node(node, "takes a value away from a constant")


def constant_divisor(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every Div divides by a constant."""
    for node in subject.of_type("Div"):
        if not is_constant(node.inputs[1]):
            yield at_node(node, "divides by a value that is computed at run time")


def resize_form(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Resize is nearest, asymmetric, floor, with constant scales."""
    wanted = {
        "mode": ("nearest", "nearest"),
        "coordinate_transformation_mode": ("half_pixel", "asymmetric"),
        "nearest_mode": ("round_prefer_floor", "floor"),
    }
    for node in subject.of_type("Resize"):
        found = {
            key: node.attributes.get_string(key, default) for key, (default, _) in wanted.items()
        }
        faults = [f"{key}={found[key]}" for key, (_, good) in wanted.items() if found[key] != good]
        scales = constant_input(node, 2)
        if scales is None or not scales.size:
            faults.append("no constant scales")
        if faults:
            yield at_node(node, "has " + ", ".join(faults))


def reduce_form(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """ReduceMean and ReduceMax run over the right-most axes, all but the first two."""
    for node in subject.of_type("ReduceMean", "ReduceMax"):
        dims = dims_of(node.inputs[0])
        if dims is None:
            continue
        axes = sorted(axis % len(dims) for axis in _axes(node, 1, len(dims)))
        if axes != list(range(2, len(dims))):
            yield at_node(node, f"reduces axes {axes} of {len(dims)}")


def pool_windows(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every side of a pool's window is a product of numbers up to ``limit``; in 1-D, 7 will do."""
    for node in subject.of_type("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"):
        window = list(node.attributes.get_ints("kernel_shape", ()))
        if node.op_type.startswith("Global"):
            window = [dim for dim in (dims_of(node.inputs[0]) or ())[2:] if dim is not None]
        sides = [side for side in window if side > 1]
        if sides == [7]:
            continue
        if not all(_factors(side, rule.limit or 1) for side in sides):
            yield at_node(node, f"has a window of {' x '.join(map(str, window))}")


def _factors(side: int, largest: int) -> bool:
    for factor in range(2, largest + 1):
        while side % factor == 0:
            side //= factor
    return side == 1


def slice_bounds(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Starts and ends of Slice are constants in [0, dimension], steps positive."""
    for node in subject.of_type("Slice"):
        bounds = [constant_of(value) for value in node.inputs[1:3]]
        starts, ends = bounds if len(bounds) == 2 else (None, None)
        dims = dims_of(node.inputs[0])
        if starts is None or ends is None:
            yield at_node(node, "has bounds that are computed at run time")
            continue
        axes = _axes(node, 3, len(starts))
        for start, end, axis in zip(starts.tolist(), ends.tolist(), axes, strict=True):
            dim = dims[axis] if dims is not None else None
            if start < 0 or end < 0 or (dim is not None and max(start, end) > dim):
                yield at_node(node, f"cuts [{start}:{end}] of axis {axis} with {dim} rows")


def batch_axis_untouched(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Slice and Gather of a computed value leave axis 0 alone; a Slice cuts ``limit`` axes."""
    for node in subject.of_type("Slice", "Gather"):
        dims = dims_of(node.inputs[0]) or ()
        if is_constant(node.inputs[0]) or not dims:
            continue
        if node.op_type == "Gather":
            axes: Sequence[int] = [node.attributes.get_int("axis", 0)]
        else:
            starts = dims_of(node.inputs[1]) or (0,)
            axes = _axes(node, 3, starts[0] or 0)
        if 0 in [axis % len(dims) for axis in axes]:
            yield at_node(node, "cuts the batch axis")
        if rule.limit is not None and len(axes) > rule.limit:
            yield at_node(node, f"cuts {len(axes)} axes")


def _axes(node: ir.Node, index: int, count: int) -> Sequence[int]:
    """Axes from input ``index`` or the attribute; all of ``count`` where neither is given."""
    given = constant_input(node, index)
    if given is not None:
        return [int(axis) for axis in given.reshape(-1)]
    return list(node.attributes.get_ints("axes", ())) or list(range(count))


def pad_value(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The third input of Pad is not there, or a constant; an empty name stands for neither."""
    for node in subject.of_type("Pad"):
        if len(node.inputs) < 3:
            continue
        if node.inputs[2] is None:
            yield at_node(node, "has an empty third input")
        elif not is_constant(node.inputs[2]):
            yield at_node(node, "pads with a value that is computed at run time")


def clip_bounds(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The bounds of Clip are constants, without Q/DQ."""
    for node in subject.of_type("Clip"):
        for value in node.inputs[1:]:
            if value is not None and constant_of(value) is None:
                yield at_node(node, f"has the bound `{value.name}`, no plain constant")


def no_allowzero(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No Reshape has ``allowzero=1``."""
    for node in subject.of_type("Reshape"):
        if node.attributes.get_int("allowzero", 0):
            yield at_node(node, "has allowzero=1")


def large_float_outputs(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """A graph output that no DequantizeLinear makes has at most ``limit`` bytes."""
    for value in subject.model.graph.outputs:
        node, size = value.producer(), size_bytes(value)
        made_by_dq = node is not None and node.op_type == DEQUANTIZE
        if value.dtype in FLOATS and not made_by_dq and size and size > (rule.limit or 0):
            yield at_value(value, f"is {size} bytes from a float operator")
