"""The refine steps, fine-tuning last, and the proof that what learned is what ships."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.artifacts import CodeDifference, Finding, FineTuning, RoundTrip
from onnxq.errors import QuantizationError
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.steps import refine
from onnxq.quantize.training.means import Means
from onnxq.recipe import QuantizeSection

if TYPE_CHECKING:
    from onnxq.quantize.training.graph import TrainingGraph

__all__ = ["LEARNING", "Refined", "refined"]

LEARNING = ("adaround", "ranges", "finetune")  # steps that train the graph in torch
_PROVEN_ON = 2  # runs
_UNKNOWN = "not known"


@dataclass(frozen=True)
class Refined:
    """A draft after its steps: a line about each, the record of the training and the proof."""

    draft: Draft
    lines: tuple[str, ...] = ()
    finetuning: FineTuning | None = None
    round_trip: RoundTrip | None = None
    findings: tuple[Finding, ...] = ()


def refined(
    draft: Draft, evidence: Evidence, section: QuantizeSection, means: Means | None = None
) -> Refined:
    """The draft after the section's steps: those of the table, then ``finetune``.

    If one that learned was kept, the file is proven to be what was trained, on two runs held back.
    Raises as ``finetune`` does, and QuantizationError if a constant or a code of the file is
    another than that of the training graph and no reason is known.
    """
    tabled = [name for name in section.refining if name != "finetune"]
    found, lines = refine(draft, tabled, evidence, section)
    record = trained = None
    if "finetune" in section.refining:
        from onnxq.quantize.training.finetune import finetune

        outcome = finetune(found, evidence, section.finetune, means)
        found, record, trained = outcome.draft, outcome.record, outcome.trained
        lines = (*lines, record.line)
    if not any(_has_learned(line) for line in lines):
        return Refined(found, lines, record)
    proof = _proof(found, evidence, trained)
    return Refined(found, lines, record, proof, tuple(_findings(proof)))


def _has_learned(line: str) -> bool:
    step, _, effect = line.partition(": ")
    return step in LEARNING and not effect.startswith("undone")


def _proof(draft: Draft, evidence: Evidence, trained: "TrainingGraph | None") -> RoundTrip:
    from onnxq.quantize.round_trip import prove_round_trip
    from onnxq.quantize.training.graph import TrainingGraph

    graph = trained or TrainingGraph(draft)
    given: Mapping[str, Shaped[np.ndarray, ...]] = {
        name: tensor.detach().numpy() for name, tensor in graph.stand_ins().items()
    }
    runs = list(evidence.held_back())[:_PROVEN_ON]
    model: onnx.ModelProto = draft.quantized()
    proof = prove_round_trip(model, [evidence.run(run) for run in runs], graph.graph, given)
    unexplained = [each for each in proof.differing if each.reason == _UNKNOWN]
    if proof.constants_differ or unexplained:
        raise QuantizationError(
            f"is not what was trained: {_named(proof.constants_differ, unexplained)}",
            where="round trip",
            do="leave out the step that learned, and report the model",
        )
    return proof


def _named(constants: Sequence[str], codes: Sequence[CodeDifference]) -> str:
    if constants:
        return f"{len(constants)} constants differ, `{constants[0]}` first"
    first = codes[0]
    return f"`{first.tensor}` has {first.codes} other codes, {first.largest_step} steps at most"


def _findings(proof: RoundTrip) -> list[Finding]:
    """What is not proven, though it is known why."""
    if proof.is_proven:
        return []
    reasons = dict.fromkeys(each.reason for each in proof.differing)
    why = "; ".join(reasons) or "outputs are computed in float32"
    return [
        Finding(
            where="round trip",
            what=f"codes of {len(proof.differing)} tensors and {proof.outputs_differ} numbers of "
            f"outputs are not proven to be those of the graph that was trained: {why}",
        )
    ]
