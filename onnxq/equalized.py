"""The float steps between export and calibration: run, proven to keep the function, on record.

Ranges are those of the graph after them, so they run before the calibration; what is verified is
compared with the FP32 graph before them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.artifacts import EqualizedModel, FloatStepResult, ValueFacts
from onnxq.calibrate.plans import choose
from onnxq.calibrate.stage import Subject
from onnxq.errors import StaleRecordError
from onnxq.export.parity import compare_outputs, input_sets
from onnxq.graph import load_model, save_model
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.quantize.float_steps.observe import SampleExtremes
from onnxq.quantize.float_steps.table import FLOAT_STEPS
from onnxq.quantize.float_steps.types import Given
from onnxq.recipe import CalibrateSection, FloatStepName, PartSection, Tolerance
from onnxq.runtime import Session
from onnxq.samples import Samples
from onnxq.store import facts_of_file, load_record, save_record, sha256_of_file

__all__ = [
    "MODEL",
    "RECORD",
    "Basis",
    "cut_tensors",
    "equalize_graph",
    "equalized_subject",
    "load_equalized",
]

MODEL, RECORD = "equalized.onnx", "equalized.json"
_SEED = 0
Rows = list[dict[str, Shaped[np.ndarray, "..."]]]


@dataclass(frozen=True)
class Basis:
    """The FP32 graph that steps run on, its inputs, and the samples that they may look at.

    ``batch`` samples make a run; ``kept`` tensors keep their numbers.
    """

    model: Path
    inputs: tuple[ValueFacts, ...]
    samples: Samples
    batch: int = 1
    kept: frozenset[str] = frozenset()


def equalize_graph(
    basis: Basis,
    names: Collection[FloatStepName],
    folder: Path,
    progress: Progress = silent,
) -> EqualizedModel:
    """The graph after the float steps ``names``, and the record, in ``folder``.

    After each step all outputs are compared with those of the graph before the first, on random,
    extreme and real inputs, to 1e-4 absolute or 1e-5 relative. A step that does not keep them is
    taken back, and the record says so. Raises QuantizationError as a step does.
    """
    graph = ir.from_proto(load_model(basis.model))
    sets = input_sets(basis.inputs, basis.samples, _SEED)
    exact, tolerance = _run_all(ir.to_proto(graph), sets), Tolerance()
    given = Given(SampleExtremes(basis.samples, basis.batch, progress), basis.kept)
    results = []
    for name, step in FLOAT_STEPS.items():
        if name not in names:
            continue
        stepped = step(graph, given)
        got = _run_all(ir.to_proto(stepped.graph), sets)
        checks = tuple(
            compare_outputs(f"float step {name}", label, exact[label], got[label], tolerance)
            for label in sets
        )
        failed = [check.inputs for check in checks if not check.passed]
        undone = f"outputs differ on the {' and '.join(failed)} inputs" if failed else ""
        graph = graph if failed else stepped.graph
        results.append(
            FloatStepResult(
                step=name,
                links=stepped.links,
                skipped=stepped.skipped,
                samples=stepped.samples,
                parity=checks,
                undone=undone,
            )
        )
    save_model(ir.to_proto(graph), folder / MODEL)
    record = EqualizedModel(
        model=facts_of_file(folder / MODEL),
        fp32_sha256=sha256_of_file(basis.model),
        steps=tuple(results),
        provenance=provenance({"float_steps": sorted(names)}),
    )
    save_record(record, folder / RECORD)
    return record


def equalized_subject(  # noqa: PLR0913 - what is changed, how, and what is at hand for it
    subject: Subject,
    samples: Samples,
    section: CalibrateSection,
    names: Collection[FloatStepName],
    folder: Path,
    *,
    kept: frozenset[str] = frozenset(),
    progress: Progress = silent,
) -> Subject:
    """What is to be calibrated after the float steps ``names``: the graph in ``folder``.

    Steps look at the samples that the calibration will draw, and at no others.
    """
    chosen = samples.take(choose(samples, section).indices)
    basis = Basis(subject.model, tuple(subject.inputs), chosen, subject.batch, kept)
    equalize_graph(basis, names, folder, progress)
    return replace(subject, model=folder / MODEL)


def load_equalized(folder: Path, fp32: Path) -> EqualizedModel:
    """The record in ``folder``. Raises StaleRecordError if it, the graph beside it and the FP32
    graph that it was made from do not belong together."""
    record = load_record(EqualizedModel, folder / RECORD)
    for path, digest in ((folder / MODEL, record.model.sha256), (fp32, record.fp32_sha256)):
        if sha256_of_file(path) != digest:
            raise StaleRecordError(
                f"is not the file that {RECORD} speaks of",
                where=str(path),
                do="run the float steps again",
            )
    return record


def cut_tensors(parts: Collection[PartSection]) -> frozenset[str]:
    """Tensors where the graph is cut into ``parts``: the host sees their numbers."""
    return frozenset(value.tensor for part in parts for value in (*part.inputs, *part.outputs))


def _run_all(model: onnx.ModelProto, sets: Mapping[str, Rows]) -> dict[str, Rows]:
    session = Session(model.SerializeToString(), optimization="none")
    return {label: [session.run(row) for row in rows] for label, rows in sets.items()}
