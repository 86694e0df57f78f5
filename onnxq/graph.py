"""The ONNX graph: loading, saving, and the questions every stage asks of it."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from jaxtyping import Shaped

from onnxq.artifacts import ValueFacts
from onnxq.errors import AlreadyQuantizedError, ModelError
from onnxq.shapes import infer_shapes
from onnxq.store import atomic_file

__all__ = [
    "MADE_UP_STAMP",
    "VIEWS",
    "WEIGHTED",
    "constant_input",
    "constant_of",
    "constants_of",
    "cut_to",
    "dims_of",
    "input_channel_axis",
    "is_quantized_form",
    "load_graph",
    "load_model",
    "macs_of",
    "newer_opset",
    "output_channel_axis",
    "parameter_count",
    "refuse_inner_graphs",
    "refuse_quantized",
    "refuse_uncanonical",
    "save_model",
    "shapes_of",
    "values_of",
    "with_batch_of_one",
]

EXTERNAL_DATA_BYTES = 1_500_000_000  # protobuf stops at 2 GB; leave room for the graph itself
OLDEST_OPSET = 13  # DequantizeLinear has an axis from here on
MADE_UP_STAMP = "onnxq.unverified"  # metadata key of a model calibrated on random numbers
WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})  # another shape, the same order
_QUANTIZED = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger",
        "DynamicQuantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat", "MatMulInteger16", "QAttention", "QEmbedLayerNormalization",
        "QGemm", "QMoE", "QOrderedAttention", "QOrderedGelu", "QOrderedLayerNormalization",
        "QOrderedLongformerAttention", "QOrderedMatMul", "QuantizeBFP", "DequantizeBFP",
        "QuantizeWithOrder", "DequantizeWithOrder", "MatMulNBits", "MatMulBnb4",
        "GatherBlockQuantized",
    }
)  # fmt: skip

_INNER_GRAPHS = frozenset({onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS})


def load_model(path: Path) -> onnx.ModelProto:
    """Read an ``.onnx`` file with inferred shapes.

    Raises ModelError if the file is missing, truncated, foreign, or no valid ONNX graph.
    """
    if not path.is_file():
        raise ModelError("no such model file", where=str(path), do="check the path")
    try:
        model = onnx.load(path)
        if not model.graph.node and not model.opset_import:
            raise ModelError("is no ONNX model", where=str(path), do="give an .onnx file")
        onnx.checker.check_model(str(path))
        return infer_shapes(model, str(path))
    except (
        DecodeError,
        UnicodeDecodeError,  # names that are no text
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as fault:
        raise ModelError(
            f"is damaged or no ONNX model: {str(fault).strip().splitlines()[0]}",
            where=str(path),
            do="export or copy it again; an .onnx.data file beside it must come along",
        ) from fault
    except FileNotFoundError as fault:
        raise ModelError(
            f"its external data are missing: {fault}",
            where=str(path),
            do="copy the .data file beside the .onnx file",
        ) from fault


def load_graph(path: Path) -> ir.Model:
    """Like ``load_model``, as onnx_ir's graph type."""
    return ir.from_proto(load_model(path))


def with_batch_of_one(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose free first dimensions of inputs are 1, with all shapes that follow from that."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name for tensor in copy.graph.initializer}
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in constants and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = 1
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, data_prop=True)


def newer_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The graph at ``opset`` by onnx's own converter, as it is if it is at that or a later one.

    Raises ModelError if the converter cannot.
    """
    present = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if present and present[0] >= opset:
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as fault:  # the converter raises RuntimeError and onnx's own errors
        raise ModelError(
            f"cannot be brought from opset {present} to {opset}: "
            f"{str(fault).strip().splitlines()[0]}",
            where="model",
            do=f"export it at opset {opset}",
        ) from fault


def shapes_of(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors whose every dimension is known, a free first dimension taken as 1."""
    graph = with_batch_of_one(model).graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims):
            found[value.name] = tuple(dim.dim_value for dim in dims)
    return found


def cut_to(model: onnx.ModelProto) -> onnx.ModelProto:
    """Take out, in place, every node and initializer that the graph's outputs do not need."""
    producers = {name: node for node in model.graph.node for name in node.output}
    needed = {value.name for value in model.graph.output}
    waiting = list(needed)
    while waiting:
        node = producers.get(waiting.pop())
        fresh = set(node.input) - needed if node is not None else set()
        needed |= fresh
        waiting += fresh
    kept = [node for node in model.graph.node if needed & set(node.output)]
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    for field, values in ((model.graph.node, kept), (model.graph.initializer, constants)):
        if len(values) < len(field):
            copies = [type(value).FromString(value.SerializeToString()) for value in values]
            del field[:]
            field.extend(copies)
    return model


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write atomically; weights go to an external file beside it past 1.5 GB."""
    with atomic_file(path) as temporary:
        if model.ByteSize() < EXTERNAL_DATA_BYTES:
            temporary.write_bytes(model.SerializeToString(deterministic=True))
        else:
            data, copy = path.with_suffix(".onnx.data"), onnx.ModelProto()
            copy.CopyFrom(model)  # what is saved so is left without its weights
            onnx.save_model(copy, str(temporary), save_as_external_data=True, location=data.name)
            temporary.with_name(data.name).replace(data)


def values_of(
    model: onnx.ModelProto, domains: Mapping[str, tuple[float, float] | None] | None = None
) -> tuple[tuple[ValueFacts, ...], tuple[ValueFacts, ...]]:
    """Facts of the graph's inputs (initializers left out) and outputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    domains = domains or {}

    def facts(values: Iterable[onnx.ValueInfoProto]) -> tuple[ValueFacts, ...]:
        return tuple(
            ValueFacts(
                name=value.name,
                dtype=str(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)),
                shape=tuple(
                    dim.dim_param or "?" if not dim.HasField("dim_value") else dim.dim_value
                    for dim in value.type.tensor_type.shape.dim
                ),
                domain=domains.get(value.name),
            )
            for value in values
            if value.name not in constants
        )

    return facts(model.graph.input), facts(model.graph.output)


