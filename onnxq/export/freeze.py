"""Free dimensions of a graph that comes as a file: declared ones are set, others are refused."""

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Literal

import onnx

from onnxq.errors import ModelError, nearest
from onnxq.recipe import ValueSection
from onnxq.shapes import infer_shapes

__all__ = ["freeze", "refuse_branches", "refuse_half"]

_MOST_INPUT_ELEMENTS, _MOST_ELEMENTS = 2**28, 2**30  # 1 GiB and 4 GiB of float32
_BRANCHES = frozenset({"If", "SequenceMap"})  # loops are unrolled, where they can be


def refuse_branches(model: onnx.ModelProto, where: str) -> None:
    """Raise ModelError if a node holds a graph that may not run: no stage looks inside one."""
    for node in model.graph.node:
        if node.op_type in _BRANCHES:
            raise ModelError(
                f"the node `{node.name}` ({node.op_type}) holds a graph inside it",
                where=where,
                do="export what lies inside the branch as a model of its own",
            )


def refuse_half(model: onnx.ModelProto, where: str) -> None:
    """Raise ModelError if the graph computes in half precision: its rounding is not FP32's."""
    half = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    found = [value.name for value in values if value.type.tensor_type.elem_type in half]
    found += [tensor.name for tensor in model.graph.initializer if tensor.data_type in half]
    if found:
        raise ModelError(
            f"is a half-precision graph: {len(found)} tensors such as `{found[0]}` are float16",
            where=where,
            do="export it as float32; INT8 is made from the model as it was trained",
        )


def freeze(
    model: onnx.ModelProto, declared: Sequence[ValueSection], batch: Literal["one", "free"]
) -> onnx.ModelProto:
    """A copy in which only the batch is free, and not even that if ``batch`` is ``one``.

    A free dimension takes the size that the recipe declares for it. Raises ModelError for one that
    stays free, for a declared name or shape that the graph does not have, and for sizes that no
    tensor can have.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name for tensor in copy.graph.initializer}
    inputs = {value.name: value for value in copy.graph.input if value.name not in constants}
    sizes = _declared_sizes(inputs, declared)
    symbols: dict[str, int] = {}
    for name, value in inputs.items():
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                size = sizes.get((name, axis))
                if axis == 0:
                    size = 1 if batch == "one" else None
                    _set_or_name(dim, size, symbols, "batch")
                elif size is not None:
                    _set_or_name(dim, size, symbols, "")
    _refuse_free(inputs.values())
    _resolve(copy, symbols, batch)
    shaped = infer_shapes(copy, "model")
    fed = [value for value in shaped.graph.input if value.name in inputs]
    _refuse_impossible(fed, _MOST_INPUT_ELEMENTS, least=1)
    _refuse_impossible((*shaped.graph.value_info, *shaped.graph.output), _MOST_ELEMENTS, least=0)
    return shaped


def _set_or_name(
    dim: onnx.TensorShapeProto.Dimension, size: int | None, symbols: dict[str, int], name: str
) -> None:
    """Give a free dimension its size, or its name; remember what its old name now stands for."""
    if size is None:
        dim.dim_param = dim.dim_param or name
        return
    if dim.dim_param:
        symbols[dim.dim_param] = size
    dim.dim_value = size


def _declared_sizes(
    inputs: Mapping[str, onnx.ValueInfoProto], declared: Sequence[ValueSection]
) -> dict[tuple[str, int], int]:
    sizes = {}
    for section in declared:
        if section.name not in inputs:
            raise ModelError(
                f"the model has no input `{section.name}`; {nearest(section.name, inputs)}",
                where="export.inputs",
            )
        dims = inputs[section.name].type.tensor_type.shape.dim
        for axis, size in enumerate(section.shape or ()):
            fixed = axis < len(dims) and dims[axis].HasField("dim_value")
            if len(section.shape or ()) != len(dims) or (fixed and dims[axis].dim_value != size):
                found = [dim.dim_value or dim.dim_param or "?" for dim in dims]
                raise ModelError(
                    f"`{section.name}` has shape {found}, and the recipe says "
                    f"{list(section.shape or ())}",
                    where="export.inputs",
                    do="correct the recipe, or export the model for that shape",
                )
            sizes[section.name, axis] = size
    return sizes


def _refuse_free(inputs: Iterable[onnx.ValueInfoProto]) -> None:
    free = [
        f"`{dim.dim_param or '?'}` (axis {axis} of `{value.name}`)"
        for value in inputs
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if axis and not dim.HasField("dim_value")
    ]
    if free:
        raise ModelError(
            "these dimensions are free: " + ", ".join(free),
            where="model",
            do="declare the input's `shape` in the recipe's export section: `inputs`",
        )


def _refuse_impossible(values: Iterable[onnx.ValueInfoProto], most: int, least: int) -> None:
    for value in values:
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim if d.HasField("dim_value")]
        if min(shape, default=least) < least or prod(shape) > most:
            raise ModelError(
                f"`{value.name}` has shape {shape}: {least} to {most:,} elements are possible",
                where="model",
                do="correct the shape; the file may be damaged",
            )


def _resolve(
    model: onnx.ModelProto, symbols: Mapping[str, int], batch: Literal["one", "free"]
) -> None:
    """Put the sizes into the outputs too, and forget every shape that was inferred before."""
    del model.graph.value_info[:]
    for value in model.graph.output:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
            elif axis == 0 and batch == "one" and not dim.HasField("dim_value"):
                dim.Clear()
