"""Strict loading: a network is filled from a checkpoint whole, or not at all."""

import contextlib
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from onnxq.artifacts import CheckpointFacts, Finding, WaivedKey
from onnxq.errors import CheckpointError, nearest
from onnxq.recipe import Waiver
from onnxq.store import facts_of_file

__all__ = ["load_checkpoint"]

State = Mapping[str, torch.Tensor]
_NESTS = ("model_state_dict", "state_dict", "model", "ema")  # raw weights before averaged ones
_ROWS = 20
_REMAKE = "save the weights alone: torch.save(network.state_dict(), path), or as .safetensors"


def load_checkpoint(
    network: torch.nn.Module,
    path: Path,
    *,
    weights_key: str | None = None,
    waivers: Sequence[Waiver] = (),
) -> tuple[CheckpointFacts, tuple[Finding, ...]]:
    """Fill ``network`` in place from a ``.safetensors`` file or a torch checkpoint.

    The weights are looked for under ``weights_key`` (dots go deeper), else under
    ``model_state_dict``, ``state_dict``, ``model``, ``ema``, else at the top. Every key must fit:
    CheckpointError shows a table of those that are missing, unexpected, mis-shaped or not finite,
    and ``waivers`` let single keys pass by name. A file is read as data only; one that would run
    code is refused unread.
    """
    content = _read(path)
    nest, state, findings = _select(content, weights_key, path)
    state, prefix = _without_prefix(state, network)
    if prefix:
        findings = (*findings, Finding(where=path.name, what=f"dropped `{prefix}` from every key"))
    wanted = network.state_dict()
    problems = dict(_problems(state, wanted))
    waived = _waive(problems, waivers, path)
    open_problems = {key: row for key, row in problems.items() if key not in waived}
    if open_problems:
        raise CheckpointError(
            _table(open_problems),
            where=str(path),
            do="give the checkpoint of this network; a key may be waived in `waive_keys`, by name",
        )
    fitting = {key: value for key, value in state.items() if key in wanted and key not in waived}
    network.load_state_dict(fitting, strict=False)
    facts = CheckpointFacts(
        file=facts_of_file(path),
        nested_under=nest,
        tensors=len(fitting),
        waived=tuple(WaivedKey(key=w.name, reason=w.reason) for w in waivers),
    )
    return facts, findings


# --- reading ------------------------------------------------------------------------------------


