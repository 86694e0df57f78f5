"""Where the time of a quantized file goes: ONNX Runtime's profile, in shares of the whole."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.artifacts import NodeTime, OperatorTime, TimeLedger
from onnxq.graph import constants_of, load_model
from onnxq.qdq import QDQ
from onnxq.runtime import NodeTimes, executed_operators, latencies, profile
from onnxq.verify.fusion import executed, numbered, numbers_of

__all__ = ["time_ledger", "without_qdq"]

_UNFUSED = {"session.disable_quant_qdq": "1"}
_MAY_HOLD_RELU = frozenset({"Add", "Conv", "ConvTranspose", "Gemm", "MatMul"})
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})
_INSERTED_TRANSPOSE = "Transpose"  # how ONNX Runtime begins the names of those that it inserts


def time_ledger(
    path: Path,
    rows: Sequence[Mapping[str, Shaped[np.ndarray, "..."]]],
    config: Mapping[str, str],
    *,
    fp32: Path | None = None,
    rounds: int = 5,
    made_up_data: bool = False,
) -> TimeLedger:
    """Median times of operators and nodes on ``rows``, as shares; one thread.

    In turns with it, without the profiler, which costs time itself: the same file with fusion
    switched off, and ``fp32``, or if there is none its twin without Q and DQ. Raises
    RuntimeFailureError.
    """
    model = load_model(path)
    off = {**config, **_UNFUSED}
    with numbered(model) as copy, numbered(without_qdq(model)) as twin:
        nodes = profile(copy, config, rows, rounds)
        found = executed(model, executed_operators(copy, config))
        files = ((copy, config), (copy, off), (fp32, config) if fp32 else (twin, off))
        seconds = np.median(latencies(files, rows, rounds), axis=1)
    times = [(node, float(np.median(node.microseconds))) for node in nodes]
    whole = sum(time for _, time in times)
    groups: dict[str, float] = defaultdict(float)
    operators: dict[str, list[float]] = defaultdict(list)
    named = _Names(model)
    for node, time in times:
        numbers = named.numbers(node)
        runs = found[numbers[0]].runs if numbers else "float"
        groups[_group(node, runs, inserted=not numbers)] += time / whole
        operators[node.op_type].append(time / whole)
    return TimeLedger(
        operators=tuple(
            OperatorTime(operator=kind, count=len(shares), share=sum(shares))
            for kind, shares in sorted(operators.items(), key=lambda item: -sum(item[1]))
        ),
        nodes=tuple(
            NodeTime(node=named.of(node), executed_as=node.op_type, share=time / whole)
            for node, time in sorted(times, key=lambda item: -item[1])
        ),
        integer=groups["integer"],
        floating=groups["float"],
        quantizing=groups["quantizing"],
        layout=groups["layout"],
        to_unfused=float(seconds[0] / seconds[1]),
        to_float=float(seconds[0] / seconds[2]),
        float_is_twin=fp32 is None,
        runs=rounds * len(rows),
        made_up_data=made_up_data,
    )


def _group(node: NodeTimes, runs: str, *, inserted: bool) -> str:
    if node.op_type in QDQ:
        return "quantizing"
    if node.op_type in _LAYOUT or (inserted and node.op_type == _INSERTED_TRANSPOSE):
        return "layout"
    return "float" if runs == "float" else "integer"


def without_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 twin of a Q/DQ file: nothing is quantized at run time, and constants are those that
    the file's integers stand for. Where a Q cuts the output of an operator at zero, a Relu does."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # of types that are gone
    integers = {v.name: v.type.tensor_type.elem_type for v in copy.graph.output}
    kinds = {tensor.name: tensor.data_type for tensor in copy.graph.initializer}
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    constants = constants_of(model)
    computed = {v.name for v in copy.graph.input} - kinds.keys()
    for node in copy.graph.node:
        if not computed & set(node.input):
            continue
        computed |= set(node.output)
        if node.op_type not in QDQ:
            continue
        real = kinds.get(node.input[1], onnx.TensorProto.FLOAT)
        to = integers.get(node.output[0], real)
        replaced = onnx.helper.make_node("Cast", node.input[:1], node.output, node.name, to=to)
        zero_point = constants.get((*node.input, "", "")[2])
        at_zero = zero_point is not None and np.all(zero_point == np.iinfo(zero_point.dtype).min)
        if at_zero and to == real and makers.get(node.input[0]) in _MAY_HOLD_RELU:
            replaced = onnx.helper.make_node("Relu", node.input[:1], node.output, node.name)
        node.CopyFrom(replaced)
    return copy


class _Names:
    """From the names of executed nodes to those of the file."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._nodes = model.graph.node
        self._blocked = {f"{n.output[0]}_nchwc": i for i, n in enumerate(self._nodes)}

    def numbers(self, node: NodeTimes) -> list[int]:
        """Numbers of the nodes of the file that an executed one was made from."""
        return numbers_of(node.name, self._blocked)

    def of(self, node: NodeTimes) -> str:
        """What a person would look for in the file."""
        numbers = self.numbers(node)
        if not numbers:
            return f"(inserted) {node.name}"
        first = self._nodes[numbers[0]]
        return str(first.name or first.output[0])
