"""A draft in torch: its weights and biases float, rounded on the way; its scales parameters."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from onnxq.errors import QuantizationError
from onnxq.graph import WEIGHTED, constant_of, cut_to
from onnxq.placement import fold_sources, roots_of
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.quantize.draft import Draft
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.quantize.training.blocks import Block

__all__ = ["Layer", "TrainingGraph", "round_through"]

_INT32 = torch.iinfo(torch.int32)


@dataclass(frozen=True)
class Layer:
    """A node of the draft with a planned weight, and what it reads in the Q/DQ form.

    ``weight`` is a key of the plan, ``dequantized`` what stands in its place; ``bias`` is the float
    constant and ``rounded`` what stands in its place, both "" where no bias is stored as int32;
    ``data`` is the tensor that the weight is multiplied with, ``output`` what is made.
    """

    node: str
    data: str
    output: str
    weight: str
    dequantized: str
    bias: str
    rounded: str


class _RoundThrough(torch.autograd.Function):
    """Half to even, with the gradient of the identity."""

    @staticmethod
    def forward(_: Any, *given: Any) -> Tensor:
        return torch.round(given[0])

    @staticmethod
    def backward(_: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def round_through(steps: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Rounded half to even; backwards the identity (the straight-through estimator)."""
    rounded: Tensor = _RoundThrough.apply(steps)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return rounded


