"""Trial graphs: a draft's Q/DQ form with Q/DQ of some layers switched on, and all others off."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.errors import QuantizationError
from onnxq.graph import constant_of, cut_to, macs_of
from onnxq.placement import fold_sources, roots_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.quantize.draft import Draft
from onnxq.quantize.qdq import insert_qdq

__all__ = ["Layer", "TrialGraphs"]

Array = Shaped[np.ndarray, "..."]
_INPUT = "Input"


@dataclass(frozen=True)
class Layer:
    """A node with its constants and the tensors that share its output's scale, or a graph input.

    ``op_type`` is ``Input`` for that. ``weights`` counts the elements of its quantized constants.
    """

    name: str
    op_type: str
    has_weights: bool
    has_activations: bool
    weights: int
    macs: int


class TrialGraphs:
    """Every graph that a choice of layers gives; ``layers`` are in the order of the graph.

    With all switched on a trial computes what the shipped file says, to the last bit: a Relu or
    Clip that the file folds into the Q behind it is kept, as it would be missing where that Q is
    off, and before it the values are rounded to the same grid.
    """

    def __init__(self, draft: Draft, exact: ir.Model) -> None:
        """``exact`` is the draft's graph with FP32's own constants."""
        keeping = draft.target.model_copy(update={"activation_symmetric": True})
        self._full = insert_qdq(ir.to_proto(draft.graph), draft.plan, keeping)
        self._pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)  # DQ output, tensor
        self._constants: dict[str, list[tuple[str, Array]]] = defaultdict(list)
        owners = _owners(exact, draft)
        makers = {name: node for node in self._full.graph.node for name in node.output}
        for node in self._full.graph.node:
            if node.op_type != DEQUANTIZE:
                continue
            source = makers.get(node.input[0])
            if source is not None and source.op_type == QUANTIZE:
                tensor = source.input[0]
                owner = owners[tensor if tensor in owners else tensor.removesuffix(".f")]
                self._pairs[owner].append((node.output[0], tensor))
            else:
                owner, array = self._constant(node.output[0], exact, owners)
                self._constants[owner].append((node.output[0], array))
        self.layers = tuple(self._layers(exact, owners))

    def graph(self, weights: Collection[str], activations: Collection[str]) -> onnx.ModelProto:
        """The graph where constants of the layers ``weights``, and tensors of ``activations``, are
        quantized, and nothing else."""
        model = onnx.ModelProto()
        model.CopyFrom(self._full)
        passed = {
            output: tensor
            for layer, pairs in self._pairs.items()
            if layer not in activations
            for output, tensor in pairs
        }
        floats = {
            output: array
            for layer, constants in self._constants.items()
            if layer not in weights
            for output, array in constants
        }
        nodes = []
        for node in self._full.graph.node:
            if node.op_type == DEQUANTIZE and node.output[0] in floats:
                continue
            if node.op_type == DEQUANTIZE and node.output[0] in passed:
                output = node.output[0]
                name = f"{node.name}.off"
                nodes.append(onnx.helper.make_node("Identity", [passed[output]], [output], name))
            else:
                nodes.append(node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        for output, array in floats.items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, output))
        return cut_to(model)

    def _constant(
        self, output: str, exact: ir.Model, owners: Mapping[str, str]
    ) -> tuple[str, Array]:
        """The layer of a dequantized constant, and FP32's own."""
        nodes = {str(node.name): node for node in exact.graph}
        for node in self._full.graph.node:
            if output in node.input and node.name in nodes:
                original = nodes[node.name]
                array = constant_of(original.inputs[list(node.input).index(output)])
                if array is not None:
                    return owners.get(str(original.outputs[0].name), node.name), array
        raise QuantizationError(
            "is dequantized, and no node of the FP32 graph has it as a constant",
            where=f"tensor `{output}`",
            do="report this graph",
        )

    def _layers(self, exact: ir.Model, owners: Mapping[str, str]) -> list[Layer]:
        nodes = {str(node.name): node for node in exact.graph}
        order = dict.fromkeys([*owners.values(), *nodes])
        macs: dict[str, int] = defaultdict(int)
        for node in exact.graph:
            macs[owners.get(str(node.outputs[0].name), str(node.name))] += macs_of(node)
        return [
            Layer(
                name=name,
                op_type=nodes[name].op_type if name in nodes else _INPUT,
                has_weights=name in self._constants,
                has_activations=name in self._pairs,
                weights=sum(array.size for _, array in self._constants.get(name, ())),
                macs=macs[name],
            )
            for name in order
            if name in self._constants or name in self._pairs
        ]


def _owners(exact: ir.Model, draft: Draft) -> dict[str, str]:
    """For every tensor with Q/DQ, the name of its layer: the first node, along the graph, of those
    whose outputs share a scale with it; a graph input's own name in back-ticks."""
    nodes = list(exact.graph)
    chosen = [node for node in nodes if str(node.name) in draft.plan.nodes]
    roots, folds = roots_of(chosen, draft.target), fold_sources(chosen, draft.target)
    tensors = [(f"input `{value.name}`", value) for value in exact.graph.inputs]
    tensors += [(str(node.name), value) for node in nodes for value in node.outputs]
    first: dict[str, str] = {}
    owners: dict[str, str] = {}
    for maker, value in tensors:
        name = str(value.name)
        if name not in draft.plan.activations:
            continue
        after = folds.get(name, name)
        owners[name] = first.setdefault(roots.get(after, after), maker)
    return owners
