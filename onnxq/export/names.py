"""Short, stable names: what a person reads in every report, and what a small file can afford."""

from collections import Counter
from collections.abc import Iterator, Mapping

import onnx

__all__ = ["canonical_names"]

_PARAMETERS = {1: "weight", 2: "bias"}
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def canonical_names(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose nodes are called ``conv_1``, ``conv_2``, ``gemm_1`` in the graph's order.

    A tensor is called like the node that makes it (``split_1.2`` where it makes several), a
    constant after the first node that reads it and its place there: ``conv_1.weight``,
    ``reshape_1.shape``. Inputs and outputs of the graph keep their names.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    kept = {value.name for value in (*graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    names = {name: name for name in kept}
    for node, node_name in zip(graph.node, _node_names(copy, kept), strict=True):
        node.name = node_name
        for index, value in enumerate(node.output):
            suffix = f".{index + 1}" if len(node.output) > 1 else ""
            names.setdefault(value, node_name + suffix)
        for value, role in _roles(node, copy):
            if value in constants and value not in names:
                names[value] = _unused(f"{node_name}.{role}", set(names.values()))
    _rename(graph, names)
    return copy


def _node_names(model: onnx.ModelProto, taken: set[str]) -> Iterator[str]:
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        kind = node.op_type.lower()
        counts[kind] += 1
        while f"{kind}_{counts[kind]}" in taken:
            counts[kind] += 1
        yield f"{kind}_{counts[kind]}"


def _roles(node: onnx.NodeProto, model: onnx.ModelProto) -> Iterator[tuple[str, str]]:
    """Every input of a node with the name of its place."""
    formal = _formal_inputs(node, model)
    for index, value in enumerate(node.input):
        if node.op_type in _LAYERS and index in _PARAMETERS:
            yield value, _PARAMETERS[index]
        elif index < len(formal):
            yield value, formal[index].lower()
        else:
            yield value, str(index + 1)


def _formal_inputs(node: onnx.NodeProto, model: onnx.ModelProto) -> list[str]:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:
        return []
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    return [value.name for value in schema.inputs if value.option != variadic]


def _unused(name: str, taken: set[str]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}.{number}"
    return unique


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    for node in graph.node:
        node.input[:] = [names.get(value, value) for value in node.input]
        node.output[:] = [names.get(value, value) for value in node.output]
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
