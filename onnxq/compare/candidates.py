"""What is compared: recipes' build folders and plain files that come from one FP32 model."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onnxq import plugins
from onnxq.artifacts import ExportedModel, QuantizedModel
from onnxq.errors import DataError, PluginError, UsageError
from onnxq.graph import is_quantized_form, load_model
from onnxq.pipeline import EXPORTED, FP32, INT8, RECORDS
from onnxq.plain.export import export_file, opset_of
from onnxq.plain.quantize import record_of, target_for
from onnxq.progress import Progress
from onnxq.recipe import Gate, Recipe
from onnxq.recipe_samples import evaluation_of
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import Target
from onnxq.verify.metrics import Task

__all__ = [
    "Candidate",
    "Given",
    "evaluation_samples",
    "fp32_of",
    "gate_of",
    "open_candidates",
    "task_of",
]


@dataclass(frozen=True)
class Given:
    """One thing that is to be compared: a recipe with the folder of its results, such a folder
    alone, or an ``.onnx`` file."""

    path: Path
    recipe: Recipe | None = None

    @property
    def is_folder(self) -> bool:
        """Whether it is a recipe's build folder."""
        return self.recipe is not None or self.path.is_dir()


@dataclass(frozen=True)
class Candidate:
    """A quantized model, and what is known of how it was made."""

    name: str
    kind: Literal["recipe", "build folder", "file"]
    file: Path
    target: Target
    quantized: QuantizedModel | None


def open_candidates(given: Sequence[Given], fp32: Path) -> tuple[Candidate, ...]:
    """The quantized models among ``given``, each made from the file ``fp32``.

    Raises UsageError, naming the one, if a candidate was made from another FP32 model; StoreError
    or StaleRecordError for a build folder without a finished model.
    """
    found: list[tuple[Path, Candidate, set[str]]] = []
    same = {sha256_of_file(fp32)}  # every form of that model
    for each in given:
        if each.is_folder:
            candidate, known = _from_folder(each)
            same |= known if same & known else set()
            found.append((each.path, candidate, known))
        elif _is_quantized(each.path):
            found.append((each.path, *_from_file(each.path, fp32)))
    for path, _, known in found:
        if known and not known & same:
            raise UsageError(
                f"was made from another FP32 model than {fp32}",
                where=str(path),
                do="compare models that come from one FP32 file; recipes then share their "
                "checkpoint and their `export` section",
            )
    if not found:
        raise UsageError("there is no quantized model to compare", where="usage")
    return _with_names_apart([candidate for _, candidate, _ in found])


def fp32_of(given: Sequence[Given]) -> Path:
    """The FP32 model that all are held against: the plain float file among ``given``, else that of
    the first build folder. Raises UsageError if there is none, or more than one."""
    floats = [each.path for each in given if not each.is_folder and not _is_quantized(each.path)]
    if len(floats) > 1:
        raise UsageError(
            f"{len(floats)} models are not quantized: {', '.join(map(str, floats))}",
            where="usage",
            do="give one FP32 model, and what was made from it",
        )
    if floats:
        return floats[0]
    folders = [each.path for each in given if each.is_folder]
    if not folders:
        raise UsageError(
            "no FP32 model is given", where="usage", do="give FP32.onnx beside the quantized files"
        )
    return folders[0] / "export" / EXPORTED


def task_of(recipe: Recipe) -> Task:
    """The task that the recipe is judged by. Raises PluginError."""
    task = plugins.call(recipe.task, {}, recipe.python_path)
    if not isinstance(task, Task):
        raise PluginError("does not return a Task", where=recipe.task)
    return task


def evaluation_samples(recipes: Sequence[Recipe], progress: Progress) -> Samples:
    """The evaluation samples of the recipes, which must be the same ones.

    Raises DataError that names the recipe whose samples differ.
    """
    first = evaluation_of(recipes[0], progress)
    for recipe in recipes[1:]:
        if evaluation_of(recipe, progress).digest != first.digest:
            raise DataError(
                f"is judged on other samples than {recipes[0].name}",
                where=f"{recipe.name}: data: evaluation",
                do="give both recipes the same evaluation data and the same `verify: samples`",
            )
    return first


def gate_of(recipe: Recipe) -> Gate | None:
    """The recipe's first gate on a metric's increase over FP32, if it has one."""
    return next((gate for gate in recipe.verify.gate if gate.max_increase is not None), None)


def _from_folder(given: Given) -> tuple[Candidate, set[str]]:
    """The candidate, and the SHA-256 of every form of its FP32 model that is known."""
    export, file = given.path / "export", given.path / "quantize" / INT8
    exported = load_record(ExportedModel, export / RECORDS["export"])
    quantized = load_record(QuantizedModel, file.with_suffix(".json"))
    known = {exported.model.sha256, *(sha256_of_file(export / name) for name in (EXPORTED, FP32))}
    model = given.recipe.export.model if given.recipe else None
    known |= {sha256_of_file(model)} if model is not None else set()
    candidate = Candidate(
        name=given.recipe.name if given.recipe else given.path.resolve().name,
        kind="recipe" if given.recipe else "build folder",
        file=file,
        target=target_for(quantized, None),
        quantized=record_of(file),
    )
    return candidate, known


def _from_file(path: Path, fp32: Path) -> tuple[Candidate, set[str]]:
    """The candidate, and what its record says of its FP32 model: nothing, if it has none."""
    quantized = record_of(path)
    target = target_for(quantized, None)
    known = set[str]()
    if quantized is not None:
        with tempfile.TemporaryDirectory() as scratch:
            exported = export_file(fp32, target, {}, Path(scratch), opset_of(path))
        is_canonical_form = quantized.fp32_sha256 == exported.model.sha256
        known = {quantized.fp32_sha256, *([sha256_of_file(fp32)] if is_canonical_form else [])}
    return Candidate(path.stem, "file", path, target, quantized), known


def _is_quantized(path: Path) -> bool:
    return any(is_quantized_form(node.op_type) for node in load_model(path).graph.node)


def _with_names_apart(found: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Names that two share are followed by a number."""
    names: list[str] = []
    for candidate in found:
        name, number = candidate.name, 2
        while name in (*names, "FP32"):
            name, number = f"{candidate.name} ({number})", number + 1
        names.append(name)
    return tuple(replace(each, name=name) for each, name in zip(found, names, strict=True))
