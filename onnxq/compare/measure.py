"""Every model on the same samples: metrics paired with FP32 and with one another, bytes, time."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from scipy import stats

from onnxq.artifacts import (
    CandidateFacts,
    Interval,
    Latency,
    MetricOfModel,
    PairedRow,
    SideBySide,
)
from onnxq.calibrate.readers import refuse_overlap
from onnxq.compare.advice import advice
from onnxq.compare.candidates import Candidate
from onnxq.graph import load_model, values_of
from onnxq.paired import paired_interval
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.runtime import Session, in_parallel, latencies
from onnxq.sample_checks import check_samples
from onnxq.samples import Samples
from onnxq.sizes import external_files
from onnxq.splitting.manifest import PartsSession
from onnxq.store import facts_of_file
from onnxq.verify.distances import Distance
from onnxq.verify.fusion import config_for
from onnxq.verify.gate import metric_named
from onnxq.verify.metrics import Metric, Task
from onnxq.verify.parts import shipped_session
from onnxq.verify.stage import check_batch_axis
from onnxq.verify.tasks import check_labels

__all__ = ["FP32_NAME", "Question", "compare"]

FP32_NAME = "FP32"
_TIMED_SAMPLES = 8
_QUARTER = 0.25
PerSample = Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Question:
    """What is asked of the models: ``headline`` is the metric that counts, ``limit`` the increase
    over FP32 that is allowed in it (None: not judged); each of 8 samples is timed ``rounds`` times
    (0: not timed)."""

    task: Task
    headline: str
    limit: float | None = None
    rounds: int = 12


@dataclass(frozen=True)
class _Seen:
    """Predictions of every model by name, and how far its outputs are from FP32's, by output."""

    predictions: Mapping[str, Float[np.ndarray, "n ..."]]
    distances: Mapping[str, Mapping[str, Distance]]


def compare(
    fp32: Path,
    candidates: Sequence[Candidate],
    samples: Samples,
    question: Question,
    progress: Progress = silent,
) -> SideBySide:
    """Measure ``fp32`` and the candidates on ``samples``, which none was calibrated on.

    A candidate runs as its target judges files: as ONNX Runtime executes it, or as the graph says.
    Raises LeakageError for samples that a candidate was calibrated on, DataError for samples that
    cannot be used or have no labels, RecipeError for an unknown headline.
    """
    task = question.task
    headline = metric_named(task, question.headline)
    for candidate in candidates:
        if candidate.quantized is not None and candidate.quantized.calibration is not None:
            refuse_overlap(candidate.quantized.calibration.choice, samples)
    check_samples(samples, values_of(load_model(fp32))[0])
    check_labels(task, samples)
    seen = _run(fp32, candidates, samples, task, progress)
    metrics = tuple(row for each in task.metrics for row in _metric_rows(each, seen, samples))
    pairs = tuple(
        _pair(each, first.name, second.name, seen, samples)
        for each in task.metrics
        if _is_paired(each)
        for first, second in itertools.combinations(candidates, 2)
    )
    times = _latencies(fp32, candidates, samples, question.rounds)
    intervals = {row.model: row for row in metrics if row.metric == headline.name}
    within, beyond = _judged(intervals, question.limit)
    found = SideBySide(
        data=samples.name,
        data_sha256=samples.digest,
        samples=len(samples),
        groups=0 if samples.groups is None else len(np.unique(samples.groups)),
        headline=headline.name,
        limit=question.limit,
        within=within,
        beyond=beyond,
        models=(
            _facts_of_fp32(fp32, times[0]),
            *(
                _facts(candidate, fp32, seen, time)
                for candidate, time in zip(candidates, times[1:], strict=True)
            ),
        ),
        metrics=metrics,
        pairs=pairs,
        advice="",
        notes=_notes(candidates, samples),
        provenance=provenance({"headline": headline.name, "rounds": question.rounds}),
    )
    return found.model_copy(update={"advice": advice(found)})


# --- running ------------------------------------------------------------------------------------


