"""One model of a bundle: the file, its contract, its known answers, and what is made from them."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from onnxq.artifacts import AnswerCheck
from onnxq.handoff.answers import make_answers, replay
from onnxq.handoff.arrays import save_arrays
from onnxq.handoff.bundle import refuse_inexact_answers
from onnxq.handoff.c_self_test import write_c_files
from onnxq.handoff.contract import Contract
from onnxq.handoff.layers import write_layers
from onnxq.handoff.memory import MEMORY_FILE, memory_of
from onnxq.handoff.st_edge_ai import st_files
from onnxq.samples import Samples
from onnxq.sizes import external_files
from onnxq.store import save_record, write_text
from onnxq.target import Target

__all__ = ["ANSWERS_FILE", "CONTRACT_FILE", "Part", "write_part"]

ANSWERS_FILE, CONTRACT_FILE = "known_answers.npz", "contract.json"
Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True)
class Part:
    """A model file on its way into a bundle; most bundles hold one."""

    model: Path
    contract: Contract
    target: Target


def write_part(folder: Path, part: Part, samples: Samples, count: int) -> AnswerCheck:
    """Write everything about one model to ``folder``; what the replay of its answers gave.

    ``samples`` are inputs of this very model; ``count`` of them become known answers. Raises
    AuditError if the answers cannot be replayed bit for bit, DataError, RuntimeFailureError.
    """
    name, target = part.model.name, part.target
    shutil.copyfile(part.model, folder / name)
    for file in external_files(part.model):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part.model.parent / file, folder / file)
    save_record(part.contract, folder / CONTRACT_FILE)
    arrays = make_answers(folder / name, part.contract, target, samples, count)
    save_arrays(folder / ANSWERS_FILE, arrays)
    write_c_files(folder, part.contract, arrays)
    write_layers(folder, part.contract, target, arrays)
    save_record(memory_of(folder / name, target), folder / MEMORY_FILE)
    for file, text in st_files(part.contract, target).items():
        write_text(folder / file, text)
    if any("{answers}" in command for command in target.commands):
        _write_validation_arrays(folder, arrays, part.contract)
    with np.load(folder / ANSWERS_FILE, allow_pickle=False) as written:
        answers = replay(folder / name, dict(written), target)
    refuse_inexact_answers(answers, name)
    return answers


def _write_validation_arrays(folder: Path, arrays: Mapping[str, Array], contract: Contract) -> None:
    """Inputs and outputs alone, the vectors joined along the batch axis, in the graph's order."""
    for kind, values in (("input", contract.inputs), ("output", contract.outputs)):
        joined = {value.name: np.concatenate(arrays[f"{kind}.{value.name}"]) for value in values}
        save_arrays(folder / f"validate_{kind}s.npz", joined)
