"""Gates: is what was measured allowed? Passed, failed, or an honest "cannot tell yet"."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from onnxq.artifacts import Comparison, GateResult, Interval, Verdict
from onnxq.errors import RecipeError, nearest
from onnxq.recipe import Gate, VerifySection
from onnxq.samples import Samples
from onnxq.verify.compare import more_units_needed, paired_interval, paired_point
from onnxq.verify.metrics import Metric, Task

__all__ = ["AT_CHANCE", "judge", "judge_all", "metric_named", "overall", "worse_by"]

AT_CHANCE = "fp32-at-chance"  # the waiver that lets a useless FP32 model be judged
_DISTANCE = "_to_fp32"
Predictions = Mapping[str, Float[np.ndarray, "n *output"]]


def metric_named(task: Task, name: str) -> Metric:
    """The task's metric called ``name``. Raises RecipeError with the nearest name."""
    known = {metric.name: metric for metric in task.metrics}
    if name not in known:
        raise RecipeError(f"no metric `{name}`; {nearest(name, known)}", where="verify: gate")
    return known[name]


def worse_by(
    metric: Metric, predictions: Predictions, labels: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """By how much INT8 is worse than FP32 on every sample, in the metric's unit.

    Raises RecipeError if the metric is no mean over samples (RMSE, R²).
    """
    if metric.per_sample is None or metric.better == "neither":
        raise RecipeError(
            f"`{metric.name}` is no mean over samples and cannot be gated",
            where="verify: gate",
            do="gate a metric that has one value per sample, such as mae or top1",
        )
    difference = metric.per_sample(predictions["int8"], labels) - metric.per_sample(
        predictions["fp32"], labels
    )
    return np.asarray(difference if metric.better == "lower" else -difference)


def _distance(metric: Metric, task: Task, predictions: Predictions) -> Float[np.ndarray, " n"]:
    """The metric of INT8 on every sample, were FP32's predictions the truth."""
    if metric.per_sample is None:
        raise RecipeError(
            f"`{metric.name}` has no value per sample", where="verify: gate", do="use mae or top1"
        )
    agreement = metric.per_sample(predictions["int8"], task.as_labels(predictions["fp32"]))
    return agreement if metric.better == "lower" else 1 - agreement


def judge_all(
    section: VerifySection, task: Task, predictions: Predictions, samples: Samples
) -> tuple[GateResult, ...]:
    """Judge every gate of the section. ``samples`` must have labels."""
    labels = samples.labels
    if labels is None:
        raise ValueError("gates need labels")
    results = []
    for gate in section.gate:
        if gate.max is not None:
            metric = metric_named(task, gate.metric.removesuffix(_DISTANCE))
            values = _distance(metric, task, predictions)
            statement = f"distance to FP32 ({metric.name}, {metric.unit})"
        else:
            metric = metric_named(task, gate.metric)
            values = worse_by(metric, predictions, labels)
            statement = f"increase of {metric.name} ({metric.unit})"
            if metric.better == "higher":
                statement = f"drop of {metric.name} ({metric.unit})"
        interval = paired_interval(values, samples.groups)
        results.append(judge(gate, statement, paired_point(values, samples.groups), interval))
    return tuple(results)


def judge(gate: Gate, statement: str, point: float, interval: Interval | None) -> GateResult:
    """Compare the point, or both ends of the interval, with the gate's limit.

    By the bound: passed if the whole interval is allowed, failed if none of it is, inconclusive if
    the limit lies inside or no interval can be given. A figure that is not finite fails.
    """
    limit = gate.max if gate.max is not None else gate.max_increase
    if limit is None:
        raise ValueError("a gate has a limit")
    verdict, needs = _compare(gate, limit, point, interval)
    return GateResult(
        metric=gate.metric,
        statement=statement,
        allowed=limit,
        point=point,
        bound=None if interval is None else interval.high,
        judge=gate.judge,
        verdict=verdict,
        needs=needs,
    )


def _compare(
    gate: Gate, limit: float, point: float, interval: Interval | None
) -> tuple[Verdict, str]:
    if not math.isfinite(point):
        return "failed", "the figure is not a finite number"
    if gate.judge == "point":
        return ("passed" if point <= limit else "failed"), ""
    if interval is None:
        return "inconclusive", "one group or sample tells nothing of the spread: give more"
    if not interval.low <= limit < interval.high:
        return ("passed" if interval.high <= limit else "failed"), ""
    more = more_units_needed(interval, point, limit)
    if more is None:
        return "inconclusive", "the point lies on the limit: no number of samples would settle it"
    return "inconclusive", f"about {more} more {interval.units} would settle it"


def overall(
    gates: Sequence[GateResult],
    comparison: Comparison,
    *,
    made_up: bool,
    waived: Collection[str] = (),
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict and its reasons.

    Random calibration data make a model unverified whatever its gates say, and an FP32 model that
    does not beat the baseline is not judged, unless that is waived by name.
    """
    if made_up:
        return "unverified", ("calibrated on random numbers: the ranges mean nothing",)
    headline = comparison.metrics[0]
    if AT_CHANCE not in waived and not _beats_baseline(comparison):
        return "inconclusive", (
            f"FP32 does not beat the baseline: {headline.metric} {headline.fp32:.4g} against "
            f"{headline.baseline:.4g} {headline.unit} of a model that has learned nothing; "
            f"what INT8 adds to that says nothing (waive by name: {AT_CHANCE})",
        )
    for verdict in ("failed", "inconclusive"):
        found = [gate for gate in gates if gate.verdict == verdict]
        if found:
            return verdict, tuple(_reason(gate) for gate in found)
    return "passed", tuple(_reason(gate) for gate in gates)


def _beats_baseline(comparison: Comparison) -> bool:
    row = comparison.metrics[0]
    if row.baseline is None or row.better == "neither":
        return True
    return row.fp32 < row.baseline if row.better == "lower" else row.fp32 > row.baseline


def _reason(gate: GateResult) -> str:
    bound = "" if gate.bound is None else f", at most {gate.bound:.3g} (95 %)"
    needs = f"; {gate.needs}" if gate.needs else ""
    return f"{gate.statement} is {gate.point:.3g}{bound}, allowed {gate.allowed:g}{needs}"
