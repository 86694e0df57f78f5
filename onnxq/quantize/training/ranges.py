"""The refine step ``ranges``: scales of activations are learned, their zero points kept."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.training.blocks import Block, blocks_of
from onnxq.quantize.training.graph import TrainingGraph
from onnxq.quantize.training.reconstruction import reconstruct
from onnxq.recipe import RangesSection

__all__ = ["learn_ranges"]

_PLATEAU = 0.999  # of the error before: a fall of less is none


def learn_ranges(draft: Draft, evidence: Evidence, options: RangesSection) -> tuple[Draft, str]:
    """The draft with scales of activations for which blocks answer most like FP32.

    The gradient of a scale is that of LSQ; it moves by shares of itself. Ranges that a domain pins
    learn too where nothing else gives them; a target that wants powers of two is left alone.
    Source: Esser et al. 2020, arXiv 1902.08153, equation 3.
    """
    if draft.target.power_of_two:
        return draft, "scales are powers of two on this target: nothing to learn"

    def begin(graph: TrainingGraph, block: Block) -> _Ranges:
        return _Ranges(graph, block, options)

    refined, outcome = reconstruct(draft, evidence, blocks_of(draft), begin, options.iterations)
    return refined, outcome.text


@dataclass
class _Ranges:
    """The scales that one block makes."""

    graph: TrainingGraph
    block: Block
    options: RangesSection
    groups: list[dict[str, object]] = field(default_factory=list)
    _best: float = float("inf")

    def __post_init__(self) -> None:
        self._scales = list(self.graph.scales_of(self.block).values())
        for scale in self._scales:
            scale.requires_grad_()
            rate = float(scale.detach()) * self.options.learning_rate
            self.groups.append({"params": [scale], "lr": rate})

    def penalty(self, share: float) -> Float[Tensor, ""]:
        """None."""
        return torch.zeros(())

    def is_done(self, share: float, error: float) -> bool:
        """Whether the error falls no more."""
        is_flat = error > _PLATEAU * self._best
        self._best = min(self._best, error)
        return is_flat

    def settle(self) -> None:
        """Keep the scales as they are."""
        for scale in self._scales:
            scale.requires_grad = False