def is_quantized_form(op_type: str) -> bool:
    """Whether the operator belongs to a quantized graph, in Q/DQ or any other form."""
    return op_type in _QUANTIZED or op_type.startswith("QLinear")


def refuse_quantized(model: onnx.ModelProto, where: str) -> None:
    """Raise AlreadyQuantizedError if the graph holds quantized operators, in whatever form."""
    found = [node for node in model.graph.node if is_quantized_form(node.op_type)]
    if found:
        raise AlreadyQuantizedError(
            f"is quantized already: {len(found)} nodes, first {found[0].op_type} `{found[0].name}`",
            where=where,
            do="give the FP32 model it was made from",
        )


def refuse_inner_graphs(model: onnx.ModelProto, where: str) -> None:
    """Raise ModelError if a node (If, Loop, Scan) holds a graph of its own."""
    for node in model.graph.node:
        if any(attribute.type in _INNER_GRAPHS for attribute in node.attribute):
            what = f"the node `{node.name}` ({node.op_type}) holds a graph inside it"
            do = "export what lies inside the loop or branch as a model of its own"
            raise ModelError(what, where=where, do=do)


def refuse_uncanonical(model: onnx.ModelProto, where: str) -> None:
    """Raise ModelError unless the graph has the form that ``export`` gives it.

    That is: opset 13 or later (below, DequantizeLinear has no axis), no graph inside a node, and a
    name of its own for every node.
    """
    do = "run `onnxq export` on it first"
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version < OLDEST_OPSET:
            what = f"has opset {entry.version}, weights per channel need {OLDEST_OPSET}"
            raise ModelError(what, where=where, do=do)
    refuse_inner_graphs(model, where)
    names: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in names:
            what = f"two nodes are called `{node.name}`" if node.name else "a node has no name"
            raise ModelError(f"{what} (one is {node.op_type})", where=where, do=do)
        names.add(node.name)


def constant_of(value: ir.Value | None) -> Shaped[np.ndarray, "..."] | None:
    """The array of an initializer or Constant, None for anything computed at run time."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()


def constant_input(node: ir.Node, index: int) -> Shaped[np.ndarray, "..."] | None:
    """The constant at an input of a node; None if it is left out or computed at run time."""
    return constant_of(node.inputs[index]) if index < len(node.inputs) else None


def dims_of(value: ir.Value | None) -> tuple[int | None, ...] | None:
    """Shape with None for every free dimension; None if not even the rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else None for dim in value.shape)


def constants_of(model: onnx.ModelProto) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Arrays of all initializers, and of Constant nodes that hold a tensor, by name.

    Raises ModelError for one whose values are not as many as its shape says.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensors[node.output[0]] = node.attribute[0].t
    return {name: _array_of(tensor, name) for name, tensor in tensors.items()}


def _array_of(tensor: onnx.TensorProto, name: str) -> Shaped[np.ndarray, "..."]:
    try:
        return onnx.numpy_helper.to_array(tensor)
    except ValueError as fault:
        raise ModelError(
            f"is damaged: {fault}", where=f"constant `{name}`", do="export the model again"
        ) from fault


def output_channel_axis(node: ir.Node) -> int:
    """Axis of the weight (input 1) that runs over the consumer's output channels.

    Conv 0, ConvTranspose 1, Gemm 0 if transB else 1, MatMul last.
    """
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if node.attributes.get_int("transB", 0) else 1
        case "MatMul":
            weight = node.inputs[1]
            return len(weight.shape) - 1 if weight is not None and weight.shape is not None else -1
    raise ValueError(f"{node.op_type} has no weight")


def input_channel_axis(node: ir.Node) -> int:
    """Axis of the data (input 0) that runs over the channels which the node's weight multiplies.

    Conv and ConvTranspose 1, Gemm 0 if transA else 1, MatMul last (−1). Raises ValueError for a
    node without weight.
    """
    match node.op_type:
        case "Conv" | "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if node.attributes.get_int("transA", 0) else 1
        case "MatMul":
            return -1
    raise ValueError(f"{node.op_type} has no weight")


def parameter_count(model: onnx.ModelProto) -> int:
    """Elements of all floating-point initializers."""
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE}
    return sum(
        int(np.prod(tensor.dims, dtype=np.int64))
        for tensor in model.graph.initializer
        if tensor.data_type in floating
    )


def macs_of(node: ir.Node) -> int:
    """Multiply-accumulates of one Conv, ConvTranspose, Gemm or MatMul; 0 for any other operator.

    Counted as output elements × products summed into each; a free dimension counts as 1, so that
    ``with_batch_of_one`` comes first.
    """
    if node.op_type not in WEIGHTED or node.inputs[1] is None:
        return 0
    output, data, weight = _dims(node.outputs[0]), _dims(node.inputs[0]), _dims(node.inputs[1])
    match node.op_type:
        case "Conv":
            return _product(output) * _product(weight[1:])
        case "ConvTranspose":
            return _product(data) * _product(weight[1:])
        case "Gemm":
            return _product(output) * data[0 if node.attributes.get_int("transA", 0) else 1]
    return _product(output) * (data[-1] if data else 1)


def _dims(value: ir.Value | None) -> list[int]:
    return [1 if dim is None else dim for dim in dims_of(value) or ()]


def _product(dims: Iterable[int]) -> int:
    return int(np.prod(list(dims), dtype=np.int64))
