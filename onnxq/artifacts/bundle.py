"""Records of the hand-off."""

from typing import Literal

from onnxq.artifacts.base import FileFacts, Provenance, Record, Verdict
from onnxq.artifacts.origin import Origin
from onnxq.artifacts.rules import RuleResult

__all__ = [
    "BUNDLE_FILE",
    "AnswerCheck",
    "Bundle",
]

BUNDLE_FILE = "bundle.json"  # the name of a bundle's own record


class AnswerCheck(Record):
    """The known answers of a bundle, as replayed from the file that ships."""

    vectors: int
    optimization: Literal["full", "none"]
    bit_exact: bool


class Bundle(Record):
    """A folder that can be handed to the person who flashes the device."""

    model: FileFacts
    target: str
    verdict: Verdict
    files: tuple[FileFacts, ...]
    rules: tuple[RuleResult, ...]
    answers: AnswerCheck
    origin: Origin | None = None
    provenance: Provenance
