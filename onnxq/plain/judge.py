"""A plain INT8 ``.onnx`` judged against its FP32 original, and handed off."""

import tempfile
from pathlib import Path

from onnxq import plugins
from onnxq.artifacts import Bundle, VerificationReport
from onnxq.calibrate.readers import refuse_overlap
from onnxq.errors import ModelError, PluginError, StaleRecordError, UsageError
from onnxq.graph import load_model, values_of
from onnxq.plain.export import export_file, opset_of
from onnxq.plain.quantize import equalized_of, record_of, target_for
from onnxq.progress import Progress, silent
from onnxq.recipe import HandoffSection, VerifySection, Waiver
from onnxq.samples import Samples
from onnxq.sources import open_source
from onnxq.store import load_record, sha256_of_file
from onnxq.verify.gate import metric_named
from onnxq.verify.metrics import Task
from onnxq.verify.tasks import task_for_metric

__all__ = ["REPORT", "hand_off_file", "samples_for", "task_for", "verify_files"]

REPORT = "report.json"


def verify_files(  # noqa: PLR0913 - what is compared, on what, how it is judged, where it goes
    fp32: Path,
    int8: Path,
    samples: Samples,
    task: Task,
    section: VerifySection,
    folder: Path,
    *,
    target: str | None = None,
    progress: Progress = silent,
) -> VerificationReport:
    """Judge ``int8`` against ``fp32`` on ``samples``; reports go to ``folder``.

    The record beside ``int8`` is heeded: its target, the FP32 model it was made from, and the
    samples of its calibration. Raises UsageError for another target, StaleRecordError for another
    model, LeakageError for samples that it was calibrated on, and as ``verify`` does.
    """
    from onnxq.verify.stage import Evidence, verify

    quantized = record_of(int8)
    if quantized is not None and quantized.calibration is not None:
        refuse_overlap(quantized.calibration.choice, samples)
    chosen = target_for(quantized, target)
    with tempfile.TemporaryDirectory() as scratch:
        opset = opset_of(int8) if quantized is not None else None  # a recipe may have chosen it
        exported = export_file(fp32, chosen, {}, Path(scratch), opset)
        known = (exported.model.sha256, sha256_of_file(fp32))  # either form may be given
        if quantized is not None and quantized.fp32_sha256 not in known:
            raise StaleRecordError(
                f"was made from another FP32 model than {fp32.name}",
                where=str(int8),
                do=f"give the model that it was made from, or quantize {fp32.name}",
            )
        evidence = Evidence(
            name=int8.stem,
            fp32=fp32,
            rewritten=Path(scratch) / "fp32.onnx",
            int8=int8,
            target=chosen,
            exported=exported,
            calibration=quantized.calibration if quantized is not None else None,
            quantized=quantized,
            equalized=equalized_of(int8, quantized),
        )
        return verify(evidence, task, samples, section, folder, progress=progress)


def task_for(metric: str) -> tuple[Task, str]:
    """The task, and the name of its metric that is gated: ``metric``, or the first one of the task
    that ``module:function`` returns.

    Raises UsageError for a metric that is unknown or no mean over samples, and PluginError.
    """
    if plugins.is_reference(metric):
        task = plugins.call(metric, {})
        if not isinstance(task, Task):
            raise PluginError("does not return a Task", where=metric)
        gated = task.metrics[0]
    else:
        task = task_for_metric(metric)
        gated = metric_named(task, metric)
    if gated.per_sample is None or gated.better == "neither":
        able = [f"`{m.name}`" for m in task.metrics if m.per_sample and m.better != "neither"]
        raise UsageError(
            f"`{gated.name}` is no mean over samples and cannot be gated",
            where="--metric",
            do=f"gate one that has a value per sample: {', '.join(able) or 'the task has none'}",
        )
    return task, gated.name


def hand_off_file(  # noqa: PLR0913 - what ships, where, for what, and what lets it pass
    int8: Path,
    folder: Path,
    *,
    target: str | None = None,
    source: str | None = None,
    report: Path | None = None,
    allow_unverified: bool = False,
    waive: tuple[Waiver, ...] = (),
) -> Bundle:
    """The bundle of ``int8`` in ``folder``; ``report`` is the folder that ``verify`` wrote, and
    ``waive`` names rules of the target that may be broken.

    Raises ModelError for a file that is not quantized, and as ``hand_off`` does.
    """
    from onnxq.handoff.origin import origin_of_file
    from onnxq.handoff.stage import hand_off

    if not any(node.op_type == "DequantizeLinear" for node in load_model(int8).graph.node):
        raise ModelError(
            "is not quantized: it holds no DequantizeLinear node",
            where=str(int8),
            do="run `onnxq quantize` on it, and hand off what that writes",
        )
    quantized = record_of(int8)
    chosen = target_for(quantized, target)
    samples = samples_for(int8, source) if source else None
    return hand_off(
        model=int8,
        target=chosen,
        folder=folder,
        section=HandoffSection(waive=waive),
        quantized=quantized,
        report=load_record(VerificationReport, report / REPORT) if report else None,
        report_folder=report,
        samples=samples,
        allow_unverified=allow_unverified,
        origin=origin_of_file(
            target or chosen.name, source or "", samples, quantized.made_from if quantized else None
        ),
    )


def samples_for(model: Path, source: str) -> Samples:
    """Samples of a file or ``module:function``, with the inputs of ``model``."""
    inputs, _ = values_of(load_model(model))
    return open_source(source, {}, tuple(value.name for value in inputs), inputs=inputs)
