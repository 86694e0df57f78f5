"""Outputs of a model on an emulated processor, and its nodes taken apart, each fed on its own."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Shaped

from tools.emulation.commands import call
from tools.emulation.guests import Guest

__all__ = ["apart", "outputs_on"]

Array = Shaped[np.ndarray, "..."]
_SCRIPT = Path(__file__).with_name("run_model.py")
_FOLDED, _DQ = {"Relu", "Clip"}, "DequantizeLinear"


def outputs_on(
    guest: Guest,
    model: Path,
    rows: Mapping[str, Shaped[np.ndarray, "rows ..."]],
    entries: Sequence[str] = (),
) -> dict[str, Shaped[np.ndarray, "rows ..."]]:
    """Outputs of ``model`` on ``guest``, fully optimized, for every row of inputs.

    Raises EmulationError if the guest fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "inputs.npz", Path(folder) / "outputs.npz"
        np.savez(given, allow_pickle=False, **dict(rows))
        files = [str(path) for path in (_SCRIPT, model.resolve(), given, made)]
        command = [*guest.command, *files, *entries]
        call(command, f"run {model.name} on {guest.cpu}", environment=guest.environment)
        with np.load(made, allow_pickle=False) as archive:
            names = archive["names"].tolist()
            return {name: archive[str(place)] for place, name in enumerate(names)}


def apart(model: onnx.ModelProto, nodes: Sequence[str]) -> onnx.ModelProto:
    """The named nodes of a Q/DQ graph side by side, each between its own Q/DQ pairs.

    The input of a node is called as the node; it is what goes into the Q before it (the integers,
    where they are a graph input). Its output, called as the node with ``.out`` behind, is what the
    DQ behind it gives, or its own result where there is none.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    wanted = {node.name: node for node in model.graph.node if node.name in set(nodes)}
    types = {
        value.name: value
        for value in (*model.graph.input, *model.graph.value_info, *model.graph.output)
    }
    graph = onnx.GraphProto(name="apart")
    for name in nodes:
        chain, entry = _before(wanted[name], makers)
        behind, exit_ = _behind(wanted[name], users)
        renamed = {entry: name, exit_: f"{name}.out"}
        graph.node.extend(_copied([*chain, wanted[name], *behind], renamed, name))
        for old, new, values in ((entry, name, graph.input), (exit_, f"{name}.out", graph.output)):
            value = onnx.ValueInfoProto()
            value.CopyFrom(types[old])
            value.name = new
            values.append(value)
    used = {name for node in graph.node for name in node.input}
    graph.initializer.extend(t for t in model.graph.initializer if t.name in used)
    found = onnx.helper.make_model(graph, ir_version=model.ir_version)
    del found.opset_import[:]
    found.opset_import.extend(model.opset_import)
    return found


def _before(
    node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]
) -> tuple[list[onnx.NodeProto], str]:
    """Q and DQ of the data, DQ of weight and bias; the tensor that the first of them reads."""
    data = makers[node.input[0]]
    q = makers.get(data.input[0])
    chain = [data] if q is None else [q, data]
    for name in node.input[1:]:
        steps: list[onnx.NodeProto] = []
        while (maker := makers.get(steps[-1].input[0] if steps else name)) is not None:
            steps.append(maker)
        chain += reversed(steps)
    return chain, chain[0].input[0]


def _behind(
    node: onnx.NodeProto, users: Mapping[str, Sequence[onnx.NodeProto]]
) -> tuple[list[onnx.NodeProto], str]:
    """What is folded into the Q behind, that Q and its DQ; the tensor that comes out."""
    chain: list[onnx.NodeProto] = []
    end = node.output[0]
    while [user.op_type for user in users.get(end, ())] in ([kind] for kind in sorted(_FOLDED)):
        chain.append(users[end][0])
        end = chain[-1].output[0]
    following = users.get(end, ())
    if len(following) != 1 or following[0].op_type != "QuantizeLinear":
        return [], node.output[0]
    back = [user for user in users.get(following[0].output[0], ()) if user.op_type == _DQ]
    return [*chain, following[0], *back[:1]], (back or following)[0].output[0]


def _copied(
    nodes: Sequence[onnx.NodeProto], renamed: Mapping[str, str], prefix: str
) -> list[onnx.NodeProto]:
    """Copies whose tensors belong to them alone; initializers keep their names."""
    own = {name: f"{prefix}/{name}" for node in nodes for name in node.output} | dict(renamed)
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = node.name if node.name == prefix else f"{prefix}/{node.name}"
        copy.input[:] = [own.get(name, name) for name in node.input]
        copy.output[:] = [own.get(name, name) for name in node.output]
        copies.append(copy)
    return copies
