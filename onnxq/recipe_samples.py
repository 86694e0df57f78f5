"""The samples that a recipe names."""

from onnxq.progress import Progress, silent
from onnxq.recipe import DataSource, Recipe
from onnxq.samples import Samples
from onnxq.sources import open_source

__all__ = ["evaluation_of", "samples_of"]


def samples_of(recipe: Recipe, source: DataSource, progress: Progress = silent) -> Samples:
    """The samples of one of the recipe's sources. Raises as ``open_source`` does."""
    names = tuple(value.name for value in recipe.export.inputs)
    if not names and recipe.export.model is not None:
        from onnxq.graph import load_model, values_of

        names = tuple(value.name for value in values_of(load_model(recipe.export.model))[0])
    options = source.options | source.paths
    return open_source(source.source, options, names, recipe.python_path, progress)


def evaluation_of(recipe: Recipe, progress: Progress = silent) -> Samples:
    """The samples that the recipe's result is judged on, as many as it judges on."""
    samples = samples_of(recipe, recipe.data.evaluation, progress)
    return samples.thinned(recipe.verify.samples or len(samples))
