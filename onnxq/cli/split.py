"""What ``onnxq export --propose-split`` prints and writes."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from onnxq.artifacts import Manifest
from onnxq.cli.console import DONE, Screen
from onnxq.errors import EXIT_PASSED, UsageError
from onnxq.export.rewrites.unroll_loop import is_short
from onnxq.export.stage import MODEL
from onnxq.export.stage import RECORD as EXPORT
from onnxq.graph import load_model
from onnxq.handoff.arrays import save_arrays
from onnxq.handoff.check import check
from onnxq.plain.export import Domains, export_file
from onnxq.plain.judge import samples_for
from onnxq.recipe import SplitSection
from onnxq.runtime import Session
from onnxq.sample_checks import made_up_samples
from onnxq.samples import TIMESTEPS
from onnxq.splitting.loop_body import Body
from onnxq.splitting.loops import CONSTANTS, LoopSplit, split_loops
from onnxq.splitting.manifest import MANIFEST, PartsSession, write_parts
from onnxq.splitting.propose import propose
from onnxq.splitting.reroll import split_steps
from onnxq.store import atomic_folder, load_record
from onnxq.target import Target

__all__ = ["LOOPS", "export_with_split", "say_proposals"]

LOOPS = "loops"  # the folder beside the canonical graph
_TOO_LONG = (
    "too long to be unrolled: there is no canonical graph of the whole; quantize a body by itself, "
    "on what its runs take (--body-data SOURCE writes that)"
)
_SAMPLES = 3
_PLACES_SHOWN = 2
Told = dict[str, Any]


def say_proposals(path: Path, target: Target, screen: Screen) -> list[Told]:
    """Print every cut of the canonical graph at ``path`` that gives the whole graph's numbers."""
    told, model = [], load_model(path)
    for proposal in propose(model):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            manifest = write_parts(path, model, model, proposal.split.parts, folder)
            screen.say(f"  {proposal.reason}")
            judged = _judged(path, manifest, folder, target, screen)
        lines = _lines(proposal.split)
        screen.say(yaml.safe_dump({"split": lines}, sort_keys=False, default_flow_style=None))
        told.append({"reason": proposal.reason, "split": lines, **judged})
    if not told:
        screen.say(
            "  no cut to propose: no body on many rows, no heads, no indices that are computed"
        )
    return told


def export_with_split(
    model: Path,
    target: Target,
    domains: Domains,
    output: Path,
    body_data: str | None,
    screen: Screen,
) -> int:
    """The canonical form of ``model`` in ``output``, with every way to cut it; the exit code.

    The bodies of its loops, or of what was one, go to ``loops/`` beside it; where a loop is too
    long to be unrolled, there is no canonical form, and they are all there is. Raises UsageError
    for data without a loop, and as ``export_file`` and ``split_loops`` do.
    """
    loops = split_loops(load_model(model))
    short = loops is None or all(is_short(part) for part in _bodies(loops))
    result: Told = {"exit_code": EXIT_PASSED, "proposals": []}
    with atomic_folder(output, EXPORT if short else f"{LOOPS}/{MANIFEST}") as folder:
        if short:
            record = export_file(model, target, domains, folder)
            result["record"] = record.model_dump(mode="json")
            for step in record.steps:
                screen.say(f"  {step}")
            result["proposals"] = say_proposals(folder / MODEL, target, screen)
        whole = model
        if loops is None:  # it may have been written down step by step
            whole, loops = folder / MODEL, split_steps(load_model(folder / MODEL))
        if loops is None and body_data is not None:
            raise UsageError("the graph has no loop", where="--body-data", do="leave it out")
        if loops is not None:
            place = folder / LOOPS
            result["loops"] = _say_loops(whole, loops, place, target, screen)
            if short:
                screen.say("  in the canonical graph every run has nodes and ranges of its own")
            else:
                screen.say(f"  {_TOO_LONG}")
            if body_data is not None:
                _write_runs(whole, body_data, loops, place, screen)
    screen.say(str(output), mark=DONE)
    screen.result(result)
    return EXIT_PASSED


def _bodies(split: LoopSplit) -> list[Body]:
    return [part for part in split.parts if isinstance(part, Body) and part.name != CONSTANTS]


def _say_loops(path: Path, split: LoopSplit, folder: Path, target: Target, screen: Screen) -> Told:
    """Write the parts of the graph at ``path`` around its loops to ``folder``; print what they
    are."""
    manifest = write_parts(path, split.model, split.model, split.parts, folder)
    for reason in split.reasons:
        screen.say(f"  {reason}")
    judged = _judged(path, manifest, folder, target, screen)
    return {"reasons": split.reasons, **judged}


def _write_runs(path: Path, source: str, split: LoopSplit, folder: Path, screen: Screen) -> None:
    """Write what each loop's body takes on every run for the samples of ``source``.

    ``<body>_inputs.npz`` holds a sample for each run, as a source of data, with the number of the
    run as its timestep.
    """
    session = PartsSession(load_record(Manifest, folder / MANIFEST), folder, optimization="none")
    seen = [session.taken(row) for row in samples_for(path, source).rows()]
    for body in _bodies(split):
        runs = [run for row in seen for run in row[body.name]]
        arrays = {name: np.concatenate([run[name] for run in runs]) for name in runs[0]}
        arrays[TIMESTEPS] = np.tile(np.arange(body.times), len(seen))
        file = folder / f"{body.name}_inputs.npz"
        save_arrays(file, arrays)
        screen.say(f"  {file.name}: {len(runs)} runs of {body.name}, to calibrate it on")


def _judged(
    path: Path, manifest: Manifest, folder: Path, target: Target, screen: Screen
) -> dict[str, Any]:
    """How far the parts are from the whole on random inputs, and which rules each breaks."""
    difference = _difference(path, manifest, folder)
    screen.say(
        f"  run as parts on {_SAMPLES} random inputs, outputs differ by up to {difference:.1e}"
    )
    rules: dict[str, Any] = {}
    for part in manifest.parts:
        file = folder / part.file.name
        found = check(load_model(file), target, file_name=file.name, phase="any")
        rules[part.name] = [result.model_dump(mode="json") for result in found]
        if not found:
            screen.say(f"  {part.name} keeps the rules of {target.name} for any graph")
        for rule in dict.fromkeys(result.rule for result in found):
            places = [result for result in found if result.rule == rule]
            shown = "; ".join(f"{p.where} {p.what}" for p in places[:_PLACES_SHOWN])
            more = f"; and {len(places) - _PLACES_SHOWN} more" * (len(places) > _PLACES_SHOWN)
            word = "breaks" if places[0].severity == "error" else "is warned by"
            screen.say(f"  {part.name} {word} {rule}: {shown}{more}")
    return {"max_absolute": difference, "target": target.name, "rules": rules}


def _difference(path: Path, manifest: Manifest, folder: Path) -> float:
    parts = PartsSession(manifest, folder, optimization="none")
    whole = Session(path, optimization="none")
    samples = made_up_samples(manifest.inputs, _SAMPLES, seed=0)
    return max(
        float(np.max(np.abs(array.astype(np.float64) - got[name]), initial=0.0))
        for row in samples.rows()
        for got in [parts.run(row)]
        for name, array in whole.run(row).items()
    )


def _lines(split: SplitSection) -> dict[str, Any]:
    """The section without what is at its default, as a person would write it."""
    return split.model_dump(mode="json", exclude_defaults=True)
