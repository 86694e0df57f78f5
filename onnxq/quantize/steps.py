"""The table of refine steps, and how a step earns its place."""

import math
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Float64

from onnxq.graph import WEIGHTED, constant_of, save_model
from onnxq.quantize.bias import correct_biases
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.rounding import round_weights
from onnxq.quantize.weights import mse_weight_scales
from onnxq.recipe import QuantizeSection, Step
from onnxq.runtime import Session, in_parallel

__all__ = ["REFINE_STEPS", "RefineStep", "moved_constants", "refine"]

# what was done stands beside the new draft; the one that is given is left alone
RefineStep = Callable[[Draft, Evidence, QuantizeSection], tuple[Draft, str]]


def _adaround(draft: Draft, evidence: Evidence, options: QuantizeSection) -> tuple[Draft, str]:
    from onnxq.quantize.training.adaround import learn_rounding

    return learn_rounding(draft, evidence, options.adaround)


def _ranges(draft: Draft, evidence: Evidence, options: QuantizeSection) -> tuple[Draft, str]:
    from onnxq.quantize.training.ranges import learn_ranges

    return learn_ranges(draft, evidence, options.ranges)


REFINE_STEPS: dict[Step, RefineStep] = {  # in the order that they run, whatever a recipe's
    "weights-mse": lambda draft, evidence, _: mse_weight_scales(draft, evidence),
    "rounding": lambda draft, evidence, _: round_weights(draft, evidence),
    "adaround": _adaround,
    "ranges": _ranges,
    "bias": lambda draft, evidence, _: correct_biases(draft, evidence),
}


def refine(
    draft: Draft, names: Collection[Step], evidence: Evidence, options: QuantizeSection
) -> tuple[Draft, tuple[str, ...]]:
    """The draft after the steps ``names``, and a line about each: what it did, with what effect.

    The effect is the SQNR of the graph's outputs on the runs held back, operator by operator as the
    file says, before and after; a step that does not raise it is undone, and the line says so.
    """
    lines = []
    error = _output_error(draft.quantized(), evidence) if names else 0.0
    for name, step in REFINE_STEPS.items():
        if name not in names:
            continue
        refined, what = step(draft, evidence, options)
        after = _output_error(refined.quantized(), evidence)
        judged = sum(1 for _ in evidence.held_back())
        effect = f"{_db(error)} → {_db(after)} dB on {judged} held-back runs"
        if after < error:
            draft, error = refined, after
            lines.append(f"{name}: {what}; outputs {effect}")
        else:
            lines.append(f"{name}: undone, outputs would go {effect} ({what})")
    return draft, tuple(lines)


def _output_error(model: onnx.ModelProto, evidence: Evidence) -> float:
    """Mean over the outputs of Σ (FP32 − INT8)² / Σ FP32² on the runs held back."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("fp32.onnx", "int8.onnx")]
        for path, each in zip(paths, (evidence.original, model), strict=True):
            save_model(each, path)
        fp32, int8 = (Session(path, optimization="none") for path in paths)
    runs = list(evidence.held_back())

    def sums(index: int) -> np.ndarray:
        inputs = evidence.run(runs[index])
        exact, got = fp32.run(inputs), int8.run(inputs)
        pairs = [(exact[name].astype(np.float64), got[name]) for name in fp32.output_names]
        return np.array([[np.square(a - b).sum(), np.square(a).sum()] for a, b in pairs])

    totals = np.zeros((len(fp32.output_names), 2))
    for found in evidence.progress(in_parallel(sums, len(runs)), "judging the step", len(runs)):
        totals += found
    return float(np.mean(totals[:, 0] / np.maximum(totals[:, 1], np.finfo(float).tiny)))


def _db(ratio: float) -> str:
    return f"{-10 * math.log10(ratio):.2f}" if ratio > 0 else "∞"


def moved_constants(before: ir.Model, draft: Draft) -> dict[str, dict[str, float]]:
    """By node and by ``weight`` or ``bias``: the most steps that a constant of ``draft`` lies from
    that of ``before``; what has not moved is left out."""
    nodes = {str(node.name): node for node in before.graph}
    moved: dict[str, dict[str, float]] = {}
    for node in draft.graph.graph:
        data, weight, bias = (*node.inputs, None, None, None)[:3]
        planned = draft.plan.weights.get(str(weight.name)) if weight is not None else None
        if node.op_type not in WEIGHTED or data is None or weight is None or planned is None:
            continue
        old = (*nodes[str(node.name)].inputs, None)
        spread = planned.spread(len(weight.shape or ())).astype(np.float64)
        scales = planned.scales.astype(np.float64)
        written = constant_of(weight)
        if planned.blocks is not None and written is not None:
            written = planned.on_grid(written)  # whose step is several of the channel's
        step = draft.plan.activations[str(data.name)].scale
        found = {
            "weight": _distance(written, constant_of(old[1]), spread),
            "bias": _distance(constant_of(bias), constant_of(old[2]), scales * step),
        }
        if any(found.values()):
            moved[str(node.name)] = {what: steps for what, steps in found.items() if steps}
    return moved


def _distance(
    new: np.ndarray | None, old: np.ndarray | None, scales: Float64[np.ndarray, "..."]
) -> float:
    """The most steps between two constants; 0 if one is none."""
    if new is None or old is None:
        return 0.0
    difference = new.astype(np.float64) - old.astype(np.float64)
    return float((np.abs(difference) / scales).max(initial=0))
