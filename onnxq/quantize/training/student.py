"""The graph that is fine-tuned: what it learns are distances from where it began, in grid steps."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from onnxq.errors import QuantizationError
from onnxq.pair_sums import at_risk, has_pair_sums, reduction_rows
from onnxq.quantize.draft import Draft
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.quantize.training.graph import TrainingGraph

__all__ = ["Learnt", "Student"]

_TYPICAL_CODE = 64  # of the data, where a bias moves the sum as far as a weight does
_SCALE_STEP = 0.1  # of a scale, as its logarithm


class Learnt(nn.Module):
    """A tensor as ``start + unit · offset``, or ``start · exp(unit · offset)``; offset learns."""

    start: Tensor
    unit: Tensor

    def __init__(self, start: Tensor, unit: Tensor, *, is_scale: bool = False) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros_like(start))
        self.register_buffer("start", start.detach().clone())
        self.register_buffer("unit", unit.detach().clone())
        self.is_scale = is_scale

    def value(self) -> Float[Tensor, "..."]:
        """The tensor as learned so far."""
        moved = self.unit * self.offset
        return self.start * moved.exp() if self.is_scale else self.start + moved


class Student(nn.Module):
    """A draft's Q/DQ form whose weights, biases and scales of activations learn, as asked for.

    The unit of a weight is the step of its channel; that of a bias what the layer's sum moves by
    if a weight moves by a step and the datum is of code 64; a scale moves by shares of itself, a
    tenth of it to the unit. So one learning rate fits every tensor of every network, and AdamW's
    decay draws towards the numbers that training began with, not to zero. Weight scales and zero
    points stay, so do the scales of the graph's inputs and outputs, which are its contract, and
    layers that are float. ``stayed`` says what else does, and why: on a target of powers of two
    the scales, and for processors whose sums saturate the channels that would come to do so.

    Raises QuantizationError for weights whose blocks have steps of their own.
    """

    def __init__(self, draft: Draft, learn: Collection[str]) -> None:
        super().__init__()
        _refuse_blocks(draft)
        self._draft = draft
        self.graph = TrainingGraph(draft).requires_grad_(requires_grad=False)
        self.plain = TorchGraph(ir.to_proto(draft.graph)).requires_grad_(requires_grad=False)
        self.stayed: dict[str, str] = {}
        self._names: dict[str, list[str]] = {"weights": [], "biases": [], "scales": []}
        for layer in self.graph.layers:
            if "weights" in learn and layer.weight not in self._names["weights"]:
                self._names["weights"].append(layer.weight)
            if "biases" in learn and layer.bias and layer.bias not in self._names["biases"]:
                self._names["biases"].append(layer.bias)
        if "scales" in learn:
            self._names["scales"] = self._scales_that_learn()
        units = {"weights": self._weight_units(), "biases": self._bias_units()}
        self._learnt = nn.ModuleList()
        self._places: list[tuple[str, str]] = []
        for kind, names in self._names.items():
            for name in names:
                start = getattr(self.graph, kind)[name].detach()
                unit = units[kind][name] if kind in units else torch.tensor(_SCALE_STEP)
                self._learnt.append(Learnt(start, unit, is_scale=kind == "scales"))
                self._places.append((kind, name))

    def forward(
        self,
        inputs: Mapping[str, Shaped[Tensor, "..."]],
        wanted: Sequence[str] = (),
        *,
        rounded: bool = True,
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """Outputs and ``wanted`` tensors of the float graph (before their Q), with nothing rounded
        if not ``rounded``."""
        self.place()
        if rounded:
            return self.graph(inputs, wanted)  # type: ignore[no-any-return]  # a module's call
        graph = self.graph
        learnt: dict[str, Tensor] = {**graph.weights, **graph.biases}
        return self.plain({**inputs, **learnt}, wanted)  # type: ignore[no-any-return]  # the same

    def place(self) -> None:
        """Put what was learned into the training graph."""
        for (kind, name), learnt in self._entries():
            getattr(self.graph, kind)[name] = learnt.value()

    def offsets(self, kinds: Collection[str] = ("weights", "biases", "scales")) -> list[Any]:
        """What learns, of these kinds: parameters, always in the same order."""
        return [learnt.offset for (kind, _), learnt in self._entries() if kind in kinds]

    def moved(self) -> dict[str, Float[Tensor, "..."]]:
        """All offsets by number, to be kept."""
        return {f"{i}": p.detach().cpu().clone() for i, p in enumerate(self.offsets())}

    def move_to(self, offsets: Mapping[str, Float[Tensor, "..."]]) -> None:
        """Take offsets that were kept."""
        with torch.no_grad():
            for i, parameter in enumerate(self.offsets()):
                parameter.copy_(offsets[f"{i}"])

    def settle(self) -> Draft:
        """The draft as learned. Channels that training would let saturate where the draft is for
        processors that saturate go back to where they began."""
        with torch.no_grad():
            self.place()
            if self._draft.narrow:
                self._take_back_saturating()
                self.place()
            return self.graph.draft()

    def first_bad_layer(self, inputs: Mapping[str, Shaped[Tensor, "..."]], *, rounded: bool) -> str:
        """The layer at which numbers that are not finite begin: forwards, by what it makes; else
        backwards, by the gradient of its weight; "" if neither."""
        layers = self.graph.layers
        outputs = [layer.output for layer in layers]
        with torch.no_grad():
            if not rounded:
                outputs = [name.removesuffix(".f") for name in outputs]
            made = self(inputs, outputs, rounded=rounded)
        for layer, name in zip(layers, outputs, strict=True):
            if not torch.isfinite(made[name]).all():
                return layer.node
        gradients = {place: learnt.offset.grad for place, learnt in self._entries()}
        for layer in reversed(layers):
            for place in (("weights", layer.weight), ("biases", layer.bias)):
                gradient = gradients.get(place)
                if gradient is not None and not torch.isfinite(gradient).all():
                    return layer.node
        return ""

    def _entries(self) -> Iterator[tuple[tuple[str, str], Learnt]]:
        for place, learnt in zip(self._places, self._learnt, strict=True):
            if isinstance(learnt, Learnt):
                yield place, learnt

    def _scales_that_learn(self) -> list[str]:
        if self._draft.target.power_of_two:
            self.stayed["scales of activations"] = "powers of two on this target"
            return []
        model = self._draft.graph.graph
        contract = {
            self.graph.root_of(str(value.name)) for value in (*model.inputs, *model.outputs)
        }
        return [name for name in self.graph.scales if name not in contract]

    def _weight_units(self) -> dict[str, Tensor]:
        return {name: self.graph.weight_scales[name].detach() for name in self._names["weights"]}

    def _bias_units(self) -> dict[str, Tensor]:
        data = self._draft.plan.activations
        return {
            layer.bias: self.graph.weight_scales[layer.weight].detach().reshape(-1)
            * (data[layer.data].scale * _TYPICAL_CODE)
            * torch.ones_like(self.graph.biases[layer.bias])
            for layer in self.graph.layers
            if layer.bias
        }

    def _take_back_saturating(self) -> None:
        nodes = {str(node.name): node for node in self._draft.graph.graph}
        learnt = dict(self._entries())
        for layer in self.graph.layers:
            entry, node = learnt.get(("weights", layer.weight)), nodes[layer.node]
            if entry is None or not has_pair_sums(node):
                continue
            scales = self.graph.weight_scales[layer.weight]
            steps = (self.graph.rounded_weight(layer.weight) / scales).round().cpu().numpy()
            risky = at_risk(reduction_rows(node, steps.astype(np.int64)))
            if not risky.any():
                continue
            axis = self._draft.plan.weights[layer.weight].axis
            if axis is None or steps.shape[axis] != len(risky):
                entry.offset.zero_()
            else:
                shape = [-1 if dim == axis % steps.ndim else 1 for dim in range(steps.ndim)]
                entry.offset.masked_fill_(torch.from_numpy(risky.reshape(shape)), 0.0)
            self.stayed[layer.node] = f"{int(risky.sum())} channels would have saturated"


def _refuse_blocks(draft: Draft) -> None:
    for name, parameters in draft.plan.weights.items():
        if parameters.blocks is not None:
            raise QuantizationError(
                "its blocks have steps of their own, which finetune does not round with",
                where=f"weight `{name}`",
                do="leave `block` out, or the step finetune",
            )
