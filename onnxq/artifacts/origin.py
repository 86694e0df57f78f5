"""Records of what a bundle was made from, and of making it again."""

from typing import Literal

from onnxq.artifacts.base import Finding, Record

__all__ = [
    "Ingredient",
    "Origin",
    "RebuildCheck",
]


class Ingredient(Record):
    """Something that a bundle was made from: ``name`` as the recipe or the command line has it."""

    what: str
    name: str
    sha256: str


class Origin(Record):
    """How a bundle was made, so that it can be made again.

    From a recipe: ``source`` is its path below its ``python_path`` (its name alone, if it lies
    elsewhere), ``settings`` what ``--set`` and other flags overruled; its text is the bundle's
    ``recipe.yaml``. From a plain file: ``source`` are the samples of the known answers, empty
    without any. ``target`` is as it was named. ``code_sha256`` is over onnxq's own sources.
    """

    kind: Literal["recipe", "file"]
    source: str
    target: str
    settings: tuple[str, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    code_sha256: str


class RebuildCheck(Record):
    """A bundle against the one made again from what it records, file by file.

    ``reasons`` are what is otherwise than when it was made; with equal files they had no effect.
    """

    files: int
    differences: tuple[Finding, ...]
    reasons: tuple[Finding, ...]