class TrainingGraph(nn.Module):
    """The Q/DQ form of ``draft`` with weights, biases and scales that have gradients.

    It computes what the file computes without optimization, but for the order of sums: weights are
    rounded to their grid, biases to steps of ``scale of the data · scale of the weight``.
    ``weights``, ``biases`` and ``weight_scales`` go by names of the float graph, ``scales`` by the
    tensor that Q/DQ stands on (behind operators that only move values: by the one before them).
    ``rounding`` holds, by weight, what takes the place of rounding half to even.
    """

    def __init__(self, draft: Draft) -> None:
        super().__init__()
        self._draft = draft
        model = draft.quantized()
        self.layers = tuple(_layers(draft, model))
        arrays = _constants(draft.graph)
        _stand_in(model, {layer.dequantized: arrays[layer.weight] for layer in self.layers})
        _stand_in(model, {layer.rounded: arrays[layer.bias] for layer in self._biased})
        self._roots = _roots(draft)
        self._scale_names = _own_scales(model, self._roots)
        self.graph = TorchGraph(model).requires_grad_(requires_grad=False)
        plan = draft.plan
        self.weights = self._enter(
            "weight", {layer.weight: arrays[layer.weight] for layer in self.layers}
        )
        self.biases = self._enter(
            "bias", {layer.bias: arrays[layer.bias] for layer in self._biased}
        )
        self.weight_scales = self._enter(
            "weight scale",
            {
                name: plan.weights[name].spread(weight.dim())
                for name, weight in self.weights.items()
            },
        )
        self.scales = self._enter(
            "scale", {root: np.array(plan.activations[root].scale) for root in self._scale_names}
        )
        made = {name for node in model.graph.node for name in node.output}
        outputs = {value.name for value in model.graph.output}
        self._raw = {name: f"{name}.f" for name in outputs if f"{name}.f" in made}
        self._read = {name: f"{name}.d" for name in plan.activations if f"{name}.d" in made}
        self.rounding: dict[str, Callable[[Tensor], Tensor]] = {}

    def forward(
        self, inputs: Mapping[str, Shaped[Tensor, "..."]], wanted: Sequence[str] = ()
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """As that of ``TorchGraph``; raises what it raises."""
        found: dict[str, Tensor] = self.graph({**inputs, **self.stand_ins()}, wanted)
        return found

    def stand_ins(self, nodes: Collection[str] | None = None) -> dict[str, Shaped[Tensor, "..."]]:
        """What ``nodes`` (all of them) read in place of constants: rounded weights and biases, and
        the scales of all activations."""
        layers = [layer for layer in self.layers if nodes is None or layer.node in nodes]
        rounded = {name: self.rounded_weight(name) for name in {each.weight for each in layers}}
        found = {layer.dequantized: rounded[layer.weight] for layer in layers}
        found |= {layer.rounded: self._bias_of(layer) for layer in layers if layer.bias}
        return found | {name: self.scales[root] for root, name in self._scale_names.items()}

    def block(
        self, block: Block, inputs: Mapping[str, Shaped[Tensor, "..."]], *, rounded: bool
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """The block's outputs by their names in the float graph, as they are before their Q, or
        ``rounded`` to codes and back; ``inputs`` are as they are before theirs."""
        names = {
            name: self._read.get(name, name) if rounded else self._raw.get(name, name)
            for name in block.outputs
        }
        given = {self._raw.get(name, name): tensor for name, tensor in inputs.items()}
        found = self.graph.between(
            {**given, **self.stand_ins(block.layers)}, list(dict.fromkeys(names.values()))
        )
        return {name: found[inner] for name, inner in names.items()}

    def parameters_of(self, block: Block) -> list[nn.Parameter]:
        """The weights, their scales and the biases of a block, and the scales of what it makes."""
        layers = [layer for layer in self.layers if layer.node in block.layers]
        found = [self.weights[layer.weight] for layer in layers]
        found += [self.weight_scales[layer.weight] for layer in layers]
        found += [self.biases[layer.bias] for layer in layers if layer.bias]
        return found + list(self.scales_of(block).values())

    def scales_of(self, block: Block) -> dict[str, nn.Parameter]:
        """The scales of the activations that the block makes, by the tensors they stand on."""
        made = [
            str(value.name)
            for node in self._draft.graph.graph
            if str(node.name) in block.nodes
            for value in node.outputs
        ]
        roots = dict.fromkeys(self._roots.get(name, name) for name in made)
        return {root: self.scales[root] for root in roots if root in self.scales}

    def root_of(self, name: str) -> str:
        """The tensor whose scale is that of ``name``."""
        return self._roots.get(name, name)

    def rounded_weight(self, name: str) -> Float[Tensor, "..."]:
        """A weight as its integers say."""
        scales, most = self.weight_scales[name], self._draft.plan.weights[name].type.qmax
        steps = self.rounding.get(name, round_through)(self.weights[name] / scales)
        return torch.clamp(steps, -most, most) * scales

    def draft(self) -> Draft:
        """The draft as learned: its constants on their grids, so that plain rounding keeps them.

        Raises QuantizationError if a number is not finite.
        """
        with torch.no_grad():
            found = {name: self.rounded_weight(name) for name in self.weights}
            found |= {layer.bias: self._bias_of(layer) for layer in self._biased}
            arrays = {name: tensor.numpy().copy() for name, tensor in found.items()}
            scales = {root: float(scale) for root, scale in self.scales.items()}
            spread = {name: scale.reshape(-1).numpy() for name, scale in self.weight_scales.items()}
        for name, array in (*arrays.items(), *scales.items(), *spread.items()):
            if not np.isfinite(np.asarray(array, np.float64)).all():
                raise QuantizationError(
                    "training made numbers that are not finite",
                    where=f"`{name}`",
                    do="lower the learning rate",
                )
        graph = self._draft.copy()
        for name, array in arrays.items():
            graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
        plan = self._draft.plan
        activations = {
            name: replace(p, scale=scales.get(self._roots.get(name, name), p.scale))
            for name, p in plan.activations.items()
        }
        weights = {  # the steps of blocks are not learned
            name: replace(p, scales=spread[name]) if name in spread and p.blocks is None else p
            for name, p in plan.weights.items()
        }
        plan = replace(plan, activations=activations, weights=weights)
        return replace(self._draft, graph=graph, plan=plan)

    @property
    def _biased(self) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.bias)

    def _bias_of(self, layer: Layer) -> Float[Tensor, " channels"]:
        root = self._roots.get(layer.data, layer.data)
        scale = self.scales.get(root, self._draft.plan.activations[layer.data].scale)
        step = scale * self.weight_scales[layer.weight].reshape(-1)
        steps = round_through(self.biases[layer.bias] / step)
        return torch.clamp(steps, _INT32.min, _INT32.max) * step

    def _enter(
        self, kind: str, arrays: Mapping[str, Float[np.ndarray, "..."]]
    ) -> dict[str, nn.Parameter]:
        found = {}
        for name, array in arrays.items():
            found[name] = nn.Parameter(torch.from_numpy(np.array(array, np.float32)))
            self.register_parameter(f"{kind} {name}".replace(".", "%2E"), found[name])
        return found


def _roots(draft: Draft) -> dict[str, str]:
    """For a tensor whose scale is that of another: the other one."""
    chosen = [node for node in draft.graph.graph if str(node.name) in draft.plan.nodes]
    roots, folds = roots_of(chosen, draft.target), fold_sources(chosen, draft.target)
    folded = {before: roots.get(after, after) for before, after in folds.items()}
    return folded | {name: folded.get(root, root) for name, root in roots.items()}


def _layers(draft: Draft, model: onnx.ModelProto) -> Iterator[Layer]:
    rewritten = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    for node in draft.graph.graph:
        data, weight, bias = (*node.inputs, None, None, None)[:3]
        is_planned = str(node.name) in draft.plan.nodes and node.op_type in WEIGHTED
        if not is_planned or weight is None or str(weight.name) not in draft.plan.weights:
            continue
        read = rewritten[str(node.name)]
        maker = makers.get(read.input[2]) if bias is not None else None
        is_stored = (
            maker is not None and maker.op_type == DEQUANTIZE and constant_of(bias) is not None
        )
        yield Layer(
            node=read.name,
            data=str(data.name) if data is not None else "",
            output=read.output[0],
            weight=str(weight.name),
            dequantized=read.input[1],
            bias=str(bias.name) if bias is not None and is_stored else "",
            rounded=read.input[2] if is_stored else "",
        )


def _constants(graph: ir.Model) -> dict[str, Float[np.ndarray, "..."]]:
    found = {name: constant_of(value) for name, value in graph.graph.initializers.items()}
    return {name: array for name, array in found.items() if array is not None}


def _stand_in(model: onnx.ModelProto, arrays: Mapping[str, Float[np.ndarray, "..."]]) -> None:
    """Make initializers of tensors that are dequantized, in place."""
    kept = [node for node in model.graph.node if not set(node.output) & arrays.keys()]
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    cut_to(model)


def _own_scales(model: onnx.ModelProto, roots: Mapping[str, str]) -> dict[str, str]:
    """Give every root's Q and DQ nodes a scale of their own, in place; its name by root."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, str] = {}
    by_codes: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == QUANTIZE:
            tensor = node.input[0].removesuffix(".f")
            root = roots.get(tensor, tensor)
            if root not in found:
                found[root] = f"{root}: scale"
                scale = onnx.numpy_helper.to_array(arrays[node.input[1]])
                model.graph.initializer.append(onnx.numpy_helper.from_array(scale, found[root]))
            by_codes[node.output[0]] = node.input[1] = found[root]
        elif node.op_type == DEQUANTIZE and node.input[0] in by_codes:
            node.input[1] = by_codes[node.input[0]]
    return found
