"""The export stage: a network or a file becomes the canonical FP32 graph, proven to be the same.

The only file here that touches disk.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.artifacts import (
    CheckpointFacts,
    ExportedModel,
    Finding,
    Manifest,
    ParityCheck,
    ValueFacts,
)
from onnxq.errors import (
    ExportError,
    MissingExtraError,
    ModelError,
    RuntimeFailureError,
    nearest,
)
from onnxq.export.clean import MOST_STEPS, CleanStep, cleaning
from onnxq.export.freeze import freeze, refuse_branches, refuse_half
from onnxq.export.lint import lint, unreachable_parameters
from onnxq.export.opset import OLDEST, convert_opset, opset_of
from onnxq.export.parity import compare_outputs, input_sets, require
from onnxq.export.rewrites.unroll_loop import refuse_long_loops
from onnxq.graph import load_model, parameter_count, refuse_quantized, save_model, values_of
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.recipe import ExportSection, PartSection, Tolerance, ValueSection
from onnxq.runtime import Session
from onnxq.samples import Samples
from onnxq.splitting.manifest import PARTS, PartsSession, write_parts
from onnxq.store import facts_of_file, save_record
from onnxq.target import Target

__all__ = ["AS_IT_CAME", "MODEL", "RECORD", "export"]

MODEL, RECORD = "fp32.onnx", "export.json"
AS_IT_CAME = "exported.onnx"
SEED = 0
Array = Shaped[np.ndarray, "..."]
Rows = list[dict[str, Array]]


@dataclass(frozen=True)
class _Source:
    """A graph as it came, its inputs to try, and what was found on the way."""

    model: onnx.ModelProto
    opset: int
    sets: Mapping[str, Rows]
    parity: tuple[ParityCheck, ...] = ()
    checkpoint: CheckpointFacts | None = None
    steps: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def export(  # noqa: PLR0913  (one keyword for each thing that an export looks at)
    section: ExportSection,
    folder: Path,
    *,
    target: Target,
    search: Path | None = None,
    samples: Samples | None = None,
    parts: Sequence[PartSection] = (),
    progress: Progress = silent,
) -> ExportedModel:
    """The canonical graph of a network or of an ``.onnx`` file, written to ``folder``.

    ``folder`` gets the graph, the graph as it was before any rewrite, and the record.

    ``samples`` are real inputs to compare on, beside random and extreme ones. Every hop (torch →
    ONNX → each step of the cleaning → its ``parts``, if it is to be cut into some) is compared on
    all of them; ParityError if one computes something else. Raises PluginError, CheckpointError,
    ExportError, ModelError, DataError, and MissingExtraError if a network is given and torch is not
    installed.
    """
    if section.model is not None:
        source = _from_file(section, section.model, target, samples)
    else:
        source = _from_network(section, target, search, samples)
    checks, steps, model = _cleaned(
        source, section, (*target.rewrites, *section.rewrites), progress
    )
    _check_outputs(section.outputs, values_of(model)[1])
    save_model(source.model, folder / AS_IT_CAME)
    save_model(model, folder / MODEL)
    exported = _record(section, source, folder / MODEL).model_copy(
        update={"parity": (*source.parity, *checks), "steps": (*source.steps, *steps)}
    )
    if parts:
        domains = {value.name: value.domain for value in (*section.inputs, *section.outputs)}
        manifest = write_parts(folder / MODEL, model, model, parts, folder / PARTS, domains)
        checks = (*checks, *_parts_parity(model, manifest, folder, source.sets, section.tolerance))
        exported = exported.model_copy(
            update={"parts": manifest, "parity": (*source.parity, *checks)}
        )
    rows = [row for rows in source.sets.values() for row in rows]
    findings = (*source.findings, *_about_inputs(section, source.sets), *lint(model, rows))
    exported = exported.model_copy(update={"findings": findings})
    save_record(exported, folder / RECORD)
    return exported


def _record(section: ExportSection, source: _Source, path: Path) -> ExportedModel:
    """The facts of the file that was written, read from the file."""
    model = load_model(path)
    domains = {value.name: value.domain for value in (*section.inputs, *section.outputs)}
    inputs, outputs = values_of(model, domains)
    return ExportedModel(
        model=facts_of_file(path),
        inputs=inputs,
        outputs=outputs,
        opset=opset_of(model),
        parameters=parameter_count(model),
        checkpoint=source.checkpoint,
        provenance=provenance(section.model_dump(mode="json")),
    )


# --- where the graph comes from -----------------------------------------------------------------


def _from_network(
    section: ExportSection, target: Target, search: Path | None, samples: Samples | None
) -> _Source:
    """Build, fill, export, and compare the network with its graph."""
    low, high = target.opset
    if not low <= section.opset <= high:
        raise ExportError(
            f"opset {section.opset} is outside what {target.name} takes ({low} to {high})",
            where="export.opset",
            do=f"set `opset` to a number from {low} to {high}",
        )
    if section.network is None or section.checkpoint is None:
        raise ExportError("gives neither a network with its checkpoint nor a model", where="export")
    try:
        from onnxq.export.checkpoint import load_checkpoint
        from onnxq.export.from_torch import (
            build_network,
            export_network,
            run_network,
            unused_parameters,
        )
    except ModuleNotFoundError as fault:
        raise MissingExtraError(
            f"exporting a network needs the package `{fault.name}`",
            do="pip install 'onnxq[torch]'",
        ) from fault
    network = build_network(section.network, section.arguments, search)
    facts, findings = load_checkpoint(
        network,
        section.checkpoint,
        weights_key=section.weights_key,
        waivers=section.waive_keys,
    )
    inputs = _declared_inputs(section.inputs, target, samples)
    sets = input_sets(inputs, samples, SEED)
    names = [value.name for value in section.outputs]
    expected = {
        label: [run_network(network, row, names) for row in rows] for label, rows in sets.items()
    }
    model = export_network(
        network, sets["random"][0], names, opset=section.opset, batch=target.batch
    )
    refuse_branches(model, section.network)
    got = _run_all(_session(model), sets)
    hop = "torch → ONNX"
    unused = unused_parameters(network, sets["random"][0])
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return _Source(
        model=model,
        opset=section.opset,
        sets=sets,
        parity=tuple(
            require(
                compare_outputs(hop, label, expected[label], got[label], section.tolerance),
                section.tolerance,
            )
            for label in sets
        ),
        checkpoint=facts,
        steps=(f"exported from torch at opset {opset_of(model)}",),
        findings=(
            *findings,
            *unreachable_parameters(unused, sum(sizes[name] for name in unused)),
        ),
    )


def _declared_inputs(
    sections: Sequence[ValueSection], target: Target, samples: Samples | None
) -> tuple[ValueFacts, ...]:
    """Facts of a network's inputs; a type other than float32 is that of the samples."""

    def dtype(name: str) -> str:
        column = samples.inputs.get(name) if samples is not None else None
        return "float32" if column is None or column.dtype.kind == "f" else str(column.dtype)

    def shape(section: ValueSection) -> tuple[int | str, ...]:
        first = "batch" if target.batch == "free" else 1
        return (first, *(section.shape or ())[1:])

    return tuple(
        ValueFacts(name=s.name, dtype=dtype(s.name), shape=shape(s), domain=s.domain)
        for s in sections
    )


