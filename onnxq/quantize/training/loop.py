"""Epoch after epoch, in one process or in several that average their gradients."""

import math
import os
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from onnxq.artifacts import EpochFacts
from onnxq.errors import OnnxqError, QuantizationError
from onnxq.progress import Progress, silent
from onnxq.quantize.draft import Draft
from onnxq.quantize.plan import Plan
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.quantize.training.checkpoint import State, keep, kept
from onnxq.quantize.training.lessons import Lessons, Runs
from onnxq.quantize.training.losses import Objective, task_loss
from onnxq.quantize.training.reconstruction import joined, joins
from onnxq.quantize.training.schedule import learning_rate_at, order_of, steps_of_epoch
from onnxq.quantize.training.student import Student
from onnxq.recipe import FinetuneSection
from onnxq.runtime import Session, in_parallel
from onnxq.target import Target

__all__ = ["Job", "Judge", "Trained", "train", "train_elsewhere"]

Array = Shaped[np.ndarray, "..."]
_DECAY = 0.01  # of the way back to where training began, each time the rate adds up to 1
_MEASURED = 32  # runs that the loss at the beginning, and FP32's powers, are measured on


@dataclass(frozen=True)
class Job:
    """All that a process needs to train: the draft in parts that travel, the teacher, the data.

    ``loss_weights`` are those of tensors inside; ``kept`` is where the state of every epoch goes,
    under ``fingerprint``; ``probabilities`` says what the outputs are, for a cross-entropy.
    """

    graph: onnx.ModelProto
    plan: Plan
    target: Target
    narrow: bool
    original: onnx.ModelProto
    options: FinetuneSection
    lessons: Lessons
    loss_weights: Mapping[str, float]
    powers: Mapping[str, float]
    probabilities: bool
    search: Path | None
    kept: Path | None
    fingerprint: str

    @property
    def draft(self) -> Draft:
        """The draft that training starts from."""
        return Draft(ir.from_proto(self.graph), self.plan, self.target, self.narrow)

    @property
    def objective(self) -> Objective:
        """What is made small."""
        options = self.options
        task = None
        if options.task_loss is not None:
            task = task_loss(options.task_loss, self.search, probabilities=self.probabilities)
        outputs = tuple(value.name for value in self.original.graph.output)
        return Objective(
            options.distill, self.powers, outputs, self.loss_weights, task, options.task_weight
        )


@dataclass
class Trained:
    """The best epoch's offsets (none if ``best`` is 0), and the course of training; ``fault`` is
    what ended it."""

    state: State
    steps: int = 0
    before: float = 0.0
    fault: OnnxqError | None = None
    best: dict[str, Array] = field(default_factory=dict)


class Judge:
    """The losses of files on some runs, by what ONNX Runtime answers, operator by operator."""

    def __init__(self, runs: Runs, original: onnx.ModelProto, objective: Objective) -> None:
        self._runs, self._objective = runs, objective
        session = Session(original.SerializeToString(), optimization="none")
        self._exact = list(in_parallel(lambda i: session.run(runs.inputs(i)), len(runs)))

    def losses(self, model: onnx.ModelProto) -> Float64[np.ndarray, " runs"]:
        """Of a Q/DQ form, run by run: the part of the objective that speaks of outputs."""
        session = Session(model.SerializeToString(), optimization="none")

        def loss(index: int) -> float:
            found = session.run(self._runs.inputs(index))
            answers, exact = (_tensors(each) for each in (found, self._exact[index]))
            return float(self._objective.judged(answers, exact, self._runs.labels(index)))

        return np.array(list(in_parallel(loss, len(self._runs))), np.float64)


def train(fabric: Any, job: Job, progress: Progress = silent) -> Trained:
    """Train, as one of the processes that ``fabric`` has; the first one judges, and keeps states.

    What goes wrong comes back as ``fault``, as other processes cannot raise it here.
    """
    if fabric.world_size > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // fabric.world_size))
    try:
        return _Training(fabric, job, progress).run()
    except OnnxqError as fault:
        return Trained(State(math.nan), fault=fault)


def train_elsewhere(fabric: Any, job: bytes) -> bytes:
    """``train`` in a process of its own: job and result are packed as processes exchange them."""
    return pickle.dumps(train(fabric, pickle.loads(job)))


