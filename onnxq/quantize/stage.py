"""The quantize stage: an FP32 graph and its ranges become a Q/DQ file; the shell to disk."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.artifacts import (
    CalibrationResult,
    EqualizedModel,
    QuantizedModel,
    TensorParameters,
    WeightPrecision,
)
from onnxq.errors import QuantizationError, StaleRecordError
from onnxq.graph import (
    MADE_UP_STAMP,
    load_model,
    newer_opset,
    refuse_quantized,
    refuse_uncanonical,
    save_model,
)
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.qtypes import IntType
from onnxq.quantize.draft import LEAST_RUNS, Draft, Evidence, draft_of
from onnxq.quantize.int4 import OPSET
from onnxq.quantize.plan import Plan, make_plan
from onnxq.quantize.precision import Precision, left_float, precision_of, refuse_unsupported
from onnxq.quantize.refined import Refined, refined
from onnxq.quantize.steps import moved_constants
from onnxq.quantize.training.means import Means
from onnxq.quantize.unshare import unshare_constants
from onnxq.quantize.weigh import weigh
from onnxq.recipe import PartSection, QuantizeSection
from onnxq.samples import Samples
from onnxq.shapes import infer_shapes
from onnxq.splitting.manifest import PARTS, write_parts
from onnxq.store import digest_of, facts_of_file, save_record, sha256_of_file
from onnxq.target import Target

__all__ = ["Planned", "plan_draft", "quantize"]


@dataclass(frozen=True)
class Planned:
    """A draft before any refine step; the graph that it was planned on, which still holds FP32's
    constants; what each node is to have, and what was done to the graph."""

    draft: Draft
    graph: ir.Model
    precision: Precision
    steps: tuple[str, ...]


def plan_draft(
    original: onnx.ModelProto,
    calibration: CalibrationResult,
    target: Target,
    section: QuantizeSection,
) -> Planned:
    """What ``section`` makes of the canonical FP32 graph ``original``.

    Raises QuantizationError as the plan demands, TargetRuleError for bits that the target has no
    place for.
    """
    graph, precision, steps = _prepared(original, section, target)
    narrow, exclude = _narrows(section, target), left_float(graph, section)
    weighing = weigh(graph, target, calibration.ranges, exclude, section.elementwise)
    exclude = {**weighing.reasons, **exclude}
    plan = make_plan(graph, target, calibration.ranges, exclude, narrow=narrow, precision=precision)
    plan = replace(plan, findings=(*plan.findings, *weighing.findings))
    return Planned(draft_of(graph, plan, target, narrow=narrow), graph, precision, steps)


def quantize(  # noqa: PLR0913 - what is quantized, how, and what is at hand for it
    model_path: Path,
    calibration: CalibrationResult,
    target: Target,
    section: QuantizeSection,
    output: Path,
    parts: Sequence[PartSection] = (),
    *,
    samples: Samples | None = None,
    means: Means | None = None,
    equalized: EqualizedModel | None = None,
    progress: Progress = silent,
) -> QuantizedModel:
    """Write the Q/DQ form of ``model_path`` to ``output``, and its record as ``.json`` beside it.

    ``parts`` are written beside it too: cut from the Q/DQ graph, so that neighbours share scale and
    zero point and compute the integers of the whole. ``samples`` are those of the calibration, for
    the section's ``steps``, which come before parts are cut, and ``means`` what fine-tuning may use
    beside them. ``equalized`` is the record of the float steps that ``model_path`` came from.

    Raises StaleRecordError if the ranges were made from another graph, ModelError if the graph is
    quantized already or not in canonical form, QuantizationError as the plan demands,
    or for steps without samples, TargetRuleError for bits that the target has no place for.
    """
    fp32_sha256 = sha256_of_file(model_path)
    made_from = {calibration.model_sha256, *([equalized.model.sha256] if equalized else [])}
    if made_from != {fp32_sha256}:
        raise StaleRecordError(
            "the ranges were calibrated on another graph",
            where=str(model_path),
            do="run calibrate again on this file",
        )
    original = load_model(model_path)
    refuse_quantized(original, model_path.name)
    refuse_uncanonical(original, model_path.name)
    planned = plan_draft(original, calibration, target, section)
    graph = planned.graph
    evidence = _evidence(original, section, samples, calibration, progress)
    found = _unrefined(planned.draft, section, samples)
    if evidence is not None:
        found = refined(planned.draft, evidence, section, means)
    draft, plan = found.draft, found.draft.plan
    rewritten = draft.quantized()
    if calibration.choice.made_up:
        rewritten.metadata_props.add(key=MADE_UP_STAMP, value="calibrated on random numbers")
    save_model(rewritten, output)
    manifest = None
    if parts:
        manifest = write_parts(output, rewritten, original, parts, output.parent / PARTS)
    record = QuantizedModel(
        model=facts_of_file(output),
        fp32_sha256=equalized.fp32_sha256 if equalized else fp32_sha256,
        calibration_sha256=digest_of(calibration.model_dump(mode="json")),
        target=target.name,
        weight_type=IntType(section.weights),
        activation_type=target.activation_type,
        quantized_nodes={
            str(node.name): node.op_type for node in graph.graph if str(node.name) in plan.nodes
        },
        float_nodes=plan.float_nodes,
        activations={
            name: TensorParameters(scale=p.scale, zero_point=p.zero_point, type=p.type)
            for name, p in plan.activations.items()
        },
        steps=(
            *(step.line for step in (equalized.steps if equalized else ())),
            *planned.steps,
            *found.lines,
        ),
        moved=moved_constants(graph, draft),
        weight_precision=_written_precision(graph, planned.precision, plan),
        round_trip=found.round_trip,
        finetuning=found.finetuning,
        findings=(*calibration.findings, *plan.findings, *found.findings),
        made_up_data=calibration.choice.made_up,
        calibration=calibration,
        equalized=equalized,
        parts=manifest,
        provenance=provenance(section.model_dump(mode="json")),
    )
    save_record(record, output.with_suffix(".json"))
    return record


def _prepared(
    original: onnx.ModelProto, section: QuantizeSection, target: Target
) -> tuple[ir.Model, Precision, tuple[str, ...]]:
    """The graph to plan on, with a constant for each use, at an opset that has the types asked for;
    what each node is to have; what was done."""
    refuse_unsupported(section, [target])
    graph, steps = unshare_constants(ir.from_proto(original))
    precision = precision_of(graph, section)
    if precision.needs_opset_21 and graph.opset_imports.get("", 0) < OPSET:
        newer = infer_shapes(newer_opset(ir.to_proto(graph), OPSET), "at opset 21")
        steps = (*steps, f"raised opset {graph.opset_imports.get('', 0)} to {OPSET}")
        graph = ir.from_proto(newer)
    return graph, precision, steps


def _written_precision(
    graph: ir.Model, precision: Precision, plan: Plan
) -> dict[str, WeightPrecision]:
    """The bits of the weights that became integer, with the size of their blocks."""
    found = {}
    for node in graph.graph:
        bits = precision.weights.get(str(node.name))
        if bits is not None and str(node.name) in plan.nodes and node.inputs[1] is not None:
            blocks = plan.weights[str(node.inputs[1].name)].blocks
            size = 0 if blocks is None else blocks.size
            found[str(node.name)] = bits.model_copy(update={"block": size})
    return found


def _evidence(
    original: onnx.ModelProto,
    section: QuantizeSection,
    samples: Samples | None,
    calibration: CalibrationResult,
    progress: Progress,
) -> Evidence | None:
    """What steps measure on; None if there are none, or too few samples for steps that an effort
    chose and nobody named. Raises QuantizationError for named steps without samples."""
    batch, names = calibration.collection.batch, section.refining
    is_enough = samples is not None and len(samples) // batch >= LEAST_RUNS
    if not names or (section.steps is None and not is_enough):
        return None
    if samples is None:
        raise QuantizationError(
            f"the step `{names[0]}` is measured on samples, and none are given",
            where="quantize: steps",
            do="give the samples of the calibration, or leave the steps out",
        )
    return Evidence(original, samples, batch, progress)


def _unrefined(draft: Draft, section: QuantizeSection, samples: Samples | None) -> Refined:
    """The draft as it is; the record says which steps were left out."""
    if not section.refining:
        return Refined(draft)
    have = f"{len(samples)} samples" if samples is not None else "no samples"
    what = f"{have} to measure on: {', '.join(section.refining)} ({section.effort} effort)"
    return Refined(draft, (f"left out, with {what}",))


def _narrows(section: QuantizeSection, target: Target) -> bool:
    """Whether weights that could saturate are narrowed: as asked for, else as the target needs."""
    if section.saturation is not None:
        return section.saturation == "narrow"
    return target.processor is not None and target.processor.saturates is True
