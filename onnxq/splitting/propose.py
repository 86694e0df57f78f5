"""Where a graph could be cut so that its parts suit a small device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx

from onnxq.errors import ExportError
from onnxq.graph import WEIGHTED
from onnxq.recipe import SplitSection
from onnxq.splitting.pieces import Pieces
from onnxq.splitting.route import steps_of

__all__ = ["Proposal", "propose"]

_BATCHED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool"})
_INDICES = frozenset({"TopK", "ArgMin", "ArgMax", "NonZero", "NonMaxSuppression", "Unique"})
Nodes = Sequence[onnx.NodeProto]


@dataclass(frozen=True)
class Proposal:
    """A way to cut a graph, and what for."""

    reason: str
    split: SplitSection


def propose(model: onnx.ModelProto) -> tuple[Proposal, ...]:
    """Cuts of the canonical graph ``model``, each checked to be runnable; none if it is simple.

    Looked for are a body that runs on many rows with the same weights (it becomes a part that runs
    once a row), heads behind a common trunk, and the computation of indices, which hosts do better.
    """
    graph = Pieces(model)
    found: list[Proposal] = []
    for search in (_batched_body, _heads, _indices):
        proposal = search(graph)
        if proposal is None:
            continue
        try:
            steps_of(model, proposal.split.parts)
        except ExportError:  # the cut would leave computing nodes outside of all parts
            continue
        found.append(proposal)
    return tuple(found)


def _batched_body(graph: Pieces) -> Proposal | None:
    """The nodes that run on a batch of more rows than the graph's inputs have."""

    def rows(node: onnx.NodeProto) -> int:
        shape = graph.shapes.get(node.input[0], ()) if node.input else ()
        return shape[0] if node.op_type in _BATCHED and shape else 1

    given = {graph.shapes[name][0] for name in graph.inputs if graph.shapes.get(name)}
    counts = {rows(node) for node in graph.nodes if node.op_type in WEIGHTED} - given - {1}
    if len(counts) != 1:
        return None
    count = counts.pop()
    members = {index for index, node in enumerate(graph.nodes) if rows(node) == count}
    first, last = min(members), max(members)

    def keeps_rows(index: int) -> bool:
        node = graph.nodes[index]
        names = (*graph.data(node), *node.output)
        return all(graph.shapes.get(name, (0,))[:1] == (count,) for name in names)

    body = {index for index in range(first, last + 1) if keeps_rows(index)} | members
    after = graph.behind(body)
    before = graph.before([n for index in body for n in graph.data(graph.nodes[index])]) - body
    split = graph.split(
        {"Before": before, "Body": body, "After": after}, each_row=frozenset({"Body"})
    )
    if split is None:
        return None
    reason = f"the same weights run on {count} rows: a part with a batch of 1 runs {count} times"
    return Proposal(reason, split)


def _heads(graph: Pieces) -> Proposal | None:
    """What every output needs is the trunk; what one alone needs is its head."""
    if len(graph.outputs) < 2:
        return None
    needed = {name: graph.before([name]) for name in graph.outputs}
    trunk = set.intersection(*needed.values())
    heads = {f"Head{i + 1}": numbers - trunk for i, numbers in enumerate(needed.values())}
    weighted: Callable[[set[int]], bool] = lambda numbers: any(  # noqa: E731 - used three times
        graph.nodes[index].op_type in WEIGHTED for index in numbers
    )
    together = sum(len(numbers) for numbers in heads.values())
    apart = len(set().union(*heads.values())) == together
    if not (weighted(trunk) and apart and all(map(weighted, heads.values()))):
        return None
    split = graph.split({"Trunk": trunk, **heads})
    reason = f"{len(heads)} outputs have heads of their own behind a common trunk"
    return None if split is None else Proposal(reason, split)


def _indices(graph: Pieces) -> Proposal | None:
    """The computation of indices: float work that no NPU does, and that needs exact numbers."""
    makers = [i for i, node in enumerate(graph.nodes) if node.op_type in _INDICES]
    if not makers:
        return None
    outputs = [name for index in makers for name in graph.nodes[index].output if name]
    geometry = graph.before(outputs)
    if any(graph.has_weight(graph.nodes[index]) for index in geometry):
        return None
    rest = set(range(len(graph.nodes))) - geometry
    split = graph.split({"Geometry": geometry, "Network": rest})
    kinds = ", ".join(sorted({graph.nodes[index].op_type for index in makers}))
    reason = f"{kinds} compute indices in float: the host does it, the network takes the indices"
    return None if split is None else Proposal(reason, split)
