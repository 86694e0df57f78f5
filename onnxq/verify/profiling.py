"""Where the time of a quantized file goes: ONNX Runtime's profile, in shares of the whole."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.artifacts import NodeTime, OperatorTime, TimeLedger
from onnxq.graph import load_model
from onnxq.runtime import NodeTimes, Profile, executed_operators, profiles
from onnxq.verify.fusion import executed, numbered, numbers_of

__all__ = ["time_ledger", "without_qdq"]

_UNFUSED = {"session.disable_quant_qdq": "1"}
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_LAYOUT = frozenset({"ReorderInput", "ReorderOutput"})
_INSERTED_TRANSPOSE = "Transpose"  # how ONNX Runtime begins the names of those that it inserts


def time_ledger(
    path: Path,
    rows: Sequence[Mapping[str, Shaped[np.ndarray, "..."]]],
    config: Mapping[str, str],
    *,
    rounds: int = 5,
    made_up_data: bool = False,
) -> TimeLedger:
    """Median times of operators and nodes on ``rows``, as shares; one thread.

    The same file with fusion switched off, and with its Q and DQ taken out, run in turns with it.
    Raises RuntimeFailureError.
    """
    model = load_model(path)
    with numbered(model) as copy, numbered(without_qdq(model)) as float_copy:
        off = {**config, **_UNFUSED}
        files = ((copy, config), (copy, off), (float_copy, off))
        fused, unfused, floating = profiles(files, rows, rounds)
        found = executed(model, executed_operators(copy, config))
    times = [(node, float(np.median(node.microseconds))) for node in fused.nodes]
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
        to_unfused=_ratio(fused, unfused),
        to_float=_ratio(fused, floating),
        runs=len(fused.microseconds),
        made_up_data=made_up_data,
    )


def _group(node: NodeTimes, runs: str, *, inserted: bool) -> str:
    if node.op_type in _QDQ:
        return "quantizing"
    if node.op_type in _LAYOUT or (inserted and node.op_type == _INSERTED_TRANSPOSE):
        return "layout"
    return "float" if runs == "float" else "integer"


def _ratio(one: Profile, other: Profile) -> float:
    return float(np.median(one.microseconds) / np.median(other.microseconds))


def without_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """The FP32 twin of a Q/DQ file: nothing is quantized at run time, and constants are those that
    the file's integers stand for."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # of types that are gone
    integers = {v.name: v.type.tensor_type.elem_type for v in copy.graph.output}
    kinds = {tensor.name: tensor.data_type for tensor in copy.graph.initializer}
    computed = {v.name for v in copy.graph.input} - kinds.keys()
    for node in copy.graph.node:
        if not computed & set(node.input):
            continue
        computed |= set(node.output)
        if node.op_type in _QDQ:
            real = kinds.get(node.input[1], onnx.TensorProto.FLOAT)
            to = integers.get(node.output[0], real)
            cast = onnx.helper.make_node("Cast", node.input[:1], node.output, node.name, to=to)
            node.CopyFrom(cast)
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