def _from_file(
    section: ExportSection, path: Path, target: Target, samples: Samples | None
) -> _Source:
    """Read an ``.onnx`` file, and set its free dimensions."""
    model = load_model(path)
    refuse_quantized(model, path.name)
    refuse_branches(model, path.name)
    refuse_half(model, path.name)
    steps, findings = [f"read {path.name}"], []
    if opset_of(model) < OLDEST:
        what = f"brought from opset {opset_of(model)} to {OLDEST}, the oldest that can be quantized"
        findings.append(Finding(where=path.name, what=what))
        steps.append(f"opset {opset_of(model)} → {OLDEST}")
        model = convert_opset(model, OLDEST)
    low, high = target.opset
    asked = "opset" in section.model_fields_set
    opset = section.opset if asked else min(max(opset_of(model), low), high)
    model = freeze(model, section.inputs, target.batch)
    domains = {value.name: value.domain for value in section.inputs}
    inputs, _ = values_of(model, domains)
    return _Source(
        model=model,
        opset=opset,
        sets=input_sets(inputs, samples, SEED),
        steps=tuple(steps),
        findings=tuple(findings),
    )


# --- what is done to it -------------------------------------------------------------------------


def _cleaned(
    source: _Source, section: ExportSection, rewrites: Sequence[str], progress: Progress
) -> tuple[tuple[ParityCheck, ...], tuple[str, ...], onnx.ModelProto]:
    """The canonical graph; each step is compared with the one before, so a fault is named."""
    tolerance = section.tolerance
    session = _session(source.model)  # refuses damage that would break what reads it next
    refuse_long_loops(source.model)
    before = first = _run_all(session, source.sets)
    lines: list[str] = []
    step: CleanStep | None = None
    for step in _shown(
        cleaning(source.model, source.opset, rewrites, section.split_concats), progress
    ):
        try:
            after = _run_all(_session(step.model), source.sets)
        except RuntimeFailureError as fault:
            raise ExportError(
                f"leaves a graph that does not run: {fault.what}",
                where=f"the step `{step.what}`",
                do="report it with the model; a rewrite of the recipe's can be left out",
            ) from fault
        worst = [
            require(
                compare_outputs("cleaning", label, before[label], after[label], tolerance),
                tolerance,
                step.what,
            )
            for label in source.sets
        ]
        lines.append(f"{step.what}: max difference {max(c.max_absolute for c in worst):.1e}")
        before = after
    if step is None:
        raise ExportError("the cleaning has no step", where="export")
    refuse_branches(step.model, "the unrolled graph")
    hop = "ONNX → cleaned ONNX"
    checks = tuple(
        require(compare_outputs(hop, label, first[label], before[label], tolerance), tolerance)
        for label in source.sets
    )
    return checks, tuple(lines), step.model


