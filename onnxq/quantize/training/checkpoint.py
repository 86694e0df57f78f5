"""The state of a training after every epoch, so that a killed one goes on to the same bits."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import Float
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from onnxq.artifacts import EpochFacts
from onnxq.errors import StoreError
from onnxq.store import atomic_file, sha256_of_file, write_text

__all__ = ["State", "keep", "kept"]

_NOTE = "state.json"
_EPOCHS = TypeAdapter(tuple[EpochFacts, ...])


@dataclass
class State:
    """Where training stands: offsets, the optimizer's moments, and those of the best epoch.

    ``best`` is the number of the epoch, 0 for the numbers before training, ``least`` what it was
    chosen by.
    """

    least: float
    best: int = 0
    tensors: dict[str, Float[Tensor, "..."]] = field(default_factory=dict)
    epochs: tuple[EpochFacts, ...] = ()


def keep(folder: Path, fingerprint: str, state: State) -> None:
    """Write ``state``: the tensors under a name of their own first, then the note that names them,
    so that what a kill at any moment leaves behind is a whole state. Raises StoreError."""
    name = f"epoch-{len(state.epochs)}.safetensors"
    with atomic_file(folder / name) as temporary:
        temporary.write_bytes(save(state.tensors))
    note = {
        "fingerprint": fingerprint,
        "tensors": name,
        "sha256": sha256_of_file(folder / name),
        "best": state.best,
        "least": state.least.hex(),
        "epochs": _EPOCHS.dump_python(state.epochs, mode="json"),
    }
    write_text(folder / _NOTE, json.dumps(note, indent=2) + "\n")
    for file in folder.glob("epoch-*.safetensors"):
        if file.name != name:
            file.unlink(missing_ok=True)


def kept(folder: Path, fingerprint: str) -> State | None:
    """The state of an earlier run of the same training; None if there is none that is whole."""
    with contextlib.suppress(OSError, StoreError, ValueError, KeyError, SafetensorError):
        note: Mapping[str, object] = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        file = folder / str(note["tensors"])
        if note["fingerprint"] != fingerprint or note["sha256"] != sha256_of_file(file):
            return None
        return State(
            least=float.fromhex(str(note["least"])),
            best=int(str(note["best"])),
            tensors=dict(load(file.read_bytes())),
            epochs=_EPOCHS.validate_python(note["epochs"]),
        )
    return None
