"""Distance of every quantized tensor from its FP32 original, on real samples."""

from collections.abc import Sequence
from pathlib import Path

import onnx

from onnxq.artifacts import LayerDistance
from onnxq.graph import load_model
from onnxq.progress import Progress, silent
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.runtime import Session, in_parallel, with_outputs
from onnxq.samples import Samples
from onnxq.verify.distances import Distance

__all__ = ["layer_distances", "quantized_tensors"]


def quantized_tensors(int8: onnx.ModelProto, fp32: onnx.ModelProto) -> dict[str, str]:
    """FP32 tensor → the tensor of the Q/DQ graph that holds its dequantized form."""
    known = {name for node in fp32.graph.node for name in node.output}
    known |= {value.name for value in fp32.graph.input}
    consumers = {node.input[0]: node for node in int8.graph.node if node.op_type == DEQUANTIZE}
    found: dict[str, str] = {}
    for node in int8.graph.node:
        if node.op_type != QUANTIZE or node.output[0] not in consumers:
            continue
        dequantized = consumers[node.output[0]].output[0]
        original = dequantized if dequantized in known else node.input[0]
        if original in known:
            found[original] = dequantized
    return found


def layer_distances(
    fp32_paths: Sequence[Path], int8_path: Path, samples: Samples, progress: Progress = silent
) -> tuple[LayerDistance, ...]:
    """Distances of all quantized tensors, worst SQNR first.

    Of several forms of the FP32 graph the one is taken that shares most tensor names with the INT8
    file: the canonical one, or the original if another quantizer made the file.

    Both files are run as their graphs say (no optimization), because a fused operator has no inner
    tensor to look at; the distance of a tensor therefore holds the error of everything before it.
    """
    int8 = load_model(int8_path)
    forms = [load_model(path) for path in fp32_paths]
    fp32 = max(forms, key=lambda form: len(quantized_tensors(int8, form)))
    pairs = quantized_tensors(int8, fp32)
    inputs = {value.name for value in fp32.graph.input}
    computed = [name for name in pairs if name not in inputs]
    reference = Session(with_outputs(fp32, computed).SerializeToString(), optimization="none")
    quantized = Session(
        with_outputs(int8, list(pairs.values())).SerializeToString(), optimization="none"
    )

    def distances_of(index: int) -> dict[str, Distance]:
        row = samples.row(index)
        wanted, got = row | reference.run(row), quantized.run(row)
        return {name: Distance.between(wanted[name], got[pairs[name]]) for name in pairs}

    distances = {name: Distance() for name in pairs}
    found = in_parallel(distances_of, len(samples))
    for result in progress(found, "comparing tensors", len(samples)):
        for name, distance in result.items():
            distances[name] += distance
    makers = {output: node for node in fp32.graph.node for output in node.output}
    rows = [_row(name, makers.get(name), distance) for name, distance in distances.items()]
    return tuple(sorted(rows, key=lambda row: row.sqnr_db))


def _row(tensor: str, maker: onnx.NodeProto | None, distance: Distance) -> LayerDistance:
    return LayerDistance(
        tensor=tensor,
        node=maker.name if maker else "graph input",
        op_type=maker.op_type if maker else "Input",
        **distance.figures,
    )
