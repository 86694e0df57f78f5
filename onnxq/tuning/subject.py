"""What is looked into: the canonical graph, its ranges, the samples that they come from."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx

from onnxq.artifacts import CalibrationResult, ExportedModel
from onnxq.errors import StaleRecordError
from onnxq.export.stage import RECORD as EXPORT
from onnxq.graph import load_model
from onnxq.pipeline import Observer, run
from onnxq.plain.calibrate import FP32, Data, Means, calibrated
from onnxq.progress import Progress
from onnxq.quantize.stage import Planned, plan_draft
from onnxq.recipe import QuantizeSection, Recipe
from onnxq.recipe_samples import samples_of
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import Target, load_target

__all__ = ["Subject", "subject_of_file", "subject_of_recipe"]


@dataclass(frozen=True)
class Subject:
    """An FP32 graph in canonical form with its ranges, and how it is to be quantized for what.

    ``samples`` are those that the ranges were calibrated on, ``unused`` the others of their source.
    """

    name: str
    model: Path
    calibration: CalibrationResult
    target: Target
    section: QuantizeSection
    samples: Samples
    unused: Samples | None = None
    recipe: Recipe | None = None

    @cached_property
    def original(self) -> onnx.ModelProto:
        """The FP32 graph."""
        return load_model(self.model)

    @cached_property
    def planned(self) -> Planned:
        """The draft before any refine step."""
        return plan_draft(self.original, self.calibration, self.target, self.section)

    @property
    def batch(self) -> int:
        """How many samples one run of the graph takes."""
        return self.calibration.collection.batch


def subject_of_recipe(
    recipe: Recipe, folder: Path, observer: Observer, progress: Progress
) -> Subject:
    """From the recipe's calibration in ``folder``, which is made if it is missing.

    Raises StaleRecordError if no graph in ``folder`` is the one that was calibrated.
    """
    outcome = run(recipe, folder, observer, last="calibrate", progress=progress)
    if outcome.calibration is None:
        raise RuntimeError("stages run in order")
    samples = samples_of(recipe, recipe.data.calibration, progress)
    files = (*(folder / "calibrate").glob("*.onnx"), folder / "export" / FP32)
    wanted = outcome.calibration.model_sha256
    model = next((file for file in files if sha256_of_file(file) == wanted), None)
    if model is None:
        raise StaleRecordError(
            "no graph is the one that was calibrated", where=str(folder), do="run the recipe again"
        )
    drawn, unused = _divided(samples, outcome.calibration)
    return Subject(
        name=recipe.name,
        model=model,
        calibration=outcome.calibration,
        target=load_target(recipe.target),
        section=recipe.quantize,
        samples=drawn,
        unused=unused,
        recipe=recipe,
    )


def subject_of_file(model: Path, target: Target, data: Data, work: Path, means: Means) -> Subject:
    """A plain FP32 file, calibrated on ``data`` in the folder ``work``. Raises as that does."""
    calibration = calibrated(model, target, data, work, means)
    exported = load_record(ExportedModel, work / EXPORT)
    samples, _ = data.open(exported, calibration.collection.batch, means.progress)
    drawn, unused = _divided(samples, calibration)
    return Subject(
        name=model.stem,
        model=work / FP32,
        calibration=calibration,
        target=target,
        section=QuantizeSection(),
        samples=drawn,
        unused=unused,
    )


def _divided(samples: Samples, calibration: CalibrationResult) -> tuple[Samples, Samples]:
    """The samples that were drawn, and those that were not."""
    drawn = np.array(calibration.choice.indices, np.int64)
    rest = np.setdiff1d(np.arange(len(samples)), drawn)
    return samples.take(drawn), samples.take(rest)
