"""The verify stage: the file on disk against FP32, on samples that no step before has seen."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Float

from onnxq.artifacts import (
    CalibrationResult,
    ExportedModel,
    Finding,
    Manifest,
    OutputDistance,
    QuantizedModel,
    SaturationRow,
    SizeLine,
    ValueFacts,
    VerificationReport,
)
from onnxq.computed_shapes import with_computed_shapes
from onnxq.errors import DataError, StaleRecordError
from onnxq.graph import (
    MADE_UP_STAMP,
    load_graph,
    load_model,
    macs_of,
    values_of,
)
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.recipe import VerifySection
from onnxq.runtime import Optimization, Session, in_parallel
from onnxq.sample_checks import check_samples
from onnxq.samples import Samples
from onnxq.sizes import size_lines
from onnxq.splitting.manifest import PartsSession
from onnxq.store import facts_of_file, sha256_of_file
from onnxq.target import Target
from onnxq.verify.audit import audit, coverage, refuse_other_forms, require_sound
from onnxq.verify.comparison import compare_models
from onnxq.verify.fusion import audit_fusion, config_for, fusion_lines
from onnxq.verify.gate import judge_all, overall
from onnxq.verify.layers import layer_distances
from onnxq.verify.levels import FusedAgainstUnfused
from onnxq.verify.metrics import Task
from onnxq.verify.parts import (
    check_parts,
    refuse_other_parts,
    require_sound_parts,
    shipped_session,
)
from onnxq.verify.report.write import write_reports
from onnxq.verify.saturation import saturation, saturation_findings
from onnxq.verify.tasks import check_labels

__all__ = ["Evidence", "check_batch_axis", "verify"]

PARTS_SAMPLES = 128  # samples on which the parts are held against the whole
SATURATION_SAMPLES = 8  # samples on which sums of pairs are counted
LAYER_SAMPLES = 32  # samples on which every tensor is compared


@dataclass(frozen=True)
class Evidence:
    """The files that are compared, and what is known of how they were made.

    ``fp32`` is the graph as it was exported, ``rewritten`` its canonical form, ``int8`` the file
    that ships, or that the parts which ship were cut from. ``hazards`` were found in that file.
    ``equalized`` is the graph after float steps: tensors and constants of ``int8`` are held against
    it, outputs and metrics never.
    """

    name: str
    fp32: Path
    rewritten: Path
    int8: Path
    target: Target
    exported: ExportedModel | None = None
    calibration: CalibrationResult | None = None
    quantized: QuantizedModel | None = None
    hazards: tuple[Finding, ...] = ()
    equalized: Path | None = None

    @property
    def forms(self) -> tuple[Path, ...]:
        """FP32 graphs that hold the numbers of the tensors of ``int8``."""
        return (self.equalized,) if self.equalized else (self.rewritten, self.fp32)

    @property
    def parts(self) -> Manifest | None:
        """The parts that ship in place of ``int8``, if it is cut into some."""
        return self.quantized.parts if self.quantized else None


def verify(
    evidence: Evidence,
    task: Task,
    samples: Samples,
    section: VerifySection,
    folder: Path,
    *,
    progress: Progress = silent,
) -> VerificationReport:
    """Measure ``evidence.int8`` and write the report (JSON, HTML, Markdown, JUnit) to ``folder``.

    The report is written whatever the verdict is. Raises StaleRecordError if a record is about
    another file, ModelError if the file is quantized in another form than Q/DQ, DataError for
    samples that cannot be used or have no labels, AuditError if the file is not what it claims to
    be.
    """
    _refuse_stale(evidence)
    model = ir.from_proto(with_computed_shapes(load_model(evidence.int8)))
    refuse_other_forms(model, evidence.int8.name)
    selected = evidence.quantized.quantized_nodes if evidence.quantized else None
    moved = evidence.quantized.moved if evidence.quantized else None
    rows = audit(model, selected, _source(evidence), moved)
    require_sound(rows, evidence.int8.name)
    if evidence.parts is not None:
        require_sound_parts(evidence.int8, evidence.parts, selected)
    check_samples(samples, _inputs(evidence))
    check_labels(task, samples)
    predicted = _predict(evidence, task, samples, progress)
    executions = audit_fusion(evidence.int8, config_for(evidence.target))
    layers = layer_distances(
        evidence.forms,
        evidence.int8,
        samples.thinned(LAYER_SAMPLES),
        progress,
    )
    parts = None
    if evidence.parts is not None:
        parts = check_parts(
            evidence.int8, evidence.parts, evidence.target,
            samples.thinned(PARTS_SAMPLES), progress,
        )  # fmt: skip
    saturated = _saturation(evidence, samples)
    comparison = compare_models(task, predicted.by_variant, samples, evidence.target)
    gates = judge_all(section, task, predicted.by_variant, samples)
    verdict, reasons = overall(
        gates, comparison, made_up=_is_made_up(evidence), waived=[w.name for w in section.waive]
    )
    report = VerificationReport(
        verdict=verdict,
        reasons=reasons,
        name=evidence.name,
        target=evidence.target.name,
        fp32=facts_of_file(evidence.fp32),
        int8=facts_of_file(evidence.int8),
        gates=gates,
        comparison=comparison,
        audit=rows,
        coverage=coverage(model, selected, evidence.target),
        fusion=fusion_lines(executions),
        executions=executions.nodes,
        layers=layers,
        ranges=evidence.calibration.ranges if evidence.calibration else {},
        float_nodes=evidence.quantized.float_nodes if evidence.quantized else (),
        sizes=_sizes(evidence),
        parts=parts,
        saturation=saturated,
        macs=sum(macs_of(node) for node in model.graph),
        fused_against_unfused=predicted.fused_against_unfused,
        calibration=evidence.calibration.choice if evidence.calibration else None,
        passport=evidence.calibration.passport if evidence.calibration else None,
        parity=evidence.exported.parity if evidence.exported else (),
        findings=(
            *_findings(evidence, samples),
            *executions.findings,
            *saturation_findings([row for row in saturated if row.verdict == "does"]),
        ),
        waived=tuple(f"{waiver.name}: {waiver.reason}" for waiver in section.waive),
        provenance=provenance(section.model_dump(mode="json")),
    )
    write_reports(report, predicted.by_variant, samples, folder)
    return report


# --- running the models -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Predicted:
    """Predictions of every variant, and how far INT8 with fusion is from INT8 without."""

    by_variant: dict[str, Float[np.ndarray, "n ..."]]
    fused_against_unfused: OutputDistance


def _predict(evidence: Evidence, task: Task, samples: Samples, progress: Progress) -> _Predicted:
    """Run FP32 as exported, FP32 rewritten, and INT8 under both semantics, sample by sample."""
    judged = evidence.target.judged_level
    other: Optimization = "none" if judged == "full" else "full"
    sessions: dict[str, Session | PartsSession] = {
        "fp32": Session(evidence.fp32, optimization="none"),
        "rewritten": Session(evidence.rewritten, optimization="none"),
        "int8": shipped_session(evidence.int8, evidence.parts, evidence.target, judged),
        "int8_other": shipped_session(evidence.int8, evidence.parts, evidence.target, other),
    }

    def run_all(index: int) -> dict[str, dict[str, np.ndarray]]:
        row = samples.row(index)
        return {variant: session.run(row) for variant, session in sessions.items()}

    outputs: dict[str, list[dict[str, np.ndarray]]] = {variant: [] for variant in sessions}
    levels = FusedAgainstUnfused(load_graph(evidence.int8))
    unfused, fused = ("int8", "int8_other") if judged == "none" else ("int8_other", "int8")
    for result in progress(in_parallel(run_all, len(samples)), "verifying", len(samples)):
        for variant, values in result.items():
            check_batch_axis(values)
            outputs[variant].append(values)
        levels.add(result[unfused], result[fused])
    predictions = {
        variant: task.predictions(
            {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        )
        for variant, rows in outputs.items()
    }
    return _Predicted(predictions, levels.record)


def _saturation(evidence: Evidence, samples: Samples) -> tuple[SaturationRow, ...]:
    """Sums of pairs on a few samples, where a processor of the target may keep them in 16 bits."""
    processor = evidence.target.processor
    if processor is None or processor.family != "x86-64" or processor.saturates is False:
        return ()
    return saturation(evidence.int8, samples.thinned(SATURATION_SAMPLES))


def check_batch_axis(outputs: Mapping[str, np.ndarray]) -> None:
    """Raise DataError if the outputs for one sample cannot be put below those for another.

    An only output must be one row; one of several may be of no use to the task.
    """
    for name, array in outputs.items():
        if array.ndim == 0 or (len(outputs) == 1 and len(array) != 1):
            form = f"has shape {list(array.shape)}" if array.ndim else "is a single number"
            raise DataError(
                f"{form} for one sample: the output has no batch axis",
                where=f"output `{name}`",
                do="export the model with the batch as first axis of its output: (n, …)",
            )


# --- what is known of the files -----------------------------------------------------------------


def _refuse_stale(evidence: Evidence) -> None:
    quantized, exported = evidence.quantized, evidence.exported
    if quantized is not None and quantized.model.sha256 != sha256_of_file(evidence.int8):
        raise StaleRecordError(
            "the record is about another file", where=str(evidence.int8), do="quantize again"
        )
    if evidence.parts is not None:
        refuse_other_parts(evidence.int8, evidence.parts)
    if exported is not None and exported.model.sha256 != sha256_of_file(evidence.rewritten):
        raise StaleRecordError(
            "the record is about another file", where=str(evidence.rewritten), do="export again"
        )
    made_from = quantized.equalized.model.sha256 if quantized and quantized.equalized else None
    if made_from is not None and evidence.equalized is None:
        raise StaleRecordError(
            "was made from a graph after float steps, which is not given",
            where=str(evidence.int8),
            do="keep the .equalized.onnx file beside it, or quantize again",
        )
    if evidence.equalized is not None and made_from != sha256_of_file(evidence.equalized):
        raise StaleRecordError(
            "is not the graph that the file was made from",
            where=str(evidence.equalized),
            do="quantize again",
        )


def _source(evidence: Evidence) -> ir.Model | None:
    """The FP32 graph that the record says the file was made from; None if that is not at hand."""
    record = evidence.quantized
    if record is None or record.fp32_sha256 != sha256_of_file(evidence.rewritten):
        return None
    return load_graph(evidence.equalized or evidence.rewritten)


def _inputs(evidence: Evidence) -> Sequence[ValueFacts]:
    """Facts of the graph's inputs, with domains where the export declared them."""
    if evidence.exported is not None:
        return evidence.exported.inputs
    return values_of(load_model(evidence.fp32))[0]


