"""What a bundle was made from, with the digest of each, so that it can be made again."""

from functools import cache
from pathlib import Path

import onnxq
from onnxq import plugins
from onnxq.artifacts import BUNDLE_FILE, Ingredient, MadeFrom, Origin
from onnxq.recipe import Recipe
from onnxq.samples import Samples
from onnxq.store import sha256_of_file, sha256_of_source

__all__ = ["find_recipe", "origin_of_file", "origin_of_recipe"]


def origin_of_recipe(recipe: Recipe, calibration: Samples, evaluation: Samples) -> Origin:
    """The origin of a bundle that a recipe makes of these samples."""
    file, network = recipe.export.checkpoint or recipe.export.model, recipe.export.network
    found = []
    if file is not None:
        what = "checkpoint" if network else "model"
        found.append(Ingredient(what=what, name=file.name, sha256=sha256_of_file(file)))
    for what, reference in (("network", network), ("task", recipe.task)):
        if reference:
            sources = plugins.source_files(reference, recipe.python_path)
            digest = sha256_of_source(*sources)
            found.append(Ingredient(what=f"code of the {what}", name=reference, sha256=digest))
    for what, samples in (("calibration", calibration), ("evaluation", evaluation)):
        found.append(Ingredient(what=f"{what} samples", name=samples.name, sha256=samples.digest))
    path = recipe.written.path
    below = path.is_relative_to(recipe.python_path)
    return Origin(
        kind="recipe",
        source=path.relative_to(recipe.python_path).as_posix() if below else path.name,
        target=recipe.target,
        settings=recipe.written.settings,
        ingredients=tuple(found),
        code_sha256=_code_digest(),
    )


def origin_of_file(
    target: str, source: str, samples: Samples | None, made_from: MadeFrom | None = None
) -> Origin:
    """The origin of a bundle of a plain file, with known answers of ``samples`` from ``source``;
    ``made_from`` is what the file was quantized from."""
    found = []
    if made_from is not None:
        model, data = made_from.model_sha256, made_from.samples_sha256
        drawn = made_from.source or "random numbers"
        found.append(Ingredient(what="FP32 model", name=made_from.model, sha256=model))
        found.append(Ingredient(what="calibration samples", name=drawn, sha256=data))
    if samples is not None:
        found.append(Ingredient(what="samples", name=samples.name, sha256=samples.digest))
    return Origin(
        kind="file",
        source=source,
        target=target,
        ingredients=tuple(found),
        made_from=made_from,
        code_sha256=_code_digest(),
    )


def find_recipe(origin: Origin, bundle: Path) -> Path | None:
    """The recipe's path: below the current folder, or below one that the bundle lies in.

    The copy in a bundle is none: the paths in it do not begin there.
    """
    for folder in (Path.cwd(), *bundle.resolve().parents):
        if (folder / origin.source).is_file() and not (folder / BUNDLE_FILE).is_file():
            return folder / origin.source
    return None


@cache
def _code_digest() -> str:
    """Read once: the code that runs is what was there at the start."""
    return sha256_of_source(Path(onnxq.__file__).parent)
