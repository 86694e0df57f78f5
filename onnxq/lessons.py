"""What a recipe gives to fine-tuning: samples that are seen by no judge, a loss, a folder."""

from pathlib import Path

import numpy as np

from onnxq import plugins
from onnxq.artifacts import ExportedModel
from onnxq.progress import Progress, silent
from onnxq.quantize.training.means import Means
from onnxq.recipe import Recipe
from onnxq.recipe_samples import samples_of
from onnxq.sample_checks import check_samples
from onnxq.samples import Samples
from onnxq.store import sha256_of_source

__all__ = ["facts_of_lessons", "means_of"]


def means_of(
    recipe: Recipe,
    exported: ExportedModel,
    evaluation: Samples,
    kept: Path,
    progress: Progress = silent,
) -> Means:
    """The means of the step ``finetune``; states of an unfinished training lie in ``kept``.

    Raises DataError for samples that do not fit the graph, LeakageError for samples to train on
    that share a group or their content with those of ``evaluation``.
    """
    from onnxq.calibrate.plans import Draw
    from onnxq.calibrate.readers import describe, refuse_overlap

    training = _training_of(recipe, progress)
    if training is not None:
        sizes = {value.shape[0] for value in exported.inputs if value.shape}
        fixed = [size for size in sizes if isinstance(size, int)]
        check_samples(training, exported.inputs, batch=max(fixed, default=1))
        draw = Draw(np.arange(len(training)), "training", 0, {}, {}, ())
        refuse_overlap(describe(training, training, draw), evaluation)
    return Means(training, recipe.python_path, kept)


def facts_of_lessons(recipe: Recipe, progress: Progress = silent) -> list[object]:
    """What the result of fine-tuning depends on beside the recipe's section; empty without it."""
    if "finetune" not in recipe.quantize.refining:
        return []
    training, loss = _training_of(recipe, progress), recipe.quantize.finetune.task_loss
    code: tuple[Path, ...] = ()
    if loss is not None and plugins.is_reference(loss):
        code = plugins.source_files(loss, recipe.python_path)
    return [training.digest if training is not None else None, sha256_of_source(*code)]


def _training_of(recipe: Recipe, progress: Progress) -> Samples | None:
    source = recipe.data.training
    return None if source is None else samples_of(recipe, source, progress)
