"""Gates: is what was measured allowed? Passed, failed, or an honest "cannot tell yet"."""

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Shaped

from onnxq.artifacts import Comparison, GateResult, Interval, Verdict
from onnxq.errors import DataError, RecipeError, nearest
from onnxq.paired import more_units_needed, paired_interval, paired_point
from onnxq.recipe import Gate, VerifySection
from onnxq.samples import Samples
from onnxq.verify.metrics import Metric, Task

__all__ = ["AT_CHANCE", "judge", "judge_all", "metric_named", "overall", "paired_increase"]

AT_CHANCE = "fp32-at-chance"  # the waiver that lets a useless FP32 model be judged
_DISTANCE = "_to_fp32"
Predictions = Mapping[str, Float[np.ndarray, "n *output"]]
PerSample = Float[np.ndarray, " n"]


def metric_named(task: Task, name: str) -> Metric:
    """The task's metric called ``name``. Raises RecipeError with the nearest name."""
    known = {metric.name: metric for metric in task.metrics}
    if name not in known:
        raise RecipeError(f"no metric `{name}`; {nearest(name, known)}", where="verify: gate")
    return known[name]


def paired_increase(
    metric: Metric, predictions: Predictions, samples: Samples
) -> tuple[float, Interval | None]:
    """By how much INT8 is worse than FP32, in the metric's unit, with its interval.

    Raises RecipeError if the metric is no mean over samples (RMSE, R²).
    """
    if metric.per_sample is None or metric.better == "neither":
        raise RecipeError(
            f"`{metric.name}` is no mean over samples and cannot be gated",
            where="verify: gate",
            do="gate a metric that has one value per sample, such as mae or top1",
        )
    labels = _labels(samples)
    return _pair(
        metric,
        metric.per_sample(predictions["fp32"], labels),
        metric.per_sample(predictions["int8"], labels),
        samples,
    )


def _paired_distance(
    metric: Metric, task: Task, predictions: Predictions, samples: Samples
) -> tuple[float, Interval | None]:
    """How far INT8 is from FP32 in the metric, were FP32's predictions the truth."""
    if metric.per_sample is None or metric.better == "neither":
        raise RecipeError(
            f"`{metric.name}` has no value per sample", where="verify: gate", do="use mae or top1"
        )
    truth = task.as_labels(predictions["fp32"])
    return _pair(
        metric,
        metric.per_sample(predictions["fp32"], truth),
        metric.per_sample(predictions["int8"], truth),
        samples,
    )


def _pair(
    metric: Metric, fp32: PerSample, int8: PerSample, samples: Samples
) -> tuple[float, Interval | None]:
    with np.errstate(invalid="ignore"):  # inf − inf is NaN, and a gate on NaN fails
        worse_by = int8 - fp32 if metric.better == "lower" else fp32 - int8
    proportions = bool(np.isin(fp32, (0.0, 1.0)).all() and np.isin(int8, (0.0, 1.0)).all())
    interval = paired_interval(worse_by, samples.groups, proportions=proportions)
    return paired_point(worse_by), interval


def _labels(samples: Samples) -> Shaped[np.ndarray, " n"]:
    if samples.labels is None:
        raise DataError("has no labels", where=samples.name, do="put `labels` beside the inputs")
    return samples.labels


def judge_all(
    section: VerifySection, task: Task, predictions: Predictions, samples: Samples
) -> tuple[GateResult, ...]:
    """Judge every gate of the section.

    Raises DataError without labels, RecipeError for a metric that cannot be gated, and for a limit
    on a share that allows everything.
    """
    results = []
    for gate in section.gate:
        if gate.max is not None:
            metric = metric_named(task, gate.metric.removesuffix(_DISTANCE))
            point, interval = _paired_distance(metric, task, predictions, samples)
            statement = f"distance to FP32 ({metric.name}, {metric.unit})"
        else:
            metric = metric_named(task, gate.metric)
            point, interval = paired_increase(metric, predictions, samples)
            statement = f"increase of {metric.name} ({metric.unit})"
            if metric.better == "higher":
                statement = f"drop of {metric.name} ({metric.unit})"
        result = judge(gate, statement, point, interval)
        _refuse_idle_limit(result, metric)
        results.append(result)
    return tuple(results)


def _refuse_idle_limit(result: GateResult, metric: Metric) -> None:
    """A share cannot get worse by 1 or more: such a limit was meant in percent."""
    if metric.unit == "share" and result.allowed >= 1:
        raise RecipeError(
            f"a limit of {result.allowed:g} allows everything, as `{metric.name}` is a share",
            where=f"verify: gate: {result.metric}",
            do=f"for {result.allowed:g} percentage points write {result.allowed / 100:g}",
        )


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
        return "inconclusive", "the point lies so near the limit that no number would settle it"
    return "inconclusive", f"about {_rounded_up(more):,} more {interval.units} would settle it"


def _rounded_up(count: int) -> int:
    """Up to two significant digits: the number is an estimate and should look like one."""
    unit = 10 ** max(len(str(count)) - 2, 0)
    return int(-(-count // unit) * unit)


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
    known = gate.bound is not None and math.isfinite(gate.bound)
    bound = f", at most {gate.bound:.3g} (95 %)" if known else ""
    needs = f"; {gate.needs}" if gate.needs else ""
    point = f"{gate.point:.3g}" if math.isfinite(gate.point) else "not a number"
    return f"{gate.statement} is {point}{bound}, allowed {gate.allowed:g}{needs}"
