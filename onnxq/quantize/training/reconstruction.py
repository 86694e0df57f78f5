"""Block by block: what a block answers on quantized inputs is brought to what FP32 answers."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from onnxq.errors import ModelError, QuantizationError
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.quantize.training.blocks import Block
from onnxq.quantize.training.graph import TrainingGraph

__all__ = ["Learning", "Outcome", "joined", "joins", "reconstruct"]

Tensors = Mapping[str, Shaped[Tensor, "..."]]
_NUMBERS = 2_000_000  # of a block's inputs and outputs in one iteration, about
_MOST_RUNS = 32  # of one iteration
_CHECK_EVERY = 50  # iterations
_SEED = 2004
_LOG = logging.getLogger(__name__)


@runtime_checkable
class Learning(Protocol):
    """What is learned in one block, and when it is done."""

    groups: list[dict[str, object]]  # parameters with their learning rates, as Adam takes them

    def penalty(self, share: float) -> Float[Tensor, ""]:
        """What is added to the error once ``share`` of the iterations are over."""
        ...

    def is_done(self, share: float, error: float) -> bool:
        """Whether more iterations are of no use; ``error`` is that since the last time."""
        ...

    def settle(self) -> None:
        """Write what was learned into the graph's own parameters."""
        ...


@dataclass
class Outcome:
    """What became of the blocks: how many were kept, the iterations, the errors as shares."""

    kept: int = 0
    blocks: int = 0
    iterations: int = 0
    shares: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """A line for the record."""
        mean = float(np.mean(self.shares)) if self.shares else 1.0
        return (
            f"{self.kept} of {self.blocks} blocks, {self.iterations} iterations; squared error of "
            f"their outputs on held-back runs × {mean:.3f}, mean of the blocks kept"
        )


def reconstruct(
    draft: Draft,
    evidence: Evidence,
    blocks: Sequence[Block],
    begin: Callable[[TrainingGraph, Block], Learning],
    iterations: int,
) -> tuple[Draft, Outcome]:
    """The draft after ``begin(graph, block)`` has learned in every block, one after the other.

    A block's inputs are those of the quantized graph as learned so far, what it is to answer is
    what FP32 answers on FP32's own inputs. The error of an output is Σ (FP32 − INT8)² / Σ FP32²,
    summed over the block's outputs; Adam makes it small, relative to what it is at the beginning,
    plus the penalty. A block whose error on the runs held back does not fall stays as it was.
    Samples are joined to batches where the graph computes the same for them. Memory: what crosses
    the ends of blocks, of all runs, twice.

    Raises QuantizationError naming the block if the error becomes NaN or infinite.
    Source: Li et al. 2021, arXiv 2102.05426, section 3 (blocks); Nagel et al. 2020, arXiv
    2004.10568, section 4 (asymmetric reconstruction).
    """
    graph = TrainingGraph(draft)
    graph.requires_grad_(requires_grad=False)
    teacher = TorchGraph(evidence.original).requires_grad_(requires_grad=False)
    runs = [_tensors(evidence.run(index)) for index in range(len(evidence))]
    state = _State(graph, teacher, runs, evidence.is_held_back, joins(teacher, runs))
    outcome = Outcome(blocks=len(blocks))
    rng = np.random.default_rng(_SEED)
    for number, block in enumerate(blocks):
        state.enter(block)
        before = state.error()
        saved = _saved(graph, block)
        learning = begin(graph, block)
        what = f"block {number + 1} of {len(blocks)}"
        steps = evidence.progress(_steps(state, learning, iterations, rng), what, iterations)
        outcome.iterations += sum(1 for _ in steps)
        with torch.no_grad():
            learning.settle()
        after = state.error()
        _LOG.debug("%s (%s): error %.3g -> %.3g", what, ", ".join(block.layers), before, after)
        if after < before:
            outcome.kept += 1
            outcome.shares.append(after / before)
        else:
            _restore(saved)
        state.leave(needed={name for each in blocks[number + 1 :] for name in each.inputs})
    return graph.draft(), outcome


