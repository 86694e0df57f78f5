"""Records of the hand-off."""

from typing import Literal

from onnxq.artifacts.base import FileFacts, Provenance, Record, Verdict

__all__ = [
    "AnswerCheck",
    "Bundle",
    "RuleResult",
]


class RuleResult(Record):
    """One rule of the target that the file breaks, or breaks with leave."""

    rule: str
    severity: Literal["error", "warning"]
    where: str
    what: str
    do: str
    source: str
    waived: str | None = None


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
    provenance: Provenance
