"""The refine step ``finetune``: the whole graph is trained, rounding and all, to answer better."""

import hashlib
import os
import pickle
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from lightning_fabric import Fabric

from onnxq.artifacts import FineTuning
from onnxq.errors import UsageError, nearest
from onnxq.paired import paired_interval
from onnxq.plugins import is_reference, source_files
from onnxq.provenance import versions
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.quantize.training.blocks import blocks_of
from onnxq.quantize.training.graph import TrainingGraph
from onnxq.quantize.training.lessons import Lessons, lessons_of, refuse_missing_labels, spooled
from onnxq.quantize.training.loop import Job, Judge, Trained, train, train_elsewhere
from onnxq.quantize.training.losses import are_probabilities
from onnxq.quantize.training.means import Means
from onnxq.quantize.training.student import Student
from onnxq.recipe import FinetuneSection
from onnxq.store import digest_of, sha256_of_source

__all__ = ["Finetuned", "finetune"]

_MEASURED = 32  # runs that FP32's powers are measured on


@dataclass(frozen=True)
class Finetuned:
    """The draft that ships, the record, and the graph that was trained, if it was kept."""

    draft: Draft
    record: FineTuning
    trained: TrainingGraph | None


def finetune(
    draft: Draft, evidence: Evidence, options: FinetuneSection, means: Means | None = None
) -> Finetuned:
    """The draft after training as ``options`` say, if it is better than ``draft``; else that.

    Weights (in steps of their grids), biases and scales of activations of the Q/DQ form learn by
    AdamW from the loss of the labels, the distance to FP32, or both; the straight-through estimator
    passes rounding, the gradient of a scale is LSQ's. After every epoch the file as it would be
    written is measured on runs held back (``lessons_of``); the best epoch is then judged on other
    runs held back. It is kept if the 95 % interval of the paired difference to ``draft`` lies below
    zero. Processes share the work by averaging gradients: with n ``devices`` an iteration has n
    times ``batch`` samples.

    Raises DataError for labels that are missing or do not fit, UsageError for more devices than
    there are or a tensor that is not there, QuantizationError as ``lessons_of`` and ``Student`` do,
    and where the loss or a gradient is not finite: it names epoch, step and layer.
    Source: Esser et al. 2020, arXiv 1902.08153 (scales); Hinton et al. 2015, arXiv 1503.02531
    (distillation); Loshchilov & Hutter 2019, arXiv 1711.05101 (AdamW).
    """
    means = means or Means()
    accelerator = _accelerator_of(options.devices)
    lessons = lessons_of(evidence, means.training)
    if options.task_loss is not None:
        for runs in (lessons.training, lessons.judging):
            refuse_missing_labels(runs)
    job = _job(draft, evidence, options, means, lessons)
    trained = _launched(job, evidence, accelerator)
    if trained.fault is not None:
        raise trained.fault
    student = Student(draft, options.learn)
    if trained.best:
        student.move_to({name: torch.from_numpy(array) for name, array in trained.best.items()})
    better = student.settle()
    judge = Judge(lessons.judging, evidence.original, job.objective)
    before, after = (judge.losses(each.quantized()) for each in (draft, better))
    interval = None
    if trained.best:
        interval = paired_interval(after - before, lessons.judging.groups)
    is_kept = interval is not None and interval.high < 0
    record = FineTuning(
        source=lessons.training.samples.name,
        options=options.model_dump(mode="json"),
        frozen_from=options.frozen_from,
        accelerator=accelerator,
        devices=options.devices,
        loss_of=job.objective.text,
        trained=len(lessons.training),
        runs_a_step=options.batch * options.devices,
        steps=trained.steps,
        epochs=trained.state.epochs,
        chosen_on=len(lessons.choosing),
        chosen_before=trained.before,
        best_epoch=trained.state.best,
        judged_on=len(lessons.judging),
        before=float(before.mean()),
        after=float(after.mean()),
        worse_by=interval,
        is_kept=is_kept,
        stayed=student.stayed,
    )
    if not is_kept:
        return Finetuned(draft, record, None)
    student.requires_grad_(requires_grad=False).place()
    return Finetuned(better, record, student.graph)