def _parts_parity(
    model: onnx.ModelProto,
    manifest: Manifest,
    folder: Path,
    sets: Mapping[str, Rows],
    tolerance: Tolerance,
) -> Iterator[ParityCheck]:
    """The parts, run as the manifest says, against the whole graph; the first row of a batch."""
    session = PartsSession(manifest, folder / PARTS, optimization="none")
    for label, rows in sets.items():
        single = [{name: array[:1] for name, array in row.items()} for row in rows]
        wanted = _run_all(_session(model), {label: single})[label]
        got = [session.run(row) for row in single]
        hop = "whole graph → parts"
        yield require(compare_outputs(hop, label, wanted, got, tolerance), tolerance)


def _shown(steps: Iterator[CleanStep], progress: Progress) -> Iterator[CleanStep]:
    yield from progress(steps, "cleaning the graph", MOST_STEPS)


def _session(model: onnx.ModelProto) -> Session:
    """Of the graph as it says: operator by operator."""
    return Session(model.SerializeToString(), optimization="none")


def _run_all(session: Session, sets: Mapping[str, Rows]) -> dict[str, Rows]:
    """Every output on every set."""
    return {label: [session.run(row) for row in rows] for label, rows in sets.items()}


def _about_inputs(section: ExportSection, sets: Mapping[str, Rows]) -> Iterator[Finding]:
    """What the comparison could not know of the inputs."""
    if "real" not in sets:
        yield Finding(
            where="parity",
            what="compared on random and extreme inputs only: no real samples were given",
            do="give data, so that parity is measured where the model is used",
        )
    declared = {value.name for value in section.inputs if value.domain is not None}
    unknown = [name for name in sets["random"][0] if name not in declared]
    if unknown:
        yield Finding(
            where="parity",
            what=f"no domain is declared for {', '.join(unknown)}: values from -1 to 1 were tried",
            do="declare the `domain` of every input in the recipe's export section",
        )


def _check_outputs(declared: Sequence[ValueSection], found: Sequence[ValueFacts]) -> None:
    """Raise ModelError for a declared output that the graph lacks or shapes otherwise."""
    shapes = {value.name: value.shape for value in found}
    for section in declared:
        if section.name not in shapes:
            raise ModelError(
                f"the model has no output `{section.name}`; {nearest(section.name, shapes)}",
                where="export.outputs",
            )
        shape, wanted = shapes[section.name], section.shape
        if wanted is not None and (
            len(wanted) != len(shape)
            or any(isinstance(d, int) and d != w for d, w in zip(shape, wanted, strict=True))
        ):
            raise ModelError(
                f"`{section.name}` has shape {list(shape)}, and the recipe says {list(wanted)}",
                where="export.outputs",
                do="correct the recipe, or the network",
            )
