"""A quantized file against FP32 on the metric, sample by sample, until the interval is settled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from onnxq.artifacts import Interval
from onnxq.errors import DataError
from onnxq.paired import paired_interval
from onnxq.progress import Progress, silent
from onnxq.runtime import Session, in_parallel
from onnxq.samples import Samples
from onnxq.target import Target
from onnxq.verify.gate import metric_named
from onnxq.verify.metrics import Task

__all__ = ["Judge", "Judged"]

_LOOKS = (0.125, 0.25, 0.5, 1.0)  # shares of the samples after which the interval is looked at
_EARLY = 1.5  # by how much an interval is wider at an earlier look than the last
PerSample = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Judged:
    """By how much a file is worse than FP32 on the first ``samples`` samples, and the verdict."""

    verdict: Literal["passed", "failed", "not settled"]
    increase: float
    interval: Interval | None
    samples: int


class Judge:
    """Holds FP32's answers on ``samples``, shuffled once so that each beginning stands for all."""

    def __init__(
        self, fp32: Path, samples: Samples, task: Task, metric: str, progress: Progress = silent
    ) -> None:
        """Without labels FP32's answers are the truth. Raises DataError for fewer than two samples,
        RecipeError for a metric without a value per sample."""
        if len(samples) < 2:
            raise DataError("fewer than two samples", where=samples.name, do="give more samples")
        order = np.random.default_rng(0).permutation(len(samples))
        self.samples = samples.take(order)
        self._task, self._metric = task, metric_named(task, metric)
        exact = self._predict(Session(fp32, optimization="none"), 0, len(samples), progress)
        labels = self.samples.labels
        self.truth: Literal["labels", "FP32"] = "FP32" if labels is None else "labels"
        self._labels = task.as_labels(exact) if labels is None else labels
        self._exact = self._per_sample(exact, self._labels)

    def judge(
        self,
        file: Path,
        target: Target,
        limit: float,
        by: Literal["point", "bound"] = "bound",
        progress: Progress = silent,
    ) -> Judged:
        """The verdict on ``file`` as ``target`` judges it: passed if the whole interval (or, by the
        point, the point) is within ``limit``.

        The interval is looked at after an eighth, a quarter and half of the samples too, and is
        then taken 1.5 times as wide, as looking often finds more than there is; if even so it lies
        on one side of the limit, no more samples are run.
        """
        options = target.session_options
        session = Session(file, optimization=target.judged_level, config=options)
        worse = np.zeros(0)
        groups = self.samples.groups
        ends = sorted({max(2, round(share * len(self.samples))) for share in _LOOKS})
        for end in ends:
            predicted = self._predict(session, len(worse), end, progress)
            rows = slice(len(worse), end)
            values = self._per_sample(predicted, self._labels[rows])
            sign = 1.0 if self._metric.better == "lower" else -1.0
            worse = np.concatenate([worse, sign * (values - self._exact[rows])])
            is_last = end == len(self.samples)
            point = float(worse.mean())
            interval = paired_interval(
                worse, None if groups is None else groups[:end], proportions=self._is_share
            )
            verdict = _verdict(point, interval, limit, by, is_last=is_last)
            if is_last or verdict != "not settled":
                break
        return Judged(verdict, point, interval, end)

    @property
    def _is_share(self) -> bool:
        return bool(np.isin(self._exact, (0.0, 1.0)).all()) and self._metric.unit == "share"

    def _predict(
        self, session: Session, first: int, end: int, progress: Progress
    ) -> Float[np.ndarray, "n ..."]:
        found = in_parallel(lambda i: session.run(self.samples.row(first + i)), end - first)
        rows = list(progress(found, "judging", end - first))
        return self._task.predictions({k: np.concatenate([r[k] for r in rows]) for k in rows[0]})

    def _per_sample(
        self, predictions: Float[np.ndarray, "n ..."], labels: Shaped[np.ndarray, " n"]
    ) -> PerSample:
        if self._metric.per_sample is None or self._metric.better == "neither":
            raise DataError(
                f"`{self._metric.name}` has no value per sample", where="tune", do="use mae or top1"
            )
        return self._metric.per_sample(predictions, labels)


def _verdict(
    point: float, interval: Interval | None, limit: float, by: str, *, is_last: bool
) -> Literal["passed", "failed", "not settled"]:
    if not np.isfinite(point):
        return "failed"
    if is_last and by == "point":
        return "passed" if point <= limit else "failed"
    if interval is None:
        return "not settled"
    wider = 1.0 if is_last else _EARLY
    if point + wider * (interval.high - point) <= limit:
        return "passed"
    return "failed" if point - wider * (point - interval.low) > limit else "not settled"
