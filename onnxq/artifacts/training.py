"""Records of training."""

from onnxq.artifacts.base import Interval, Record

__all__ = ["EpochFacts", "FineTuning"]


class EpochFacts(Record):
    """One epoch: the learning rate that it began with, what was rounded and learned in it.

    ``loss`` is its mean over the epoch, ``gradient`` the largest length of a gradient before it was
    shortened, both in units of the loss at the beginning. ``chosen`` is what the epoch was chosen
    by: the loss of the outputs of the file as it would be written, on runs held back for that.
    """

    epoch: int
    learning_rate: float
    is_rounded: bool
    scales_learn: bool
    loss: float
    gradient: float
    chosen: float


class FineTuning(Record):
    """What the step ``finetune`` did, and whether its result was kept.

    ``options`` are those of the recipe, ``frozen_from`` the epoch from which scales of activations
    were left as they are. ``steps`` of ``runs_a_step`` runs on ``devices`` made ``epochs``, on
    ``trained`` runs of ``source``. ``chosen_on`` runs held back chose ``best_epoch`` (0: none was
    better than the file before), ``judged_on`` others judged it: ``before`` and ``after`` are the
    loss of the outputs there, ``worse_by`` the 95 % interval of its increase. ``is_kept`` if that
    lies below zero as a whole. ``stayed`` says by node which weights were not learned, and why.
    """

    source: str
    options: dict[str, object]
    frozen_from: int
    accelerator: str
    devices: int
    loss_of: str
    trained: int
    runs_a_step: int
    steps: int
    epochs: tuple[EpochFacts, ...]
    chosen_on: int
    chosen_before: float
    best_epoch: int
    judged_on: int
    before: float
    after: float
    worse_by: Interval | None
    is_kept: bool
    stayed: dict[str, str] = {}

    @property
    def line(self) -> str:
        """For the list of steps."""
        what = f"{len(self.epochs)} epochs, {self.steps} steps on {self.trained} runs"
        if not self.best_epoch:
            return f"finetune: undone, no epoch beat the file before on held-back runs ({what})"
        effect = f"loss of the outputs {self.before:.4g} → {self.after:.4g}"
        between = ""
        if self.worse_by is not None:
            low, high = self.worse_by.low, self.worse_by.high
            between = f", a change of {low:.2g} to {high:.2g} at 95 %"
        effect += f"{between}, on {self.judged_on} held-back runs"
        if self.is_kept:
            return f"finetune: epoch {self.best_epoch} of {what}; {effect}"
        return f"finetune: undone, no better by the paired test: {effect} ({what})"
