"""Sums and products with constants → one another, and the linear layer before or behind them.

Frameworks that keep a norm as a product and a sum, a division by 6 behind a hard-swish, learned
scales: on integers each would be an operator with a rounding of its own, in a layer it costs
nothing.
"""

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64, Shaped

from onnxq.export.rewrites.edit import add_constant, sole_producer, sole_reader, substitute
from onnxq.export.rewrites.fold_batchnorm import fold_into_next, fold_into_previous
from onnxq.graph import WEIGHTED, constant_of, dims_of

__all__ = ["constant_operand", "divide_by_product", "fold_scales", "merge_scales"]

Array = Shaped[np.ndarray, "..."]
_SUMS, _PRODUCTS = frozenset({"Add", "Sub"}), frozenset({"Mul"})
_LARGEST = 2.0**20  # beyond it a shift divided by a factor would drown what it is added to


def divide_by_product(model: ir.Model) -> int:
    """Div by a constant → Mul by its reciprocal, which has integer kernels everywhere."""
    graph = model.graph
    found = 0
    for node in tuple(graph):
        operand = constant_operand(node) if node.op_type == "Div" else None
        if operand is None or operand[0] is not node.inputs[0]:
            continue
        data, constant = operand
        with np.errstate(divide="ignore", over="ignore"):
            factor = np.asarray(1 / constant, np.float32)
        if np.isfinite(factor).all() and factor.all():
            substitute(graph, node, [ir.node("Mul", [data, add_constant(graph, "factor", factor)])])
            found += 1
    return found


def merge_scales(model: ir.Model) -> int:
    """Sums that follow each other, and products that do, become one."""
    graph = model.graph
    return sum(_merged(graph, node) for node in tuple(graph))


def _merged(graph: ir.Graph, node: ir.Node) -> int:
    kind = _SUMS if node.op_type in _SUMS else _PRODUCTS
    outer = constant_operand(node) if node.op_type in kind else None
    before = sole_producer(outer[0], kind) if outer is not None else None
    inner = constant_operand(before) if before is not None else None
    if outer is None or before is None or inner is None:
        return 0
    data, constant = inner
    if kind is _PRODUCTS:
        merged, op_type = constant * outer[1], "Mul"
    elif _adds(before, data) and _adds(node, outer[0]):
        merged, op_type = _signed(before, constant) + _signed(node, outer[1]), "Add"
    else:
        return 0
    if np.allclose(merged, 1.0 if op_type == "Mul" else 0.0, rtol=1e-6, atol=0):
        new = ir.node("Identity", [data])
    else:
        new = ir.node(
            op_type, [data, add_constant(graph, "merged", np.asarray(merged, np.float32))]
        )
    substitute(graph, node, [new])
    graph.remove(before, safe=True)
    return 1


def _adds(node: ir.Node, data: ir.Value) -> bool:
    """Whether ``data`` counts positive: it is not taken from a constant."""
    return node.op_type == "Add" or data is node.inputs[0]


def _signed(node: ir.Node, constant: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return np.asarray(-constant if node.op_type == "Sub" else constant)


def fold_scales(model: ir.Model) -> int:
    """Fold what adds or multiplies constants, one for all or one a channel, into a linear layer.

    A layer whose weight others share is left alone, as it would need a copy. Before a layer that
    pads with zeros a sum stays; a product before that sum goes into the layer, the sum shrinks.
    """
    graph = model.graph
    return sum(_fold(graph, node) for node in tuple(graph))


def _fold(graph: ir.Graph, node: ir.Node) -> int:
    operand = constant_operand(node)
    affine = None if operand is None else _affine_of(node, *operand)
    if operand is None or affine is None:
        return 0
    data, constant = operand
    layer = sole_producer(data, WEIGHTED)
    if layer is not None and _is_own_weight(layer) and _counts_channels(layer, node):
        return fold_into_previous(graph, node, data, affine)
    layer = sole_reader(node.outputs[0])
    if layer is None or layer.op_type not in WEIGHTED or not _is_own_weight(layer):
        return 0
    if not _counts_channels(layer, node):
        return 0
    return fold_into_next(graph, node, data, affine) or _swapped(graph, node, data, constant)


def _swapped(graph: ir.Graph, node: ir.Node, data: ir.Value, shift: Array) -> int:
    """``c · x + shift`` before a layer → ``x + shift / c``, and ``c`` in the layer's weight."""
    product = sole_producer(data, _PRODUCTS) if node.op_type == "Add" else None
    operand = constant_operand(product) if product is not None else None
    if product is None or operand is None or operand[1].size != 1:
        return 0
    source, factor = operand
    scale = float(factor.reshape(-1)[0])
    if not scale or np.abs(shift / scale).max(initial=0) > _LARGEST:
        return 0
    affine = _affine_of(product, source, factor)
    if affine is None:
        return 0
    shrunk = add_constant(graph, "shift", np.asarray(shift / scale, np.float32))
    added = ir.node("Add", [source, shrunk])
    scaled = ir.node(
        "Mul", [added.outputs[0], add_constant(graph, "factor", np.array(scale, np.float32))]
    )
    substitute(graph, node, [added, scaled])
    graph.remove(product, safe=True)
    return 1


def constant_operand(node: ir.Node) -> tuple[ir.Value, Float64[np.ndarray, "..."]] | None:
    """What is computed and what is constant of an Add, Sub, Mul or Div of float32 that keeps the
    shape of the first; None for any other node."""
    if node.domain or node.op_type not in {"Add", "Sub", "Mul", "Div"} or len(node.inputs) != 2:
        return None
    for data, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        constant = constant_of(other)
        if data is None or constant is None or constant_of(data) is not None:
            continue
        same = dims_of(data) is not None and dims_of(data) == dims_of(node.outputs[0])
        if same and constant.dtype == np.float32 and np.isfinite(constant).all():
            return data, constant.astype(np.float64)
    return None


def _affine_of(
    node: ir.Node, data: ir.Value, constant: Float64[np.ndarray, "..."]
) -> tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]] | None:
    """Factor and shift of each channel (axis 1); None where they are not one a channel."""
    dims = dims_of(data) or ()
    if len(dims) < 2 or dims[1] is None:
        return None
    shape = (1,) * (len(dims) - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    by_channel = np.broadcast_to(constant.reshape(-1), (dims[1],))
    one, none = np.ones(dims[1]), np.zeros(dims[1])
    if node.op_type == "Mul":
        return (by_channel, none) if by_channel.all() else None
    if node.op_type == "Add":
        return one, by_channel
    if node.op_type == "Sub":
        return (one, -by_channel) if data is node.inputs[0] else (-one, by_channel)
    return None


def _is_own_weight(layer: ir.Node) -> bool:
    weight = layer.inputs[1]
    return weight is not None and constant_of(weight) is not None and len(weight.uses()) == 1


def _counts_channels(layer: ir.Node, node: ir.Node) -> bool:
    """Whether axis 1, by which ``node`` is told, is that of the layer's channels."""
    rank = len(dims_of(node.outputs[0]) or ())
    return layer.op_type in {"Conv", "ConvTranspose"} or rank == 2