@dataclass
class _State:
    """The tensors at the ends of the block at hand, of all runs: quantized and FP32."""

    graph: TrainingGraph
    teacher: TorchGraph
    quantized: list[dict[str, Tensor]]
    held_back: Shaped[np.ndarray, " runs"]
    joins: bool
    exact: list[dict[str, Tensor]] = field(default_factory=list)
    block: Block | None = None
    power: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.exact = [dict(run) for run in self.quantized]

    @property
    def here(self) -> Block:
        """The block at hand."""
        if self.block is None:
            raise RuntimeError("no block was entered")
        return self.block

    def enter(self, block: Block) -> None:
        """Compute what FP32 answers."""
        self.block = block
        with torch.no_grad():
            for run in self.exact:
                run.update(self.teacher.between(run, block.outputs))
        for name in block.outputs:
            squares = [float(run[name].double().square().mean()) for run in self.exact]
            self.power[name] = max(float(np.mean(squares)), float(np.finfo(np.float32).tiny))

    def leave(self, needed: set[str]) -> None:
        """Compute what the block makes now, and forget what nobody needs."""
        with torch.no_grad():
            for quantized in self.quantized:
                quantized.update(
                    self.graph.block(self.here, self._inputs(quantized), rounded=False)
                )
        for runs in (self.quantized, self.exact):
            for run in runs:
                for name in run.keys() - needed:
                    del run[name]

    def loss(self, runs: Sequence[int]) -> Float[Tensor, ""]:
        """Mean over ``runs`` of the squared error of the outputs, each relative to FP32's power."""
        groups = [list(runs)] if self.joins else [[run] for run in runs]
        total = torch.zeros(())
        for group in groups:
            inputs = joined([self._inputs(self.quantized[run]) for run in group])
            wanted = joined([{n: self.exact[run][n] for n in self.here.outputs} for run in group])
            found = self.graph.block(self.here, inputs, rounded=True)
            errors = [
                (found[name] - wanted[name]).square().mean() / self.power[name] for name in wanted
            ]
            total = total + torch.stack(errors).sum() * (len(group) / len(runs))
        return total

    def error(self) -> float:
        """The loss on the runs held back."""
        runs = np.flatnonzero(self.held_back)
        size = self.batch
        parts = [runs[start : start + size] for start in range(0, len(runs), size)]
        with torch.no_grad():
            losses = [float(self.loss(part.tolist())) * len(part) for part in parts]
        return sum(losses) / len(runs)

    @property
    def batch(self) -> int:
        """Runs of one iteration."""
        numbers = sum(self.quantized[0][name].numel() for name in self.here.inputs)
        numbers += sum(self.exact[0][name].numel() for name in self.here.outputs)
        return max(1, min(_MOST_RUNS, round(_NUMBERS / max(numbers, 1))))

    def _inputs(self, run: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: run[name] for name in self.here.inputs}


def _steps(
    state: _State, learning: Learning, iterations: int, rng: np.random.Generator
) -> Iterator[int]:
    """Iterate; ends when the learning is done."""
    optimizer = torch.optim.Adam(learning.groups)
    measured = np.flatnonzero(~state.held_back)
    with torch.no_grad():
        first = float(state.loss(measured[: state.batch].tolist()))
    unit = max(first, float(np.finfo(np.float32).tiny))
    recent: list[float] = []
    for iteration in range(iterations):
        chosen = rng.choice(measured, min(state.batch, len(measured)), replace=False)
        share = iteration / iterations
        loss = state.loss(chosen.tolist()) / unit
        recent.append(float(loss.detach()))
        total = loss + learning.penalty(share)
        if not torch.isfinite(total):
            raise QuantizationError(
                "learning made the error infinite or no number",
                where=f"the block of {', '.join(state.here.layers)}, iteration {iteration}",
                do="lower the learning rate, or leave the step out",
            )
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        optimizer.step()
        yield iteration
        if len(recent) == _CHECK_EVERY:
            if learning.is_done(share, float(np.mean(recent))):
                return
            recent.clear()


def _saved(graph: TrainingGraph, block: Block) -> list[tuple[nn.Parameter, Tensor]]:
    return [(each, each.detach().clone()) for each in graph.parameters_of(block)]


def _restore(saved: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
    with torch.no_grad():
        for parameter, value in saved:
            parameter.copy_(value)


def _tensors(run: Mapping[str, Shaped[np.ndarray, "..."]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in run.items()}


def joined(runs: Sequence[Tensors]) -> dict[str, Tensor]:
    """Runs as one, along the first axis."""
    if len(runs) == 1:
        return dict(runs[0])
    return {name: torch.cat([run[name] for run in runs]) for name in runs[0]}


def joins(teacher: TorchGraph, runs: Sequence[Tensors]) -> bool:
    """Whether two runs may be joined along the first axis: the graph then answers the same."""
    with torch.no_grad():
        apart = joined([teacher(run) for run in runs[:2]])
        try:
            together = teacher(joined(runs[:2]))
        except ModelError:  # a shape is fixed inside the graph
            return False
    return all(
        together[name].shape == tensor.shape
        and torch.allclose(together[name], tensor, rtol=1e-3, atol=1e-4 * float(tensor.std()))
        for name, tensor in apart.items()
    )
