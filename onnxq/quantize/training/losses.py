"""What training makes small: a loss of the labels, and the distance to FP32."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional

from onnxq.errors import DataError, PluginError
from onnxq.plugins import find
from onnxq.recipe import DistillSection

__all__ = ["Objective", "TaskLoss", "are_probabilities", "task_loss"]

Tensors = Mapping[str, Shaped[Tensor, "..."]]
TaskLoss = Callable[[Tensors, Shaped[Tensor, " n"]], Float[Tensor, ""]]
_TINY = float(torch.finfo(torch.float32).tiny)


def task_loss(name: str, search: Path | None, *, probabilities: bool) -> TaskLoss:
    """The loss called ``name``, or ``module:function(outputs, labels)`` found in ``search``.

    cross-entropy is of scores, or of ``probabilities``; mse and mae are in the labels' own unit. A
    function is given the outputs by name and the labels, and returns one number, the mean over the
    samples. Raises PluginError for a function that cannot be found.
    """
    if name == "cross-entropy":
        return _cross_entropy_of_probabilities if probabilities else _cross_entropy
    if name in ("mse", "mae"):
        return _mse if name == "mse" else _mae
    function = find(name, search)

    def loss(outputs: Tensors, labels: Tensor) -> Tensor:
        value = function(outputs, labels)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise PluginError(
                "does not return a tensor of one number",
                where=name,
                do="return the mean loss of the samples, computed in torch",
            )
        return value.reshape(())

    return loss


def are_probabilities(output: Float[Tensor, "..."]) -> bool:
    """Whether the numbers of every row are none below zero, and together 1."""
    sums = output.sum(-1)
    return bool((output >= 0).all() and (sums - 1).abs().max() < 1e-3)


@dataclass(frozen=True)
class Objective:
    """The loss of a run: of its outputs, and of the ends of blocks inside.

    ``powers`` are the mean squares of FP32's tensors, ``blocks`` the weights of tensors inside.
    """

    distill: DistillSection
    powers: Mapping[str, float]
    outputs: tuple[str, ...]
    blocks: Mapping[str, float]
    task: TaskLoss | None = None
    task_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.distill.by == "kl" and not self.task and not self.distill.outputs:
            raise DataError("`by: kl` is of outputs, which have no weight", where="finetune")

    def loss(
        self, found: Tensors, exact: Tensors, labels: Shaped[Tensor, " n"] | None
    ) -> Float[Tensor, ""]:
        """What is learned from, mean over the samples of a run."""
        total = self.distill.outputs * self._distance(found, exact)
        if self.task is not None:
            total = total + self.task_weight * self._of_labels(found, labels)
        for name, weight in self.blocks.items():
            total = total + weight * self._squared(name, found, exact)
        return total

    def judged(
        self, found: Tensors, exact: Tensors, labels: Shaped[Tensor, " n"] | None
    ) -> Float[Tensor, ""]:
        """What files are compared by: the part of the loss that speaks of outputs; where only
        tensors inside are learned from, the distance of the outputs."""
        distance = self._distance(found, exact)
        if self.task is not None:
            task = self.task_weight * self._of_labels(found, labels)
            return self.distill.outputs * distance + task
        return (self.distill.outputs or 1.0) * distance

    @property
    def text(self) -> str:
        """Of what files are compared by, for the record."""
        kind = "Kullback-Leibler distance" if self.distill.by == "kl" else "squared error"
        parts = [f"{kind} to FP32"] if self.distill.outputs or self.task is None else []
        return " + ".join([*parts, *(["loss of the labels"] if self.task is not None else [])])

    def _of_labels(self, found: Tensors, labels: Tensor | None) -> Tensor:
        if self.task is None or labels is None:
            raise DataError("there are no labels", where="finetune: task_loss")
        outputs = {name: found[name] for name in self.outputs}
        return self.task(outputs, labels)

    def _distance(self, found: Tensors, exact: Tensors) -> Tensor:
        if self.distill.by == "squared":
            parts = [self._squared(name, found, exact) for name in self.outputs]
        else:
            parts = [_divergence(name, found[name], exact[name]) for name in self.outputs]
        return torch.stack(parts).mean()

    def _squared(self, name: str, found: Tensors, exact: Tensors) -> Tensor:
        return (found[name] - exact[name]).square().mean() / max(self.powers[name], _TINY)


def _divergence(name: str, found: Tensor, exact: Tensor) -> Tensor:
    """KL of FP32's probabilities from those found, mean over all but the last axis."""
    if exact.dim() < 2 or exact.shape[-1] < 2:
        raise DataError(
            f"has shape {list(exact.shape)}, which holds no logits of several classes",
            where=f"finetune: distill, output `{name}`",
            do="use `by: squared`",
        )
    wanted, got = (functional.log_softmax(each, -1) for each in (exact, found))
    return (wanted.exp() * (wanted - got)).sum(-1).mean()


def _only(outputs: Tensors) -> Tensor:
    if len(outputs) != 1:
        raise DataError(
            f"the model has {len(outputs)} outputs ({', '.join(outputs)})",
            where="finetune: task_loss",
            do="write a loss of your own that says which counts: module:function",
        )
    return next(iter(outputs.values()))


def _classes(outputs: Tensors, labels: Tensor) -> tuple[Tensor, Tensor]:
    scores, classes = _only(outputs), labels.to(torch.int64)
    fits = scores.dim() == 2 and bool((classes == labels).all())
    if not fits or int(classes.min()) < 0 or int(classes.max()) >= scores.shape[-1]:
        raise DataError(
            f"cross-entropy needs scores (n, classes) and class numbers from 0; the output has "
            f"shape {list(scores.shape)}, labels run from {float(labels.min()):g} to "
            f"{float(labels.max()):g}",
            where="finetune: task_loss",
            do="number the classes as the model does, or choose mse or mae",
        )
    return scores, classes


def _cross_entropy(outputs: Tensors, labels: Tensor) -> Tensor:
    scores, classes = _classes(outputs, labels)
    return functional.cross_entropy(scores, classes)


def _cross_entropy_of_probabilities(outputs: Tensors, labels: Tensor) -> Tensor:
    shares, classes = _classes(outputs, labels)
    return functional.nll_loss(shares.clamp_min(1e-7).log(), classes)


def _difference(outputs: Tensors, labels: Tensor) -> Tensor:
    values = _only(outputs)
    if values.numel() != len(labels):
        raise DataError(
            f"the output has shape {list(values.shape)}, and there is one label a sample",
            where="finetune: task_loss",
            do="choose cross-entropy, or write a loss of your own: module:function",
        )
    return values.reshape(-1) - labels.to(values.dtype)


def _mse(outputs: Tensors, labels: Tensor) -> Tensor:
    return _difference(outputs, labels).square().mean()


def _mae(outputs: Tensors, labels: Tensor) -> Tensor:
    return _difference(outputs, labels).abs().mean()
