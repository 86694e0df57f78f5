"""The graph that calibration runs: cut to what is looked at, reduced inside where that will do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from onnxq.graph import cut_to

__all__ = ["EXTREMES", "Outputs", "values_graphs", "with_reductions"]

EXTREMES = ("low", "high", "size")
_REDUCTIONS = {"low": "ReduceMin", "high": "ReduceMax", "sum": "ReduceSum", "size": "Size"}
_AXES_AS_INPUT = 18  # opset from which ReduceMin and ReduceMax take their axes as an input


@dataclass(frozen=True)
class Outputs:
    """What the outputs of an instrumented graph are.

    ``values`` come out whole. Of the tensors ``reduced`` the EXTREMES come out, called
    ``<tensor>/<which>``; of those that have ``channels``, ``<tensor>/channel_low`` and
    ``…/channel_high`` too. Of the ``probed`` comes ``<tensor>/sum``: it is not finite where a value
    is not, or where finite values overflow it.
    """

    values: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    probed: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()


def with_reductions(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    probed: Sequence[str],
    axes: Mapping[str, tuple[int, ...]],
) -> tuple[onnx.ModelProto, Outputs]:
    """Smallest and largest value and size of ``tensors``, computed inside the graph; and smallest
    and largest value over ``axes``, of tensors that have some."""
    wanted = [(tensor, kind) for tensor in tensors for kind in EXTREMES]
    wanted += [(tensor, "sum") for tensor in probed]
    graph = _reduced(model, wanted, ())
    for tensor, over in axes.items():
        _add_channels(graph, tensor, over)
    return graph, Outputs(reduced=tuple(tensors), probed=tuple(probed), channels=tuple(axes))


def values_graphs(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    probed: Sequence[str],
    sizes: Mapping[str, int],
    budget_bytes: int,
) -> Iterator[tuple[onnx.ModelProto, Outputs]]:
    """Graphs that between them give out ``tensors`` whole, each at most ``budget_bytes`` a run.

    ``sizes`` are bytes a run. Each graph is cut to what its tensors need; the last one, which needs
    most, carries the probes. A tensor larger than the budget has a graph of its own. Graph inputs
    are left out: they are known.
    """
    inputs = {value.name for value in model.graph.input}
    groups: list[list[str]] = [[]]
    used = 0
    for tensor in tensors:
        if tensor in inputs:
            continue
        if groups[-1] and used + sizes[tensor] > budget_bytes:
            groups.append([])
            used = 0
        groups[-1].append(tensor)
        used += sizes[tensor]
    for number, group in enumerate(groups, start=1):
        sums = tuple(probed) if number == len(groups) else ()
        if group or sums:  # else inputs alone are looked at
            graph = _reduced(model, [(tensor, "sum") for tensor in sums], group)
            yield graph, Outputs(values=tuple(group), probed=sums)


def _reduced(
    model: onnx.ModelProto, reductions: Sequence[tuple[str, str]], values: Sequence[str]
) -> onnx.ModelProto:
    """A copy that gives out ``values`` whole, and reductions of tensors.

    A reduction stands right behind the node that makes its tensor: run in the order of the graph,
    no activation is held for it.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name: value for value in (*model.graph.output, *model.graph.value_info)}
    outputs = [known[name] for name in values]
    behind: dict[str, list[onnx.NodeProto]] = {}
    for tensor, kind in reductions:
        name = f"{tensor}/{kind}"
        type_ = TensorProto.INT64 if kind == "size" else TensorProto.FLOAT
        outputs.append(helper.make_tensor_value_info(name, type_, ()))
        node = helper.make_node(_REDUCTIONS[kind], [tensor], [name], name=name)
        if kind != "size":
            node.attribute.append(helper.make_attribute("keepdims", 0))
        behind.setdefault(tensor, []).append(node)
    nodes = [node for value in model.graph.input for node in behind.get(value.name, ())]
    for node in model.graph.node:
        nodes += [node, *(extra for name in node.output for extra in behind.get(name, ()))]
    del copy.graph.output[:], copy.graph.node[:]
    copy.graph.output.extend(outputs)
    copy.graph.node.extend(nodes)
    return cut_to(copy)


def _add_channels(model: onnx.ModelProto, tensor: str, over: tuple[int, ...]) -> None:
    """Add two reductions over axes ``over``, right behind the node that makes the tensor."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    makers = [n for n, node in enumerate(model.graph.node) if tensor in node.output]
    place = makers[0] + 1 if makers else 0
    for kind in ("low", "high"):
        name = f"{tensor}/channel_{kind}"
        node = helper.make_node(_REDUCTIONS[kind], [tensor], [name], name=name, keepdims=0)
        if opset < _AXES_AS_INPUT:
            node.attribute.append(helper.make_attribute("axes", over))
        else:
            axes = helper.make_tensor(f"{name}/axes", TensorProto.INT64, [len(over)], over)
            model.graph.initializer.append(axes)
            node.input.append(axes.name)
        model.graph.node.insert(place, node)
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
