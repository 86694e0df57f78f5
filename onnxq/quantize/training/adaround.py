"""The refine step ``adaround``: whether a weight is rounded up or down is learned."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import onnx
import torch
from jaxtyping import Float
from torch import Tensor

from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.training.blocks import Block, blocks_of
from onnxq.quantize.training.graph import TrainingGraph
from onnxq.quantize.training.reconstruction import reconstruct
from onnxq.recipe import AdaRoundSection

__all__ = ["learn_rounding", "logits_of", "soft_rounding"]

GAMMA, ZETA = -0.1, 1.1  # ends that the rectified sigmoid is stretched to
_DECIDED = 0.02  # so near to 0 or 1 a weight has made its choice
_UNDECIDED_SHARE = 0.001
_PAPERS_LAMBDA = 0.01


def learn_rounding(draft: Draft, evidence: Evidence, options: AdaRoundSection) -> tuple[Draft, str]:
    """The draft with weights on their grids, rounded so that blocks answer like FP32.

    Of every weight w with scale s, floor(w / s) + h(V) is what the block is computed with, h
    the rectified sigmoid clip(σ(V)·(ζ − γ) + γ, 0, 1) with γ = −0.1, ζ = 1.1. V is learned
    by Adam; after ``warm_up`` of the iterations λ · Σ (1 − |2h(V) − 1|^β), β falling from 20 to 2,
    drives h to 0 or 1. Both terms are relative here: the error to its value with plain rounding,
    the sum to the number of weights; λ = 0.01 stands for equal weight. Biases learn along.
    Where an earlier step has rounded already, h begins half way between its choice and the weight.
    Iterations end early when all but 0.1 % of the weights are decided.
    Source: Nagel et al. 2020, arXiv 2004.10568, equations 21 to 25.
    """
    blocks = blocks_of(draft, at_least=3 if options.by == "block" else 1)
    exact = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy())
        for tensor in evidence.original.graph.initializer
        if tensor.name in draft.plan.weights
    }

    def begin(graph: TrainingGraph, block: Block) -> _Rounding:
        return _Rounding(graph, block, options, exact)

    refined, outcome = reconstruct(draft, evidence, blocks, begin, options.iterations)
    return refined, f"by {options.by}: {outcome.text}"


def soft_rounding(v: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """h(V): how much of a step a weight is rounded up, 0 to 1."""
    return torch.clamp(torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0, 1)


def logits_of(share: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """V with h(V) = ``share``, for 0 ≤ share ≤ 1."""
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


@dataclass
class _Rounding:
    """The roundings of one block's weights."""

    graph: TrainingGraph
    block: Block
    options: AdaRoundSection
    exact: Mapping[str, Tensor]
    groups: list[dict[str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers = [layer for layer in self.graph.layers if layer.node in self.block.layers]
        self._names = list(dict.fromkeys(layer.weight for layer in layers))
        self._floors: dict[str, Tensor] = {}
        self._logits: dict[str, Tensor] = {}
        for name in self._names:
            scales = self.graph.weight_scales[name].detach()
            chosen = torch.round(self.graph.weights[name].detach() / scales)
            exact = self.exact.get(name, self.graph.weights[name].detach()) / scales
            self._floors[name] = torch.where(exact < chosen, chosen - 1, chosen)
            above = torch.clamp(exact - self._floors[name], 0, 1)
            share = (above + (chosen - self._floors[name])) / 2
            self._logits[name] = logits_of(share).requires_grad_()
            self.graph.rounding[name] = self._rounder(name)
        biases = [self.graph.biases[layer.bias] for layer in layers if layer.bias]
        steps_of_biases = [float(b.detach().abs().mean()) for b in biases]
        self.groups = [{"params": list(self._logits.values()), "lr": self.options.learning_rate}]
        for bias, size in zip(biases, steps_of_biases, strict=True):
            bias.requires_grad_()
            self.groups.append({"params": [bias], "lr": max(size, 1e-6) * 1e-3})
        self._biases = biases

    def penalty(self, share: float) -> Float[Tensor, ""]:
        """λ · mean (1 − |2h − 1|^β) behind the warm-up."""
        start = self.options.warm_up
        if share < start:
            return torch.zeros(())
        done = (share - start) / (1 - start)
        beta = 2 + (20 - 2) * 0.5 * (1 + math.cos(math.pi * done))
        undecided = [
            (1 - (2 * soft_rounding(v) - 1).abs().pow(beta)).sum() for v in self._logits.values()
        ]
        count = sum(v.numel() for v in self._logits.values())
        return self.options.regularization / _PAPERS_LAMBDA * torch.stack(undecided).sum() / count

    def is_done(self, share: float, error: float) -> bool:
        """Whether all weights but a few have decided."""
        if share < self.options.warm_up:
            return False
        with torch.no_grad():
            shares = torch.cat([soft_rounding(v).reshape(-1) for v in self._logits.values()])
        undecided = (shares > _DECIDED) & (shares < 1 - _DECIDED)
        return float(undecided.float().mean()) < _UNDECIDED_SHARE

    def settle(self) -> None:
        """Round each weight as it has chosen."""
        for name in self._names:
            up = (soft_rounding(self._logits[name].detach()) >= 0.5).to(torch.float32)
            del self.graph.rounding[name]
            scales = self.graph.weight_scales[name].detach()
            self.graph.weights[name].copy_((self._floors[name] + up) * scales)
        for bias in self._biases:
            bias.requires_grad = False

    def _rounder(self, name: str) -> Callable[[Tensor], Tensor]:
        def rounded(_: Tensor) -> Tensor:
            return self._floors[name] + soft_rounding(self._logits[name])

        return rounded
