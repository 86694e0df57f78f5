"""The refine step ``bias``: what quantization adds to a channel on average is taken off again."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Float64, Int64

from onnxq.graph import constant_of, output_channel_axis
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.measuring import measuring_session
from onnxq.quantize.unshare import unused_name
from onnxq.runtime import in_parallel, with_outputs

__all__ = ["correct_biases"]

MOST_ROUNDS = 64  # passes of the samples through the quantized graph
_BIASED = frozenset({"Conv", "ConvTranspose", "Gemm"})
_INT32 = np.iinfo(np.int32)
_MEAN = ".mean of channels"


@dataclass(frozen=True)
class _Layer:
    """A node with an int32 bias: the tensors that it makes, its bias and that one's steps."""

    node: str
    fp32: str
    int8: str
    bias: str
    scales: Float64[np.ndarray, " #channels"]
    is_spatial: bool


def correct_biases(draft: Draft, evidence: Evidence) -> tuple[Draft, str]:
    """The draft with biases that make every channel's mean that of FP32, and what was done.

    Layer by layer along the graph, on the quantized graph as corrected so far: the mean of FP32
    before activation minus that of INT8, over samples, batch and space, is rounded to whole steps
    of the int32 bias. It is kept in the channels where, on the runs held back, it makes the squared
    error smaller. Layers that do not depend on one another are measured in one pass; a graph deeper
    than 64 layers is done in 64 rounds, so that the samples pass once through the FP32 graph and at
    most 64 times through the beginning of the quantized one. A Conv, ConvTranspose or Gemm without
    bias gets one; a MatMul has none and is left alone. Memory: running sums alone.
    Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2 and appendix D, the empirical form.
    """
    graph = draft.copy()
    _give_biases(graph, draft.plan.nodes)
    biased = replace(draft, graph=graph)
    model = biased.quantized()
    layers = _layers(model, evidence.original, _constant_biases(graph))
    if not layers:
        return draft, "no layer has an int32 bias"
    exact = _channel_means(
        evidence.original, {layer.fp32: layer.is_spatial for layer in layers}, evidence, "FP32"
    )
    rounds = _rounds(evidence.original, layers)
    kept, total = 0, 0
    moved: dict[str, Int64[np.ndarray, " channels"]] = {}
    for number, together in enumerate(rounds, 1):
        tensors = {layer.int8: layer.is_spatial for layer in together}
        seen = _channel_means(model, tensors, evidence, f"INT8, {number} of {len(rounds)}")
        for layer in together:
            steps = _steps(exact[layer.fp32] - seen[layer.int8], layer.scales)
            steps = _add(model, layer.bias, steps)
            kept, total = kept + int(np.count_nonzero(steps)), total + len(steps)
            moved[layer.node] = steps
    _write_biases(graph, model, layers, moved)
    what = f"{kept} of {total} channels of {len(layers)} layers, in {len(rounds)} passes"
    return biased, what


def _give_biases(model: ir.Model, chosen: Sequence[str]) -> None:
    """A bias of zeros for every chosen node that could have one and has none."""
    for node in model.graph:
        weight = constant_of(node.inputs[1]) if node.op_type in _BIASED else None
        has = len(node.inputs) > 2 and node.inputs[2] is not None
        if weight is None or has or str(node.name) not in chosen:
            continue
        groups = node.attributes.get_int("group", 1) if node.op_type == "ConvTranspose" else 1
        outputs = weight.shape[output_channel_axis(node)] * groups
        value = ir.Value(name=unused_name(model, f"{node.name}.bias"))
        value.const_value = ir.tensor(np.zeros(outputs, np.float32), name=value.name)
        value.shape, value.dtype = ir.Shape([outputs]), ir.DataType.FLOAT
        model.graph.register_initializer(value)
        node.resize_inputs(max(len(node.inputs), 3))
        node.replace_input_with(2, value)


def _constant_biases(model: ir.Model) -> set[str]:
    """Nodes whose bias is an initializer of their own."""
    return {
        str(node.name)
        for node in model.graph
        if node.op_type in _BIASED and len(node.inputs) > 2 and node.inputs[2] is not None
        if node.inputs[2].is_initializer() and len(node.inputs[2].uses()) == 1
    }