def _accelerator_of(devices: int) -> str:
    """CUDA where it is, else the CPU, a process a core. Raises UsageError if there are fewer."""
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    there = torch.cuda.device_count() if accelerator == "cuda" else os.cpu_count() or 1
    if devices > there:
        what = "CUDA devices" if accelerator == "cuda" else "processor cores, and no CUDA device"
        raise UsageError(
            f"{devices} devices are asked for, and there are {there} {what}",
            where="quantize: finetune: devices",
            do=f"ask for {there} at most",
        )
    return accelerator


def _job(
    draft: Draft, evidence: Evidence, options: FinetuneSection, means: Means, lessons: Lessons
) -> Job:
    teacher = TorchGraph(evidence.original)
    inside = _weights_of_blocks(draft, options)
    outputs = [value.name for value in evidence.original.graph.output]
    squares: dict[str, list[float]] = {name: [] for name in (*outputs, *inside)}
    probabilities = False
    for index in range(min(_MEASURED, len(lessons.training))):
        found = teacher.run(lessons.training.inputs(index), tuple(inside))
        for name, values in squares.items():
            values.append(float(np.square(found[name].astype(np.float64)).mean()))
        if index == 0 and len(outputs) == 1:
            probabilities = are_probabilities(torch.from_numpy(found[outputs[0]]))
    return Job(
        graph=ir.to_proto(draft.graph),
        plan=draft.plan,
        target=draft.target,
        narrow=draft.narrow,
        original=evidence.original,
        options=options,
        lessons=lessons,
        loss_weights=inside,
        powers={name: float(np.mean(values)) for name, values in squares.items()},
        probabilities=probabilities,
        search=means.search,
        kept=means.kept,
        fingerprint=_fingerprint(draft, evidence, options, means) if means.kept else "",
    )


def _weights_of_blocks(draft: Draft, options: FinetuneSection) -> dict[str, float]:
    """The weights of tensors inside, by name. Raises UsageError for one that ends no block."""
    outputs = {str(value.name) for value in draft.graph.graph.outputs}
    ends = [name for block in blocks_of(draft) for name in block.outputs if name not in outputs]
    asked = options.distill.blocks
    if isinstance(asked, dict):
        for name in asked:
            if name not in ends:
                raise UsageError(
                    f"no block ends at a tensor `{name}`",
                    where="quantize: finetune: distill: blocks",
                    do=nearest(name, ends) if ends else "leave it out: the graph is one block",
                )
        return {name: weight for name, weight in asked.items() if weight > 0}
    return dict.fromkeys(ends, asked / len(ends)) if asked > 0 and ends else {}


def _launched(job: Job, evidence: Evidence, accelerator: str) -> Trained:
    devices = job.options.devices
    if devices == 1:
        fabric = Fabric(accelerator=accelerator, devices=1)
        return train(fabric, job, evidence.progress)
    with tempfile.TemporaryDirectory() as folder:
        lessons = Lessons(
            *(
                spooled(runs, Path(folder) / what)
                for what, runs in (
                    ("training", job.lessons.training),
                    ("choosing", job.lessons.choosing),
                    ("judging", job.lessons.judging),
                )
            )
        )
        fabric = Fabric(accelerator=accelerator, devices=devices, strategy="ddp_spawn")
        packed = pickle.dumps(replace(job, lessons=lessons))
        trained: Trained = pickle.loads(fabric.launch(train_elsewhere, packed))  # type: ignore[arg-type]  # it hands on what else it is given
        return trained


def _fingerprint(draft: Draft, evidence: Evidence, options: FinetuneSection, means: Means) -> str:
    """Digest of all that decides the bits of a training."""
    models = [ir.to_proto(draft.graph), draft.quantized(), evidence.original]
    code: tuple[Path, ...] = ()
    if options.task_loss is not None and is_reference(options.task_loss):
        code = source_files(options.task_loss, means.search)
    facts = {
        "models": [_digest(model) for model in models],
        "options": options.model_dump(mode="json"),
        "narrow": draft.narrow,
        "calibration": evidence.samples.digest,
        "training": means.training.digest if means.training is not None else None,
        "code": sha256_of_source(Path(__file__).parent.parent, *code),
        "packages": versions() | {"torch": str(torch.__version__)},
    }
    return digest_of(facts)


def _digest(model: onnx.ModelProto) -> str:
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
