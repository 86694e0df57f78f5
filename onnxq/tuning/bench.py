"""Carrying plans out: each becomes the very file that would ship, is judged, and is forgotten."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from onnxq.artifacts import Budgets, PlanTrial, QuantizedModel
from onnxq.errors import QuantizationError, StaleRecordError, TargetRuleError
from onnxq.graph import load_graph, load_model, macs_of
from onnxq.handoff.prediction import predict
from onnxq.progress import Progress
from onnxq.provenance import cpu_flags, versions
from onnxq.quantize.stage import quantize
from onnxq.runtime import latencies
from onnxq.sizes import external_files
from onnxq.store import atomic_folder, digest_of, load_record, save_record, sha256_of_file
from onnxq.target import Target
from onnxq.tuning.judging import Judge
from onnxq.tuning.plans import MixedPlan
from onnxq.tuning.subject import Subject
from onnxq.verify.fusion import config_for

__all__ = ["PlanBench", "Request"]

PLANS, TRIAL = "plans", "trial.json"
_TIMED_SAMPLES, _ROUNDS = 4, 8


@dataclass(frozen=True)
class Request:
    """What is wanted: ``metric`` at most ``limit`` worse than FP32, judged by its interval's end or
    by the point; within ``budgets``. Layers are measured on ``trial_samples`` samples."""

    metric: str
    unit: str
    limit: float
    by: Literal["point", "bound"]
    budgets: Budgets
    trial_samples: int = 8


class PlanBench:
    """Plans and what they gave, by name; each trial is a folder, put in place whole or not."""

    def __init__(
        self, folder: Path, subject: Subject, judge: Judge, wanted: Request, progress: Progress
    ) -> None:
        self.trials: dict[str, PlanTrial] = {}
        self.plans: dict[str, MixedPlan] = {}
        self.fp32_bytes = _bytes(subject.model)
        self._folder, self._subject, self._judge = folder / PLANS, subject, judge
        self._wanted, self._progress = wanted, progress
        self._made_by = {
            "fp32": sha256_of_file(subject.model),
            "calibration": subject.calibration.model_dump(mode="json"),
            "samples": judge.samples.digest,
            "wanted": [wanted.metric, wanted.limit, wanted.by],
            "budgets": wanted.budgets.model_dump(mode="json"),
            "target": subject.target.model_dump(mode="json"),
            "packages": versions(),
            "cpu": cpu_flags(),
        }

    def run(self, plan: MixedPlan) -> PlanTrial:
        """The trial of ``plan``, from its folder if there is one.

        A plan that cannot be carried out (a range that was not calibrated, bits that the target
        refuses) is a trial too, with the reason.
        """
        section = plan.section(self._subject.section)
        key = digest_of({**self._made_by, "section": section.model_dump(mode="json")})
        place = self._folder / key[:32]
        if (place / TRIAL).exists():
            known = load_record(PlanTrial, place / TRIAL)
            if known.key != key:
                raise StaleRecordError("is of another plan", where=str(place), do="remove it")
            trial = known.model_copy(update={"name": plan.name})
        else:
            with atomic_folder(place, TRIAL) as work:
                trial = self._measured(plan, key, work)
                save_record(trial, work / TRIAL)
        self.trials[plan.name], self.plans[plan.name] = trial, plan
        return trial

    def _measured(self, plan: MixedPlan, key: str, work: Path) -> PlanTrial:
        subject, file = self._subject, work / "int8.onnx"
        base = PlanTrial(
            key=key,
            name=plan.name,
            nodes=dict(plan.nodes),
            steps=plan.steps,
            verdict="not possible",
        )
        try:
            record = quantize(
                subject.model,
                subject.calibration,
                subject.target,
                plan.section(subject.section),
                file,
                samples=subject.samples if plan.steps else None,
                progress=self._progress,
            )
        except (QuantizationError, StaleRecordError, TargetRuleError) as fault:
            return base.model_copy(update={"reason": str(fault)})
        judged = self._judge.judge(
            file, subject.target, self._wanted.limit, self._wanted.by, self._progress
        )
        trial = base.model_copy(
            update={
                "verdict": judged.verdict,
                "size_bytes": _bytes(file),
                "size_ratio": _bytes(file) / self.fp32_bytes,
                "increase": judged.increase,
                "interval": judged.interval,
                "samples": judged.samples,
                "of_samples": len(self._judge.samples),
                "hardware_macs": _hardware_macs(file, record, plan, subject.target),
                "latency_ratio": self._latency(file),
            }
        )
        for each in work.iterdir():  # what remains is the record: the plan makes the file again
            each.unlink()
        return trial.model_copy(update={"broken": _broken(trial, self._wanted.budgets)})

    def _latency(self, file: Path) -> float | None:
        """Median over FP32's, in turns with it; only where it is limited."""
        if self._wanted.budgets.max_latency_ratio is None:
            return None
        subject = self._subject
        rows = [
            subject.samples.batch(index * subject.batch, subject.batch)
            for index in range(min(_TIMED_SAMPLES, len(subject.samples) // subject.batch))
        ]
        files = [(subject.model, dict[str, str]()), (file, config_for(subject.target))]
        fp32, mine = np.median(latencies(files, rows, _ROUNDS), axis=1)
        return float(mine / fp32)


def _bytes(model: Path) -> int:
    files = (model, *(model.parent / name for name in external_files(model)))
    return sum(file.stat().st_size for file in files)


def _hardware_macs(
    file: Path, record: QuantizedModel, plan: MixedPlan, target: Target
) -> float | None:
    """Share of the multiply–accumulates on integer units of the target: predicted from its profile
    where a compiler decides; else those of the nodes with 8-bit activations."""
    if target.judged_as == "graph":
        shares = predict(load_model(file), target, file_name=file.name).shares
        return sum(share.share for share in shares if share.runs == "hardware")
    macs = {str(node.name): macs_of(node) for node in load_graph(file).graph}
    total = sum(macs.values())
    wide = {name for name, bits in plan.nodes.items() if bits == "int16"}
    mine = sum(macs.get(name, 0) for name in record.quantized_nodes if name not in wide)
    return mine / total if total else None


def _broken(trial: PlanTrial, budgets: Budgets) -> tuple[str, ...]:
    """The budgets that a trial does not keep."""
    limits = (
        ("--max-bytes", budgets.max_bytes, trial.size_bytes, 1),
        ("--max-latency-ratio", budgets.max_latency_ratio, trial.latency_ratio, 1),
        ("--min-hardware-macs", budgets.min_hardware_macs, trial.hardware_macs, -1),
    )
    return tuple(
        name
        for name, limit, found, sign in limits
        if limit is not None and (found is None or sign * found > sign * limit)
    )
