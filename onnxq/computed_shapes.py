"""Shapes that a graph computes from constants, as ``torch`` writes for a padding or an attention.

ONNX's own shape inference follows such a chain of nodes only through some operators.
"""

from collections.abc import Mapping

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx.reference import ReferenceEvaluator

from onnxq.errors import ModelError
from onnxq.graph import constants_of, with_batch_of_one

__all__ = ["with_computed_shapes"]

_OF_SHAPES = frozenset(
    {
        "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Gather", "Max",
        "Min", "Mod", "Mul", "Range", "Reshape", "Shape", "Size", "Slice", "Squeeze", "Sub",
        "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip
_LARGEST = 1024  # numbers in one constant: shapes and paddings are far smaller
_MOST_ROUNDS = 16  # a shape that follows from one that was computed needs another round


def with_computed_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with all shapes for a batch of one, also those that constants decide; the nodes stay.

    Raises ModelError if a node cannot be computed from its constants.
    """
    whole = with_batch_of_one(model)
    folded = onnx.ModelProto()
    folded.CopyFrom(whole)
    for _ in range(_MOST_ROUNDS):
        if not _has_open_shapes(folded) or not _fold(folded):
            break
        del folded.graph.value_info[:]
        folded = onnx.shape_inference.infer_shapes(folded, data_prop=True)
    known = {value.name: value for value in (*folded.graph.value_info, *folded.graph.output)}
    own = {value.name for value in whole.graph.value_info}
    for value in (*whole.graph.value_info, *whole.graph.output):
        if value.name in known:
            value.CopyFrom(known[value.name])
    ends = {value.name for value in whole.graph.output}
    whole.graph.value_info.extend(v for name, v in known.items() if name not in own | ends)
    return whole


def _has_open_shapes(model: onnx.ModelProto) -> bool:
    shapes = _shapes(model)
    return any(
        name and shapes.get(name) is None for node in model.graph.node for name in node.output
    )


def _shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...] | None]:
    """Shapes of values; None where a dimension is open."""
    graph = model.graph
    found: dict[str, tuple[int, ...] | None] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        known = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
        found[value.name] = tuple(dim.dim_value for dim in kind.shape.dim) if known else None
    return found


def _fold(model: onnx.ModelProto) -> bool:
    """Replace, in place, nodes of constants by what they give; whether there was any."""
    graph, shapes = model.graph, _shapes(model)
    constants = {name: array for name, array in constants_of(model).items() if _is_small(array)}
    ends = {value.name for value in graph.output}
    gone = []
    for node in graph.node:
        if node.op_type not in _OF_SHAPES or node.domain or node.output[0] in ends:
            continue
        array = _value_of(node, model, constants, shapes)
        if array is not None and _is_small(array):
            constants[node.output[0]] = array
            graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
            gone.append(node)
    for node in gone:
        graph.node.remove(node)
    return bool(gone)


def _value_of(
    node: onnx.NodeProto,
    model: onnx.ModelProto,
    constants: Mapping[str, Shaped[np.ndarray, "..."]],
    shapes: Mapping[str, tuple[int, ...] | None],
) -> Shaped[np.ndarray, "..."] | None:
    """What the node gives; None if that is not known before a run."""
    shape = shapes.get(node.input[0]) if node.op_type in ("Shape", "Size") else None
    given = {name: constants[name] for name in node.input if name in constants}
    if shape is not None:
        given = {node.input[0]: np.broadcast_to(np.float32(0), shape)}
    if any(name and name not in given for name in node.input):
        return None
    if node.op_type in ("ConstantOfShape", "Expand"):
        sides = given[node.input[-1]]
        if np.prod(np.abs(sides), dtype=np.float64) > _LARGEST:
            return None
    inputs = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in given]
    output = onnx.helper.make_value_info(node.output[0], onnx.TypeProto())
    graph = onnx.helper.make_graph([node], "one", inputs, [output])
    one = onnx.helper.make_model(graph, opset_imports=model.opset_import)
    try:
        (array,) = ReferenceEvaluator(one).run(None, given)
    except (ValueError, IndexError, TypeError, RuntimeError) as fault:
        raise ModelError(
            f"cannot be computed: {fault}",
            where=f"{node.op_type} `{node.name or node.output[0]}`",
            do="run the model in ONNX Runtime, and export it again",
        ) from fault
    return np.asarray(array)


def _is_small(array: Shaped[np.ndarray, "..."]) -> bool:
    return array.size <= _LARGEST