def _is_made_up(evidence: Evidence) -> bool:
    stamps = {entry.key for entry in onnx.load(evidence.int8).metadata_props}
    return MADE_UP_STAMP in stamps or bool(evidence.quantized and evidence.quantized.made_up_data)


def _findings(evidence: Evidence, samples: Samples) -> tuple[Finding, ...]:
    """What the stages before found, then the notes of the data."""
    found = [
        *(evidence.exported.findings if evidence.exported else ()),
        *(evidence.quantized.findings if evidence.quantized else ()),
        *evidence.hazards,
    ]
    if evidence.calibration is not None:
        choice = evidence.calibration.choice
        found += [Finding(where=choice.source, what=note) for note in choice.notes]
    found += [Finding(where=samples.name, what=note) for note in samples.notes]
    if samples.groups is None:
        found.append(
            Finding(
                where=samples.name,
                what="no groups are known: every sample counts as independent",
                do="give `groups` if several come from one person or file",
            )
        )
    return tuple(dict.fromkeys(found))


def _sizes(evidence: Evidence) -> tuple[SizeLine, ...]:
    """Size ledger: the weights alone, the files, the files compressed, the checkpoint."""
    checkpoint = evidence.exported.checkpoint if evidence.exported else None
    if checkpoint is None:
        return size_lines(evidence.rewritten, evidence.int8)
    size = SizeLine(what="checkpoint", fp32_bytes=checkpoint.file.size_bytes, int8_bytes=None)
    return (*size_lines(evidence.rewritten, evidence.int8), size)
