"""Samples stream through a graph; every float tensor gets a summary."""

from collections.abc import Sequence

import numpy as np
import onnx

from onnxq.artifacts import ValueFacts
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.statistics import Summary
from onnxq.errors import DataError
from onnxq.progress import Progress, silent
from onnxq.runtime import Session, with_outputs

__all__ = ["collect", "float_tensors"]


def float_tensors(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of all float32 tensors that are computed at run time, graph inputs first."""
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    computed = [
        name for node in model.graph.node if node.op_type != "Constant" for name in node.output
    ]
    return tuple(n for n in (*inputs, *computed) if types.get(n) == onnx.TensorProto.FLOAT)


def collect(
    model: onnx.ModelProto,
    reader: SampleReader,
    inputs: Sequence[ValueFacts],
    progress: Progress = silent,
) -> dict[str, Summary]:
    """One summary for every float tensor, over all samples of ``reader``; memory does not grow.

    Raises DataError that names tensor, producing node and sample if an activation is not finite.
    """
    input_names = {value.name for value in inputs}
    tensors = float_tensors(model)
    computed = [name for name in tensors if name not in input_names]
    session = Session(with_outputs(model, computed).SerializeToString(), optimization="none")
    producers = {output: node for node in model.graph.node for output in node.output}
    summaries = {name: Summary.empty() for name in tensors}
    steps = progress(range(len(reader)), "calibrating", len(reader))
    for index in steps:
        row = reader.get_next()
        if row is None:
            break
        for name, values in (row | session.run(row)).items():
            if name not in summaries:
                continue
            if not np.isfinite(values).all():
                node = producers[name]
                raise DataError(
                    f"{node.op_type} `{node.name}` computes {_first_bad(values)} in float",
                    where=f"sample {reader.number(index)}, tensor `{name}`",
                    do="look at that sample; the FP32 model itself overflows on it",
                )
            summaries[name].add(values)
    return summaries


def _first_bad(values: np.ndarray) -> float:
    return float(values[~np.isfinite(values)][0])