def _run(
    fp32: Path,
    candidates: Sequence[Candidate],
    samples: Samples,
    task: Task,
    progress: Progress,
) -> _Seen:
    sessions: dict[str, Session | PartsSession] = {
        FP32_NAME: Session(fp32, optimization="none"),
        **{
            each.name: shipped_session(
                each.file,
                each.quantized.parts if each.quantized else None,
                each.target,
                each.target.judged_level,
            )
            for each in candidates
        },
    }

    def run_all(index: int) -> dict[str, dict[str, np.ndarray]]:
        row = samples.row(index)
        return {name: session.run(row) for name, session in sessions.items()}

    outputs: dict[str, list[dict[str, np.ndarray]]] = {name: [] for name in sessions}
    distances: dict[str, dict[str, Distance]] = {each.name: {} for each in candidates}
    found = in_parallel(run_all, len(samples))
    for result in progress(found, "comparing models", len(samples)):
        for name, values in result.items():
            check_batch_axis(values)
            outputs[name].append(values)
        for name, sums in distances.items():
            for output, exact in result[FP32_NAME].items():
                distance = Distance.between(exact, result[name][output])
                sums[output] = sums.get(output, Distance()) + distance
    predictions = {
        name: task.predictions({key: np.concatenate([r[key] for r in rows]) for key in rows[0]})
        for name, rows in outputs.items()
    }
    return _Seen(predictions, distances)


def _latencies(
    fp32: Path, candidates: Sequence[Candidate], samples: Samples, rounds: int
) -> list[Latency | None]:
    """Of FP32 and of each candidate, in turns: single samples, one thread, full optimization."""
    if not rounds:
        return [None] * (len(candidates) + 1)
    rows = list(samples.thinned(_TIMED_SAMPLES).rows())
    files = [(fp32, dict[str, str]()), *((c.file, config_for(c.target)) for c in candidates)]
    times = 1000 * latencies(files, rows, rounds)
    base = float(np.median(times[0]))
    return [
        Latency(
            median_ms=float(np.median(each)),
            low_quartile_ms=float(np.quantile(each, _QUARTER)),
            high_quartile_ms=float(np.quantile(each, 1 - _QUARTER)),
            ratio=float(np.median(each)) / base,
            runs=len(each),
        )
        for each in times
    ]


# --- figures ------------------------------------------------------------------------------------


def _is_paired(metric: Metric) -> bool:
    return metric.per_sample is not None and metric.better != "neither"


def _metric_rows(metric: Metric, seen: _Seen, samples: Samples) -> list[MetricOfModel]:
    labels = _labels(samples)
    values = {name: metric.compute(given, labels) for name, given in seen.predictions.items()}
    sign = {"lower": 1.0, "higher": -1.0, "neither": np.nan}[metric.better]
    rows = []
    for name, value in values.items():
        increase, interval = None, None
        if name != FP32_NAME and metric.better != "neither":
            increase = sign * (value - values[FP32_NAME])
        if name != FP32_NAME and _is_paired(metric):
            interval = _pair(metric, FP32_NAME, name, seen, samples).interval
        rows.append(
            MetricOfModel(
                model=name,
                metric=metric.name,
                unit=metric.unit,
                better=metric.better,
                value=value,
                increase=increase,
                interval=interval,
            )
        )
    return rows