class _Training:
    def __init__(self, fabric: Any, job: Job, progress: Progress) -> None:
        self.fabric, self.job, self.options = fabric, job, job.options
        self.progress = progress
        self.runs = job.lessons.training
        self.student = Student(job.draft, self.options.learn).to(fabric.device)
        self.teacher = TorchGraph(job.original).requires_grad_(requires_grad=False)
        self.teacher = self.teacher.to(fabric.device)
        self.objective = job.objective
        self.inside = tuple(job.loss_weights)
        first = [self._inputs(index) for index in range(min(2, len(self.runs)))]
        self.joins = joins(self.teacher, first) if len(first) > 1 else False
        self.per_step = self.options.batch * fabric.world_size
        self.per_epoch = steps_of_epoch(len(self.runs), self.per_step)
        self.optimizer = torch.optim.AdamW(
            [{"params": [each]} for each in self.student.offsets()],
            lr=self.options.learning_rate,
            weight_decay=_DECAY,
        )
        self.judge = None
        if fabric.global_rank == 0:
            self.judge = Judge(job.lessons.choosing, job.original, self.objective)
        self.unit = self._first_loss()

    def run(self) -> Trained:
        """All epochs that are left to do."""
        before = self._chosen_by()
        state = None
        if self.job.kept is not None:
            state = kept(self.job.kept, self.job.fingerprint)
        state = state or State(before)
        self._take(state)
        best = {name: t for name, t in state.tensors.items() if name.startswith("best ")}
        for epoch in self._shown(len(state.epochs) + 1):
            facts = self._epoch(epoch)
            if self.judge is None:
                continue
            if facts.chosen < state.least:
                state.least, state.best = facts.chosen, epoch
                best = {f"best {name}": t for name, t in self.student.moved().items()}
            state.epochs = (*state.epochs, facts)
            state.tensors = {**self._now(), **best}
            if self.job.kept is not None:
                keep(self.job.kept, self.job.fingerprint, state)
        found = {name.removeprefix("best "): t.numpy() for name, t in best.items()}
        state.tensors = {}
        return Trained(state, self.per_epoch * self.options.epochs, before, best=found)

    def _shown(self, first: int) -> Iterator[int]:
        last = self.options.epochs
        yield from self.progress(range(first, last + 1), "fine-tuning", last - first + 1)

    def _epoch(self, epoch: int) -> EpochFacts:
        options = self.options
        is_rounded = epoch > options.warm_up
        scales_learn = is_rounded and epoch < options.frozen_from and "scales" in options.learn
        total = self.per_epoch * options.epochs
        began = (epoch - 1) * self.per_epoch
        losses, longest = [], 0.0
        order = order_of(epoch, options.seed, len(self.runs), self.per_step)
        for number, together in enumerate(order):
            rate = learning_rate_at(began + number, total, options.learning_rate)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            where = f"finetune, epoch {epoch}, step {number + 1} of {self.per_epoch}"
            loss, length = self._step(together, where, is_rounded=is_rounded, scales=scales_learn)
            losses.append(loss)
            longest = max(longest, length)
        mean = torch.tensor(float(np.mean(losses)), device=self.fabric.device)
        return EpochFacts(
            epoch=epoch,
            learning_rate=learning_rate_at(began, total, options.learning_rate),
            is_rounded=is_rounded,
            scales_learn=scales_learn,
            loss=float(self.fabric.all_reduce(mean, reduce_op="mean")),
            gradient=longest,
            chosen=self._chosen_by(),
        )

    def _step(
        self, together: Int64[np.ndarray, " runs"], where: str, *, is_rounded: bool, scales: bool
    ) -> tuple[float, float]:
        """One iteration over this process's share of the runs; loss, and length of the gradient."""
        mine = together[self.fabric.global_rank :: self.fabric.world_size]
        self.optimizer.zero_grad(set_to_none=True)
        groups = [mine.tolist()] if self.joins else [[run] for run in mine.tolist()]
        total = 0.0
        for group in groups:
            loss = self._loss(group, is_rounded=is_rounded) / self.unit * (len(group) / len(mine))
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            total += float(loss.detach())
        if not scales:
            for offset in self.student.offsets(["scales"]):
                offset.grad = None
        learning = [each for each in self.student.offsets() if each.grad is not None]
        length = self._averaged([each.grad for each in learning])
        if not math.isfinite(length) or not math.isfinite(total):
            self._stop(total, self._inputs_of(groups[0]), where, is_rounded=is_rounded)
        self.optimizer.step()
        return total, length

    def _averaged(self, gradients: Sequence[Tensor]) -> float:
        """Average over the processes, and shorten to ``clip``, in place; the length before."""
        flat = torch.cat([each.reshape(-1) for each in gradients])
        if self.fabric.world_size > 1:
            flat = self.fabric.all_reduce(flat, reduce_op="mean")
        length = float(torch.linalg.vector_norm(flat))
        flat = flat * min(1.0, self.options.clip / length) if length > 0 else flat
        parts = torch.split(flat, [each.numel() for each in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.reshape(gradient.shape))
        return length

    def _stop(
        self, loss: float, inputs: Mapping[str, Tensor], where: str, *, is_rounded: bool
    ) -> None:
        layer = self.student.first_bad_layer(inputs, rounded=is_rounded)
        begins = f"beginning at layer `{layer}`" if layer else "beginning in the loss itself"
        state = ""
        if self.job.kept is not None:
            state = f"; the state after the epoch before is kept in {self.job.kept}"
        what = f"the loss became {loss}" if not math.isfinite(loss) else "a gradient is not finite"
        raise QuantizationError(
            f"{what}, {begins}{state}",
            where=where,
            do="lower `finetune: learning_rate`, or check the labels and the loss",
        )

    def _loss(self, runs: Sequence[int], *, is_rounded: bool) -> Float[Tensor, ""]:
        inputs = self._inputs_of(runs)
        labels = [self.runs.labels(run) for run in runs]
        known = [each for each in labels if each is not None]
        label = torch.cat(known).to(self.fabric.device) if len(known) == len(runs) else None
        with torch.no_grad():
            exact = self.teacher(inputs, self.inside)
        found = self.student(inputs, self.inside, rounded=is_rounded)
        return self.objective.loss(found, exact, label)

    def _first_loss(self) -> float:
        """The loss before training, which all others are divided by."""
        count = min(len(self.runs), _MEASURED)
        with torch.no_grad():
            losses = [float(self._loss([run], is_rounded=True)) for run in range(count)]
        return max(float(np.mean(losses)), float(np.finfo(np.float32).tiny))

    def _chosen_by(self) -> float:
        """The mean loss of the file as it would be written, on the runs that choose; the first
        process measures."""
        if self.judge is None:
            return math.nan
        return float(self.judge.losses(self._settled().quantized()).mean())

    def _settled(self) -> Draft:
        if self.fabric.device.type == "cpu":
            return self.student.settle()
        here = Student(self.job.draft, self.options.learn)
        here.move_to(self.student.moved())
        return here.settle()

    def _inputs(self, run: int) -> dict[str, Tensor]:
        tensors = _tensors(self.runs.inputs(run))
        return {name: tensor.to(self.fabric.device) for name, tensor in tensors.items()}

    def _inputs_of(self, runs: Sequence[int]) -> dict[str, Tensor]:
        return joined([self._inputs(run) for run in runs])

    def _now(self) -> dict[str, Tensor]:
        """Offsets and the optimizer's moments."""
        found = {f"now {name}": tensor for name, tensor in self.student.moved().items()}
        for number, offset in enumerate(self.student.offsets()):
            for what, value in self.optimizer.state.get(offset, {}).items():
                found[f"{what} {number}"] = value.detach().cpu().clone()
        return found

    def _take(self, state: State) -> None:
        """Go on from a state that was kept."""
        if not state.tensors:
            return
        start = "now "
        self.student.move_to(
            {n.removeprefix(start): t for n, t in state.tensors.items() if n.startswith(start)}
        )
        for number, offset in enumerate(self.student.offsets()):
            for what in ("step", "exp_avg", "exp_avg_sq"):
                value = state.tensors.get(f"{what} {number}")
                if value is not None:
                    device = "cpu" if what == "step" else self.fabric.device
                    self.optimizer.state[offset][what] = value.to(device)


def _tensors(arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
