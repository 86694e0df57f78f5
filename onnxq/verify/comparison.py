"""FP32, rewritten FP32 and INT8 side by side, for every metric and for every group."""

import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped

from onnxq.artifacts import Comparison, GroupRow, MetricRow
from onnxq.samples import Samples
from onnxq.target import Target
from onnxq.verify.gate import paired_increase
from onnxq.verify.metrics import Metric, Task

__all__ = ["compare_models"]

Predictions = Mapping[str, Float[np.ndarray, "n *output"]]
Labels = Shaped[np.ndarray, " n"]


def compare_models(
    task: Task, predictions: Predictions, samples: Samples, target: Target
) -> Comparison:
    """Every metric under the variants ``fp32``, ``rewritten``, ``int8`` and ``int8_other``."""
    labels = samples.labels
    if labels is None:
        raise ValueError("a comparison needs labels")
    baseline = task.baseline(labels)
    rows = [_row(metric, predictions, samples, labels, baseline) for metric in task.metrics]
    groups = _groups(task.metrics[0], predictions, samples, labels)
    worst = max(groups, key=_hurt, default=None)
    numeric = np.issubdtype(labels.dtype, np.floating)
    return Comparison(
        source=samples.name,
        samples=len(samples),
        groups=len(groups),
        judged_as=target.judged_as,
        metrics=tuple(rows),
        by_group=groups,
        worst_group=worst.group if worst else None,
        label_low=float(labels.min()) if numeric else None,
        label_high=float(labels.max()) if numeric else None,
    )


def _hurt(row: GroupRow) -> float:
    """The increase, where a figure that is not a number is the worst there is."""
    return math.inf if math.isnan(row.increase) else row.increase


def _row(
    metric: Metric,
    predictions: Predictions,
    samples: Samples,
    labels: Labels,
    baseline: Float[np.ndarray, "n *output"],
) -> MetricRow:
    values = {name: metric.compute(predicted, labels) for name, predicted in predictions.items()}
    increase = values["int8"] - values["fp32"]
    interval = None
    if metric.per_sample is not None and metric.better != "neither":
        _, interval = paired_increase(metric, predictions, samples)
    return MetricRow(
        metric=metric.name,
        unit=metric.unit,
        better=metric.better,
        **values,
        increase={"lower": increase, "higher": -increase, "neither": None}[metric.better],
        interval=interval,
        baseline=None if metric.better == "neither" else metric.compute(baseline, labels),
    )


def _groups(
    metric: Metric, predictions: Predictions, samples: Samples, labels: Labels
) -> tuple[GroupRow, ...]:
    """The headline metric for every group, in order of name."""
    if samples.groups is None:
        return ()
    sign = -1.0 if metric.better == "higher" else 1.0
    rows = []
    for group in np.unique(samples.groups):
        chosen = samples.groups == group
        fp32, int8 = (
            metric.compute(predictions[variant][chosen], labels[chosen])
            for variant in ("fp32", "int8")
        )
        rows.append(
            GroupRow(
                group=str(group),
                samples=int(chosen.sum()),
                fp32=fp32,
                int8=int8,
                increase=sign * (int8 - fp32),
            )
        )
    return tuple(rows)
