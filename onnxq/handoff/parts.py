"""A graph that ships in parts: each a model of its own, and the manifest that runs them as one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from onnxq.artifacts import AnswerCheck, ExportedModel, Manifest, QuantizedModel, RunStep
from onnxq.errors import ModelError, StaleRecordError
from onnxq.graph import load_model
from onnxq.handoff.answers import make_answers, replay
from onnxq.handoff.arrays import save_arrays
from onnxq.handoff.bundle import refuse_inexact_answers
from onnxq.handoff.contract import Contract, contract
from onnxq.handoff.part import ANSWERS_FILE, CONTRACT_FILE, Part, write_part
from onnxq.samples import Samples
from onnxq.splitting.manifest import MANIFEST, PARTS, PartsSession
from onnxq.store import save_record, sha256_of_file
from onnxq.target import Target

__all__ = ["parts_to_ship", "write_parts_of_bundle"]


def parts_to_ship(
    whole: Path, exported: ExportedModel | None, quantized: QuantizedModel | None, target: Target
) -> tuple[Part, ...]:
    """The parts beside ``whole``, each with the contract of its own file; none if it ships whole.

    Raises StaleRecordError if a part is not the one of the quantization's record, ModelError if it
    has no contract or takes more than one row in a run.
    """
    manifest = quantized.parts if quantized is not None else None
    if manifest is None:
        return ()
    known = (
        {part.name: part for part in exported.parts.parts} if exported and exported.parts else {}
    )
    parts = []
    for facts in manifest.parts:
        path = whole.parent / PARTS / facts.file.name
        if not path.is_file() or sha256_of_file(path) != facts.file.sha256:
            raise StaleRecordError(
                "is not the part that the quantization's record is about",
                where=str(path),
                do="quantize and verify again",
            )
        for value in facts.inputs:
            if not value.shape or value.shape[0] != 1:
                raise ModelError(
                    f"its input `{value.name}` {list(value.shape)} has no batch of 1 in front",
                    where=f"split, part {facts.name}",
                    do="give the input a `shape` that begins with 1, or set `each_row`",
                )
        made = contract(
            load_model(path), quantized, known.get(facts.name),
            name=path.name, sha256=facts.file.sha256,
        )  # fmt: skip
        parts.append(Part(path, made, target))
    return tuple(parts)


def write_parts_of_bundle(
    folder: Path,
    parts: Sequence[Part],
    manifest: Manifest,
    whole: Contract,
    samples: Samples,
    count: int,
) -> tuple[Contract, AnswerCheck]:
    """Write every part into a folder of its name, and at the top what makes one model of them.

    ``whole`` is the contract of the graph that the parts were cut from; returned is that of the
    manifest which stands for it, and what the replay of its known answers gave. A part's known
    answers are those of its runs on the same samples. Raises as ``write_part`` does.
    """
    target = parts[0].target
    names = [part.name for part in manifest.parts]
    inside = _samples_of_parts(manifest, parts[0].model.parent, target, samples.thinned(count))
    for name, part in zip(names, parts, strict=True):
        (folder / name).mkdir()
        write_part(folder / name, part, inside[name], count)
    moved = manifest.model_copy(
        update={
            "parts": tuple(
                facts.model_copy(
                    update={
                        "file": facts.file.model_copy(
                            update={"name": f"{facts.name}/{facts.file.name}"}
                        )
                    }
                )
                for facts in manifest.parts
            )
        }
    )
    save_record(moved, folder / MANIFEST)
    digest = sha256_of_file(folder / MANIFEST)
    top = whole.model_copy(update={"model": MANIFEST, "sha256": digest})
    save_record(top, folder / CONTRACT_FILE)
    arrays = make_answers(folder / MANIFEST, top, target, samples, count)
    save_arrays(folder / ANSWERS_FILE, arrays)
    answers = replay(folder / MANIFEST, arrays, target)
    refuse_inexact_answers(answers, MANIFEST)
    return top, answers


def _samples_of_parts(
    manifest: Manifest, folder: Path, target: Target, samples: Samples
) -> dict[str, Samples]:
    """What goes into every part while ``samples`` go through all of them; each run is a sample."""
    session = PartsSession(
        manifest, folder, optimization=target.judged_level, config=target.session_options
    )
    seen = [session.values(row) for row in samples.rows()]
    return {
        step.part: Samples(
            name=f"runs of {step.part} on {samples.name}",
            inputs=_joined(step.inputs, seen),
            made_up=samples.made_up,
        )
        for step in manifest.steps
        if isinstance(step, RunStep)
    }


def _joined(
    inputs: Mapping[str, str], seen: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    return {own: np.concatenate([values[name] for values in seen]) for own, name in inputs.items()}
