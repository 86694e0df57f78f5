"""The calibrate stage: chosen samples become ranges. The only file here that touches disk."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.artifacts import CalibrationResult, Collection, SampleChoice, ValueFacts
from onnxq.calibrate.archive import decode, encode
from onnxq.calibrate.checkpoint import Checkpoint
from onnxq.calibrate.collect import Job
from onnxq.calibrate.gather import gather
from onnxq.calibrate.labels import refuse_unreachable_labels
from onnxq.calibrate.passport import MOST_EVALUATED, Calibrated, Evaluated, passport
from onnxq.calibrate.plans import choose
from onnxq.calibrate.preprocessing import Moments, moments_of
from onnxq.calibrate.ranges import findings, options_of, ranges_of, unbalanced
from onnxq.calibrate.readers import SampleReader, describe, refuse_overlap
from onnxq.calibrate.resources import Resources, pieces_of
from onnxq.calibrate.statistics import Statistics
from onnxq.errors import DataError, StaleRecordError, StoreError
from onnxq.graph import load_model, refuse_inner_graphs, refuse_quantized
from onnxq.placement import channel_axes, observed_tensors, refuse_unknown_nodes
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance, versions
from onnxq.recipe import CalibrateSection
from onnxq.runtime import Optimization, give_back_memory
from onnxq.sample_checks import check_samples
from onnxq.samples import Samples
from onnxq.store import (
    atomic_file,
    digest_of,
    facts_of_file,
    load_record,
    save_record,
    sha256_of_file,
)
from onnxq.target import Target

__all__ = [
    "RECORD",
    "STATISTICS",
    "Evidence",
    "Subject",
    "calibrate",
    "conclude",
    "load_statistics",
]

_log = logging.getLogger(__name__)
RECORD, STATISTICS = "calibration.json", "statistics.safetensors"


@dataclass(frozen=True)
class Subject:
    """The FP32 graph that is calibrated, and what decides which of its tensors are looked at.

    A declared domain of ``inputs`` or ``outputs`` pins the range; ``exclude`` maps names of nodes
    that will stay float to the reason. Tensors that targets ``also_for`` need are looked at too, so
    that files for several targets come from one calibration.
    """

    model: Path
    inputs: Sequence[ValueFacts]
    outputs: Sequence[ValueFacts]
    target: Target
    exclude: Mapping[str, str] = field(default_factory=dict)
    also_for: tuple[Target, ...] = ()

    @property
    def batch(self) -> int:
        """Samples a run: that of a model with a fixed batch, else 1."""
        first = {value.shape[0] for value in self.inputs if value.shape}
        fixed = {size for size in first if isinstance(size, int)}
        return max(fixed, default=1)


def calibrate(  # noqa: PLR0913 - what is calibrated, on what, and what is at hand for it
    subject: Subject,
    samples: Samples,
    section: CalibrateSection,
    folder: Path,
    *,
    evaluation: Samples | None = None,
    resources: Resources | None = None,
    kept: Path | None = None,
    progress: Progress = silent,
) -> CalibrationResult:
    """Ranges of the tensors that will carry Q/DQ, and the statistics they come from, in ``folder``.

    ``kept`` is where the result will be kept: if statistics of the same graph, tensors and samples
    lie there already, no sample is run again; pieces of an unfinished collection lie beside it
    (``pieces_of``), and are the caller's to remove once the result is in its place.
    Raises ModelError for a graph that is quantized already or holds graphs inside, DataError for
    samples that cannot be used or whose labels no output can reach, LeakageError if ``evaluation``
    shares any, and as ``gather`` does.
    """
    model = load_model(subject.model)
    refuse_quantized(model, subject.model.name)
    refuse_inner_graphs(model, subject.model.name)
    draw = choose(samples, section)
    chosen = samples.take(draw.indices)
    if len(chosen) % subject.batch:
        raise DataError(
            f"{len(chosen)} samples do not fill batches of {subject.batch}, which the model takes",
            where=samples.name,
            do=f"ask for a multiple of {subject.batch} (`samples:` or --samples)",
        )
    check_samples(chosen, subject.inputs, batch=subject.batch)
    for labelled in (samples, *([evaluation] if evaluation is not None else [])):
        refuse_unreachable_labels(labelled, subject.outputs)
    choice = describe(samples, chosen, draw)
    for waiver in section.waive:
        note = f"samples may be among those of evaluation (waived: {waiver.reason})"
        choice = choice.model_copy(
            update={"overlap_waived": waiver.reason, "notes": (*choice.notes, note)}
        )
    for note in choice.notes:
        _log.warning(note)
    if evaluation is not None and not samples.made_up:
        refuse_overlap(choice, evaluation)
    job = _job(model, subject, section)
    del model  # its weights are in the job
    give_back_memory()
    statistics = _kept_statistics(kept, subject, job, choice)
    if statistics is None:
        pieces = Checkpoint(pieces_of(kept), _fingerprint(subject, job, choice)) if kept else None
        reader = SampleReader(chosen, subject.batch)
        statistics = gather(job, reader, resources or Resources(), pieces, progress)
    evidence = Evidence(choice, statistics, job.optimization, samples.preprocessing)
    if evaluation is None or samples.made_up:
        return conclude(subject, section, evidence, folder)
    fresh = evaluation.thinned(max(MOST_EVALUATED // subject.batch, 1) * subject.batch)
    check_samples(fresh, subject.inputs, batch=subject.batch)
    seen = gather(
        replace(job, detail="histograms"),
        SampleReader(fresh, subject.batch),
        replace(resources or Resources(), resume=False),
        progress=progress,
        what="looking at evaluation samples,",
    )
    evaluated = Evaluated(seen, evaluation, moments_of(fresh))
    evidence = replace(evidence, inputs=moments_of(chosen), evaluated=evaluated)
    return conclude(subject, section, evidence, folder)


@dataclass(frozen=True)
class Evidence:
    """What was collected, and how: all that ranges are made from.

    ``evaluated`` is what was seen on evaluation samples, and ``inputs`` the moments of those of
    calibration, for the passport alone.
    """

    choice: SampleChoice
    statistics: Statistics
    optimization: Optimization
    preprocessing: str
    inputs: Mapping[str, Moments] = field(default_factory=dict)
    evaluated: Evaluated | None = None


def conclude(
    subject: Subject,
    section: CalibrateSection,
    evidence: Evidence,
    folder: Path,
) -> CalibrationResult:
    """Make ranges of statistics, and write both to ``folder``."""
    statistics = evidence.statistics
    with atomic_file(folder / STATISTICS) as temporary:
        temporary.write_bytes(encode(statistics))
    values = [*subject.inputs, *subject.outputs]
    graph = load_model(subject.model).graph
    ranges = ranges_of(graph, statistics, values, section, subject.target)
    calibrated = Calibrated(
        statistics=statistics,
        ranges=ranges,
        choice=evidence.choice,
        method=section.method,
        options=options_of(section, subject.target),
        inputs=evidence.inputs,
    )
    outputs = [value.name for value in subject.outputs]
    result = CalibrationResult(
        model_sha256=sha256_of_file(subject.model),
        target=subject.target.name,
        excluded=dict(subject.exclude),
        method=section.method,
        choice=evidence.choice,
        collection=Collection(
            detail="histograms" if statistics.has_histograms else "extremes",
            optimization=evidence.optimization,
            batch=subject.batch,
            preprocessing=evidence.preprocessing,
            file=facts_of_file(folder / STATISTICS),
        ),
        ranges=ranges,
        passport=passport(calibrated, outputs, evidence.evaluated),
        findings=(*findings(ranges, subject.inputs), *unbalanced(statistics.channels)),
        provenance=provenance(section.model_dump(mode="json")),
    )
    save_record(result, folder / RECORD)
    return result


def load_statistics(folder: Path) -> tuple[CalibrationResult, Statistics]:
    """An earlier result and its statistics.

    Raises StoreError if one is missing or damaged, StaleRecordError if they do not belong together.
    """
    result, path = load_record(CalibrationResult, folder / RECORD), folder / STATISTICS
    if sha256_of_file(path) != result.collection.file.sha256:
        raise StaleRecordError(
            f"is not the file that {RECORD} beside it was made with",
            where=str(path),
            do="run `onnxq calibrate` again",
        )
    return result, decode(path.read_bytes(), str(path))


def _job(model: onnx.ModelProto, subject: Subject, section: CalibrateSection) -> Job:
    graph = ir.from_proto(model).graph
    refuse_unknown_nodes(graph, subject.exclude, "exclude")
    tensors = observed_tensors(graph, (subject.target, *subject.also_for), subject.exclude)
    return Job(
        model=model.SerializeToString(),
        tensors=tensors,
        detail=section.detail,
        optimization=section.optimization,
        channels=channel_axes(graph, tensors) if section.per_channel else {},
    )


def _fingerprint(subject: Subject, job: Job, choice: SampleChoice) -> str:
    """Digest of all that decides the bits of a piece."""
    facts = {
        "model": sha256_of_file(subject.model),
        "tensors": job.tensors,
        "detail": job.detail,
        "optimization": job.optimization,
        "channels": dict(job.channels),
        "batch": subject.batch,
        "samples": choice.digests,
        "versions": versions(),
    }
    return digest_of(facts)


def _kept_statistics(
    kept: Path | None, subject: Subject, job: Job, choice: SampleChoice
) -> Statistics | None:
    """Statistics of an earlier run over the same samples; None if there are none that will do."""
    if kept is None or not (kept / RECORD).exists():
        return None
    try:
        earlier, statistics = load_statistics(kept)
    except StoreError:  # of another version, or damaged: it is made again
        return None
    same = (
        earlier.model_sha256 == sha256_of_file(subject.model)
        and earlier.choice.digests == choice.digests
        and earlier.collection.optimization == job.optimization
        and earlier.collection.batch == subject.batch
        and earlier.provenance.packages == versions()
        and statistics.tensors == job.tensors
    )
    enough = statistics.has_histograms or job.detail == "extremes"
    enough &= statistics.channels.keys() >= job.channels.keys()
    return statistics if same and enough else None
