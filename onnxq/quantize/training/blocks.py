"""Blocks, found from the graph: stretches of nodes that are joined by few tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.placement import fold_sources
from onnxq.quantize.draft import Draft

__all__ = ["Block", "blocks_of"]

_MOST_LAYERS = 8  # of a stretch that is taken whole though tensors go past it inside


@dataclass(frozen=True)
class Block:
    """Nodes that follow one another in the graph, with at least one weight among them.

    ``inputs`` and ``outputs`` are tensors of the float graph that cross its ends, constants apart.
    """

    nodes: tuple[str, ...]
    layers: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def blocks_of(draft: Draft, at_least: int = 3) -> tuple[Block, ...]:
    """The graph in blocks of ``at_least`` layers (nodes with a planned weight), in order.

    A block ends where one tensor alone goes on, so that a residual branch and what it goes around
    lie in one block; where there is no such place for eight layers, as between the skips of a
    UNet, it ends with several. Only tensors that carry Q/DQ end a block, never one between an
    operator and what is folded into it. What follows the last layer belongs to the last block.
    With ``at_least`` 1, every layer is a block of its own wherever such a place lies behind it.
    """
    nodes = tuple(draft.graph.graph)
    spans = _spans(nodes, draft, at_least)
    return tuple(_block(nodes[start:stop], draft) for start, stop in spans)


def _spans(nodes: Sequence[ir.Node], draft: Draft, at_least: int) -> list[tuple[int, int]]:
    alive = _alive_behind(nodes)
    able = _able_to_end(nodes, draft)
    spans: list[tuple[int, int]] = []
    start = layers = 0
    for index, node in enumerate(nodes):
        layers += _is_layer(node, draft)
        behind = alive[index]
        own = [name for name in behind if _made_in(name, nodes[start : index + 1])]
        is_end = len(behind) == 1 or layers >= _MOST_LAYERS or (at_least == 1 and len(own) == 1)
        if layers >= at_least and is_end and own and able.issuperset(own):
            spans.append((start, index + 1))
            start, layers = index + 1, 0
    if start < len(nodes):
        if layers or not spans:
            spans.append((start, len(nodes)))
        else:
            spans[-1] = (spans[-1][0], len(nodes))
    return [span for span in spans if any(_is_layer(node, draft) for node in nodes[slice(*span)])]


def _is_layer(node: ir.Node, draft: Draft) -> bool:
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    is_planned = weight is not None and str(weight.name) in draft.plan.weights
    return is_planned and str(node.name) in draft.plan.nodes


def _able_to_end(nodes: Sequence[ir.Node], draft: Draft) -> set[str]:
    chosen = [node for node in nodes if str(node.name) in draft.plan.nodes]
    return draft.plan.activations.keys() - fold_sources(chosen, draft.target).keys()


def _alive_behind(nodes: Sequence[ir.Node]) -> list[list[str]]:
    """For each node the tensors that were there when it had run and are needed later."""
    last: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for value in node.inputs:
            if value is not None and not _is_constant(value):
                last[str(value.name)] = index
    for node in nodes:
        for value in node.outputs:
            if value.is_graph_output():
                last[str(value.name)] = len(nodes)
    seen: list[str] = []
    alive = []
    for index, node in enumerate(nodes):
        met = [str(v.name) for v in (*node.inputs, *node.outputs) if v and not _is_constant(v)]
        seen = [name for name in dict.fromkeys([*seen, *met]) if last.get(name, -1) > index]
        alive.append(seen)
    return alive


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _made_in(name: str, nodes: Sequence[ir.Node]) -> bool:
    return any(str(value.name) == name for node in nodes for value in node.outputs)


def _block(nodes: Sequence[ir.Node], draft: Draft) -> Block:
    made = {str(value.name): value for node in nodes for value in node.outputs}
    inside = set(nodes)
    outputs = [
        name
        for name, value in made.items()
        if value.is_graph_output() or any(use.node not in inside for use in value.uses())
    ]
    taken = [v for node in nodes for v in node.inputs if v is not None and not _is_constant(v)]
    inputs = dict.fromkeys(str(v.name) for v in taken if str(v.name) not in made)
    return Block(
        nodes=tuple(str(node.name) for node in nodes),
        layers=tuple(str(node.name) for node in nodes if _is_layer(node, draft)),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
    )
