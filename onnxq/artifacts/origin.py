"""Records of what a bundle was made from, and of making it again."""

from typing import Any, Literal

from onnxq.artifacts.base import Finding, Record

__all__ = [
    "Ingredient",
    "MadeFrom",
    "Origin",
    "RebuildCheck",
]


class Ingredient(Record):
    """Something that a bundle was made from: ``name`` as the recipe or the command line has it."""

    what: str
    name: str
    sha256: str


class MadeFrom(Record):
    """What a plain INT8 file was quantized from: paths as the command line had them.

    ``source`` are the samples of the calibration, empty for random numbers, ``samples_sha256`` is
    over the content of those that were drawn. ``data`` and ``quantize`` say how they were used, in
    JSON's types.
    """

    model: str
    model_sha256: str
    source: str
    samples_sha256: str
    data: dict[str, Any]
    quantize: dict[str, Any]


class Origin(Record):
    """How a bundle was made, so that it can be made again.

    From a recipe: ``source`` is its path below its ``python_path`` (its name alone, if it lies
    elsewhere), ``settings`` what ``--set`` and other flags overruled; its text is the bundle's
    ``recipe.yaml``. From a plain file: ``source`` are the samples of the known answers, empty
    without any, and ``made_from`` what it was quantized from, if that is known. ``target`` is as it
    was named. ``code_sha256`` is over onnxq's own sources.
    """

    kind: Literal["recipe", "file"]
    source: str
    target: str
    settings: tuple[str, ...] = ()
    ingredients: tuple[Ingredient, ...] = ()
    made_from: MadeFrom | None = None
    code_sha256: str


class RebuildCheck(Record):
    """A bundle against the one made again from what it records, file by file.

    ``reasons`` are what is otherwise than when it was made; with equal files they had no effect.
    """

    files: int
    differences: tuple[Finding, ...]
    reasons: tuple[Finding, ...]
