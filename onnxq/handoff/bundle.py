"""What a bundle is made of: its verdict, its list of files, their checksums. No disk here."""

from collections.abc import Mapping, Sequence

from onnxq.artifacts import (
    AnswerCheck,
    Bundle,
    FileFacts,
    QuantizedModel,
    RuleResult,
    Verdict,
    VerificationReport,
)
from onnxq.errors import AuditError, DataError, JudgedError, StaleRecordError
from onnxq.provenance import provenance
from onnxq.target import Target

__all__ = [
    "checksums",
    "compare_records",
    "make_bundle",
    "refuse_inexact_answers",
    "refuse_unverified",
]


def compare_records(
    model: FileFacts,
    quantized: QuantizedModel | None,
    report: VerificationReport | None,
    target: Target,
) -> None:
    """Raise StaleRecordError unless the records are about ``model`` and about ``target``."""
    about = []
    if quantized is not None:
        about.append(("quantization", quantized.model.sha256, quantized.target))
    if report is not None:
        about.append(("verification", report.int8.sha256, report.target))
    for what, sha256, name in about:
        if sha256 != model.sha256:
            raise StaleRecordError(
                f"is not the file of the {what}'s record: its SHA-256 begins with "
                f"{model.sha256[:12]}, the record's with {sha256[:12]}",
                where=model.name,
                do="run quantize and verify again, and hand off the very file that was verified",
            )
        if name != target.name:
            raise StaleRecordError(
                f"the {what}'s record is about the target {name}, not {target.name}",
                where=model.name,
                do=f"quantize and verify it for {target.name}",
            )


def refuse_unverified(report: VerificationReport | None, *, allowed: bool) -> Verdict:
    """The verdict that the bundle carries; ``unverified`` where there is no report.

    Raises JudgedError for a failed verdict and DataError for one that could not be reached, unless
    a bundle stamped as unverified is ``allowed``.
    """
    if report is None:
        return "unverified"
    if report.verdict == "passed" or allowed:
        return report.verdict
    reasons = "; ".join(report.reasons) or "see the report"
    if report.verdict == "failed":
        raise JudgedError(
            f"the model did not pass verification: {reasons}",
            where=report.int8.name,
            do="quantize it better, or hand it off stamped as unverified (--allow-unverified)",
        )
    raise DataError(
        f"the model's verification is {report.verdict}: {reasons}",
        where=report.int8.name,
        do="verify it on enough real samples, or hand it off stamped (--allow-unverified)",
    )


def refuse_inexact_answers(answers: AnswerCheck, where: str) -> None:
    """Raise AuditError unless the written answers were replayed bit for bit."""
    if not answers.bit_exact:
        raise AuditError(
            "gave other outputs when it was run again: its known answers cannot be replayed",
            where=where,
            do="look for an operator whose result changes from run to run",
        )


def checksums(files: Mapping[str, str]) -> str:
    """The text of SHA256SUMS for ``name → SHA-256``, as ``sha256sum -c`` reads it."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))


def make_bundle(
    files: Sequence[FileFacts],
    target: Target,
    verdict: Verdict,
    rules: Sequence[RuleResult],
    answers: AnswerCheck,
) -> Bundle:
    """The record of a bundle whose first file is the model."""
    options = {
        "target": target.name,
        "session_options": dict(target.session_options),
        "known_answers": answers.vectors,
        "optimization": answers.optimization,
    }
    return Bundle(
        model=files[0],
        target=target.name,
        verdict=verdict,
        files=tuple(files),
        rules=tuple(rules),
        answers=answers,
        provenance=provenance(options),
    )