def _layers(
    model: onnx.ModelProto, original: onnx.ModelProto, able: Collection[str]
) -> list[_Layer]:
    """Those of the ``able`` nodes whose bias is int32 in the Q/DQ ``model``, in its order."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    exact = {node.name: node.output[0] for node in original.graph.node}
    found = []
    for node in model.graph.node:
        read = makers.get(node.input[2]) if node.name in able else None
        if read is None or read.op_type != "DequantizeLinear" or read.input[0] not in arrays:
            continue
        if arrays[read.input[0]].data_type == onnx.TensorProto.INT32:
            scale = onnx.numpy_helper.to_array(arrays[read.input[1]]).astype(np.float64)
            found.append(
                _Layer(
                    node=node.name,
                    fp32=exact[node.name],
                    int8=node.output[0],
                    bias=read.input[0],
                    scales=scale.reshape(-1),
                    is_spatial=node.op_type != "Gemm",
                )
            )
    return found


def _rounds(original: onnx.ModelProto, layers: Sequence[_Layer]) -> list[list[_Layer]]:
    """Layers in the order that they are corrected; those of one round are measured together.

    A round is one depth, counted in layers from the inputs, so that no layer of it sees another;
    beyond 64 depths, neighbouring ones are joined.
    """
    by_tensor = {layer.fp32: layer for layer in layers}
    depths: dict[str, int] = {}
    found: dict[int, list[_Layer]] = {}
    for node in original.graph.node:
        depth = max((depths.get(name, 0) for name in node.input), default=0)
        layer = by_tensor.get(node.output[0])
        if layer is not None:
            found.setdefault(depth, []).append(layer)
        depths |= dict.fromkeys(node.output, depth + (layer is not None))
    joined = np.array_split(np.array(sorted(found)), min(len(found), MOST_ROUNDS) or 1)
    return [
        [layer for depth in part.tolist() for layer in found[depth]] for part in joined if len(part)
    ]


def _channel_means(
    model: onnx.ModelProto, tensors: Mapping[str, bool], evidence: Evidence, what: str
) -> dict[str, Float64[np.ndarray, "2 channels"]]:
    """For each tensor (name → whether it has space) the channels' means over the runs to measure
    on, and over those held back. Only what the tensors need is run."""
    probe = with_outputs(model, [f"{name}{_MEAN}" for name in tensors])
    for name, is_spatial in tensors.items():
        op_type = "GlobalAveragePool" if is_spatial else "Identity"
        probe.graph.node.append(onnx.helper.make_node(op_type, [name], [f"{name}{_MEAN}"]))
    session = measuring_session(probe)

    def means(index: int) -> dict[str, Float64[np.ndarray, " channels"]]:
        found = session.run(evidence.run(index))
        return {
            name: found[f"{name}{_MEAN}"].astype(np.float64).mean(0).reshape(-1) for name in tensors
        }

    sums: dict[str, Float64[np.ndarray, "2 channels"]] = {}
    runs = in_parallel(means, len(evidence))
    for index, found in enumerate(
        evidence.progress(runs, f"means of channels, {what},", len(evidence))
    ):
        for name, mean in found.items():
            sums.setdefault(name, np.zeros((2, len(mean))))[int(evidence.is_held_back[index])] += (
                mean
            )
    held = int(evidence.is_held_back.sum())
    counts = np.array([[len(evidence) - held], [held]])
    return {name: total / counts for name, total in sums.items()}


def _steps(
    errors: Float64[np.ndarray, "2 channels"], scales: Float64[np.ndarray, " #channels"]
) -> Int64[np.ndarray, " channels"]:
    """The error of the mean in whole steps, 0 where it makes the held-back error no smaller."""
    steps = np.rint(errors[0] / scales)
    helps = np.abs(errors[1] - steps * scales) < np.abs(errors[1])
    return np.where(helps & np.isfinite(steps), steps, 0).astype(np.int64)


def _add(
    model: onnx.ModelProto, bias: str, steps: Int64[np.ndarray, " channels"]
) -> Int64[np.ndarray, " channels"]:
    """Add ``steps`` to the int32 constant; what was added: nothing where int32 would end."""
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == bias)
    integers = onnx.numpy_helper.to_array(tensor).astype(np.int64)
    fits = (integers + steps >= _INT32.min) & (integers + steps <= _INT32.max)
    added = np.where(fits, steps, 0)
    tensor.CopyFrom(onnx.numpy_helper.from_array((integers + added).astype(np.int32), bias))
    return added


def _write_biases(
    graph: ir.Model,
    model: onnx.ModelProto,
    layers: Sequence[_Layer],
    moved: Mapping[str, Int64[np.ndarray, " channels"]],
) -> None:
    """Give the float graph the biases that round to the integers of ``model``."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {str(node.name): node for node in graph.graph}
    for layer in layers:
        node = nodes[layer.node]
        value = node.inputs[2]
        old = constant_of(value)
        if old is None or value is None or not moved[layer.node].any():
            continue
        integers = onnx.numpy_helper.to_array(arrays[layer.bias]).astype(np.float64)
        changed = np.where(moved[layer.node] != 0, integers * layer.scales, old)
        value.const_value = ir.tensor(changed.astype(np.float32), name=value.name)
