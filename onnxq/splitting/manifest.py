"""The parts of a graph on disk, and their execution as if they were one model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.artifacts import HostStep, LoopStep, Manifest, PartFacts, Step
from onnxq.graph import save_model, shapes_of, values_of, with_batch_of_one
from onnxq.recipe import PartSection
from onnxq.runtime import Optimization, Session
from onnxq.splitting.cut import cut_part
from onnxq.splitting.loop_body import Body
from onnxq.splitting.route import steps_of
from onnxq.splitting.routing import run_steps
from onnxq.store import facts_of_file, save_record, sha256_of_file

__all__ = ["MANIFEST", "PARTS", "PartsSession", "write_parts"]

PARTS, MANIFEST = "parts", "pipeline.json"  # the folder beside a graph, and what is in it
Array = Shaped[np.ndarray, "..."]
Domain = tuple[float, float] | None


def write_parts(
    whole: Path,
    model: onnx.ModelProto,
    fp32: onnx.ModelProto,
    parts: Sequence[PartSection | Body],
    folder: Path,
    domains: Mapping[str, Domain] = MappingProxyType({}),
) -> Manifest:
    """Write each part of ``model`` as ``<name>.onnx`` and the manifest to ``folder``.

    ``domains`` are those of the whole graph's inputs and outputs; a part's input that the host
    makes of one of them has its domain.

    ``model`` is ``fp32`` or its Q/DQ form and lies at ``whole``; ``fp32`` is the canonical graph,
    which says what is moved between parts; what bodies of loops among them give is an input of it.
    Raises ExportError as ``cut_part`` and ``steps_of``.
    """
    folder.mkdir(exist_ok=True)
    steps, shapes = steps_of(fp32, parts), shapes_of(fp32)
    facts = []
    for part in parts:
        path = folder / f"{part.name}.onnx"
        proto = part.model if isinstance(part, Body) else cut_part(model, part, shapes)
        save_model(proto, path)
        inputs, outputs = values_of(onnx.load(path), _domains_of(part.name, steps, domains))
        facts.append(
            PartFacts(name=part.name, file=facts_of_file(path), inputs=inputs, outputs=outputs)
        )
    inputs, outputs = values_of(with_batch_of_one(fp32), domains)
    made = {name for part in parts if isinstance(part, Body) for name in part.shapes}
    manifest = Manifest(
        whole_sha256=sha256_of_file(whole),
        inputs=tuple(value for value in inputs if value.name not in made),
        outputs=outputs,
        parts=tuple(facts),
        steps=steps,
    )
    save_record(manifest, folder / MANIFEST)
    return manifest


def _domains_of(
    part: str, steps: Sequence[Step], domains: Mapping[str, Domain]
) -> dict[str, Domain]:
    """Domains of a part's inputs and outputs, by its own names, as far as they follow."""
    known = dict(domains)
    for step in steps:
        if isinstance(step, HostStep):
            given = {known.get(name) for name in step.inputs}
            known.setdefault(step.output, given.pop() if len(given) == 1 else None)
        elif step.part == part:
            ends = step.inputs | step.outputs
            if isinstance(step, LoopStep):
                ends |= step.rows | step.stacked
            return {own: known.get(name) for own, name in ends.items()}
    return {}


class PartsSession:
    """The parts of a manifest, run in order: what ``Session`` is for a graph that is whole.

    ``folder`` holds the parts. Raises RuntimeFailureError as ``Session`` does.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        *,
        optimization: Optimization = "full",
        config: Mapping[str, str] | None = None,
    ) -> None:
        self.input_names = tuple(value.name for value in manifest.inputs)
        self.output_names = tuple(value.name for value in manifest.outputs)
        self._steps = [step.model_dump(mode="json") for step in manifest.steps]
        self._parts = {
            part.name: Session(folder / part.file.name, optimization=optimization, config=config)
            for part in manifest.parts
        }

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one sample."""
        values = self.values(inputs)
        return {name: values[name] for name in self.output_names}

    def values(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Everything that goes into a part or comes out of one, for one sample."""
        return run_steps(self._steps, inputs, lambda part, given: self._parts[part].run(given))

    def taken(self, inputs: Mapping[str, Array]) -> dict[str, list[dict[str, Array]]]:
        """What goes into each part on every one of its runs, for one sample."""
        seen: dict[str, list[dict[str, Array]]] = {name: [] for name in self._parts}

        def run(part: str, given: Mapping[str, Array]) -> Mapping[str, Array]:
            seen[part].append(dict(given))
            return self._parts[part].run(given)

        run_steps(self._steps, inputs, run)
        return seen