def _read(path: Path) -> Mapping[str, object]:
    """The content of the file, as data. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError("no such file", where=str(path), do="check `checkpoint` in export")
    with path.open("rb") as file:
        start = file.read(8)
    if not start:
        raise CheckpointError("is empty", where=str(path), do="copy or train it again")
    with _naming(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns before it raises
        if path.suffix == ".safetensors":
            return load_file(path)
        if not start.startswith((b"PK\x03\x04", b"\x80")):
            raise CheckpointError(
                "is neither a torch checkpoint nor a .safetensors file",
                where=str(path),
                do="give the file that the training script saved",
            )
        content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        what = f"holds a {type(content).__name__}, no mapping of names to tensors"
        raise CheckpointError(what, where=str(path), do=_REMAKE)
    return content


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever the readers raise into a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as fault:
        found = re.search(r"GLOBAL ([\w.]+)", str(fault))
        if found is None:
            raise CheckpointError(
                "is damaged, or a pickle of Python objects, which could run any code: refused",
                where=str(path),
                do=_REMAKE,
            ) from fault
        raise CheckpointError(
            f"holds the Python object `{found[1]}`, and reading it could run any code: refused",
            where=str(path),
            do=_REMAKE,
        ) from fault
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:
        raise CheckpointError(
            f"is truncated, damaged, or no checkpoint: {str(fault).strip().splitlines()[0]}",
            where=str(path),
            do="copy it again and compare its size with the original's",
        ) from fault


# --- choosing -----------------------------------------------------------------------------------


def _select(
    content: Mapping[str, object], weights_key: str | None, path: Path
) -> tuple[str | None, State, tuple[Finding, ...]]:
    """Where the weights lie, the weights, and what should be known of the choice."""
    if weights_key is not None:
        return weights_key, _at(content, weights_key, path), ()
    nests = {nest: state for nest in _NESTS if (state := _state_of(content.get(nest))) is not None}
    if not nests:
        state = _state_of(content)
        if state is None:
            raise CheckpointError(
                "holds no weights at the top nor under " + ", ".join(f"`{n}`" for n in _NESTS),
                where=str(path),
                do="name the place in `weights_key`; the file has: " + ", ".join(map(str, content)),
            )
        return None, state, ()
    chosen, *others = nests
    return (
        chosen,
        nests[chosen],
        tuple(
            Finding(
                where=path.name,
                what=f"holds weights under `{chosen}` and `{other}`; `{chosen}` was taken",
                do=f"set `weights_key: {other}` in the recipe's export section to take the others",
            )
            for other in others
        ),
    )


def _at(content: Mapping[str, object], weights_key: str, path: Path) -> State:
    place: object = content
    for part in weights_key.split("."):
        known = [str(key) for key in place] if isinstance(place, Mapping) else []
        if not isinstance(place, Mapping) or part not in place:
            raise CheckpointError(
                f"has no `{part}` of `weights_key: {weights_key}`; {nearest(part, known)}",
                where=str(path),
            )
        place = place[part]
    state = _state_of(place)
    if state is None:
        raise CheckpointError(f"`{weights_key}` holds no weights", where=str(path))
    return state


def _state_of(content: object) -> State | None:
    """The content if it maps names to tensors and to nothing else."""
    if not isinstance(content, Mapping) or not content:
        return None
    fits = all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in content.items())
    return content if fits else None


def _without_prefix(state: State, network: torch.nn.Module) -> tuple[State, str]:
    """Drop the ``module.`` that DataParallel puts before every key, and say so."""
    prefix, wanted = "module.", network.state_dict()
    if all(key.startswith(prefix) for key in state) and not any(key in wanted for key in state):
        return {key.removeprefix(prefix): value for key, value in state.items()}, prefix
    return state, ""


# --- judging ------------------------------------------------------------------------------------


def _problems(state: State, wanted: State) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Key → (problem, in the checkpoint, in the network), for every key that does not fit."""
    for key, target in wanted.items():
        if key not in state:
            yield key, ("missing", "–", _describe(target))
            continue
        given = state[key]
        if given.shape != target.shape or given.is_floating_point() != target.is_floating_point():
            yield key, ("mis-shaped", _describe(given), _describe(target))
        elif given.is_floating_point() and not bool(torch.isfinite(given).all()):
            yield key, ("not finite", _describe(given), _describe(target))
    for key in state:
        if key not in wanted:
            yield key, ("unexpected", _describe(state[key]), "–")


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _waive(problems: Mapping[str, object], waivers: Sequence[Waiver], path: Path) -> frozenset[str]:
    for waiver in waivers:
        if waiver.name not in problems:
            hint = nearest(waiver.name, problems) if problems else "every key fits"
            raise CheckpointError(
                f"the waiver `{waiver.name}` matches no key that does not fit; {hint}",
                where=str(path),
                do="correct or delete it in the recipe's `waive_keys`",
            )
    return frozenset(waiver.name for waiver in waivers)


def _table(problems: Mapping[str, tuple[str, str, str]]) -> str:
    """The problems as aligned lines, at most 20 of them."""
    rows = [("key", "problem", "checkpoint", "network")]
    rows += [(key, *row) for key, row in list(problems.items())[:_ROWS]]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if len(problems) > _ROWS:
        lines.append(f"  … and {len(problems) - _ROWS} more")
    counts: dict[str, int] = {}
    for problem, *_ in problems.values():
        counts[problem] = counts.get(problem, 0) + 1
    summary = ", ".join(f"{count} {problem}" for problem, count in counts.items())
    return "\n".join([f"does not fit the network: {summary}", *lines])