def _pair(metric: Metric, first: str, second: str, seen: _Seen, samples: Samples) -> PairedRow:
    """Source of the test: McNemar 1947, "Note on the sampling error of the difference between
    correlated proportions", Psychometrika 12; exact by the binomial law of the discordant pairs."""
    if metric.per_sample is None:
        raise ValueError(f"{metric.name} has no value per sample")
    labels = _labels(samples)
    one, other = (metric.per_sample(seen.predictions[name], labels) for name in (first, second))
    with np.errstate(invalid="ignore"):  # inf − inf is NaN, which has no interval
        worse_by = other - one if metric.better == "lower" else one - other
    right = [np.isin(values, (0.0, 1.0)).all() for values in (one, other)]
    is_proportion = bool(all(right))
    row = PairedRow(
        metric=metric.name,
        first=first,
        second=second,
        increase=float(np.mean(worse_by)),
        interval=paired_interval(worse_by, samples.groups, proportions=is_proportion),
    )
    if not is_proportion or metric.better != "higher":
        return row
    only_first, only_second = int(np.sum(one > other)), int(np.sum(other > one))
    p_value = None
    if samples.groups is None:
        apart = only_first + only_second
        p_value = float(stats.binomtest(only_first, apart).pvalue) if apart else 1.0
    counted = {"only_first": only_first, "only_second": only_second, "p_value": p_value}
    return row.model_copy(update=counted)


def _labels(samples: Samples) -> np.ndarray:
    if samples.labels is None:
        raise ValueError("labels were checked")
    return samples.labels


def _judged(
    rows: Mapping[str, MetricOfModel], limit: float | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The candidates whose whole interval is allowed, and those of which no part of it is."""
    if limit is None:
        return (), ()
    intervals: dict[str, Interval | None] = {
        name: row.interval for name, row in rows.items() if name != FP32_NAME
    }
    within = [name for name, seen in intervals.items() if seen is not None and seen.high <= limit]
    broken = [
        name
        for name, seen in intervals.items()
        if (seen is not None and seen.low > limit) or not np.isfinite(rows[name].value)
    ]
    return tuple(within), tuple(broken)


# --- facts --------------------------------------------------------------------------------------


def _facts_of_fp32(fp32: Path, time: Latency | None) -> CandidateFacts:
    return CandidateFacts(
        name=FP32_NAME,
        kind="fp32",
        file=facts_of_file(fp32),
        target="",
        judged_as="graph",
        weights="float",
        activations="float",
        size_bytes=_size(fp32),
        size_ratio=1.0,
        sqnr_db=None,
        latency=time,
    )


def _facts(candidate: Candidate, fp32: Path, seen: _Seen, time: Latency | None) -> CandidateFacts:
    before, after = _size(fp32), _size(candidate.file)
    record = candidate.quantized
    return CandidateFacts(
        name=candidate.name,
        kind=candidate.kind,
        file=facts_of_file(candidate.file),
        target=candidate.target.name,
        judged_as=candidate.target.judged_as,
        weights=str(record.weight_type) if record else "",
        activations=str(record.activation_type) if record else "",
        steps=record.steps if record else (),
        size_bytes=after,
        size_ratio=after / before,
        sqnr_db=min(distance.sqnr_db for distance in seen.distances[candidate.name].values()),
        latency=time,
    )


def _size(model: Path) -> int:
    """Bytes of a file, with weights that lie beside it."""
    files = (model, *(model.parent / name for name in external_files(model)))
    return sum(file.stat().st_size for file in files)


def _notes(candidates: Sequence[Candidate], samples: Samples) -> tuple[str, ...]:
    notes = list(samples.notes)
    unknown = [each.name for each in candidates if each.quantized is None]
    if unknown:
        notes.append(
            f"no record says what {', '.join(unknown)} was made from, nor what it was calibrated "
            "on: whether these samples are held out is not known"
        )
    made_up = [each.name for each in candidates if each.quantized and each.quantized.made_up_data]
    if made_up:
        notes.append(f"calibrated on random numbers, so that it means nothing: {made_up}")
    compiled = [each.name for each in candidates if each.target.judged_as == "graph"]
    if compiled:
        notes.append(
            f"{', '.join(compiled)}: made for a device whose compiler decides its speed; the "
            "latency here is that of ONNX Runtime on this machine"
        )
    split = [each.name for each in candidates if each.quantized and each.quantized.parts]
    if split:
        notes.append(f"{', '.join(split)}: ships in parts; bytes and latency are of the whole file")
    if samples.groups is None:
        notes.append("no groups are known: every sample counts as independent")
    return tuple(notes)
