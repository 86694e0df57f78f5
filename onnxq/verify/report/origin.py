"""Where the file comes from: calibration, export, findings, hashes."""

from collections.abc import Iterable, Sequence

from onnxq.artifacts import VerificationReport
from onnxq.verify.report.formatting import MISSING, integer, number
from onnxq.verify.report.tables import (
    Column,
    Section,
    Table,
    code_columns,
    make_table,
    number_columns,
    text_columns,
)

__all__ = ["calibration", "files", "findings", "parity"]


def _facts(facts: Iterable[tuple[str, str]], first: str = "Fact", second: str = "Value") -> Table:
    return make_table(
        text_columns(first, second), [fact for fact in facts if fact[1]], lambda fact: fact
    )


def calibration(report: VerificationReport) -> Section:
    """The samples from which the ranges come."""
    choice = report.calibration
    if choice is None:
        return Section("calibration", "Calibration")
    groups = sorted(set(choice.groups))
    labels = ""
    if choice.label_low is not None and choice.label_high is not None:
        labels = f"{number(choice.label_low)} to {number(choice.label_high)}"
        labels += f", mean {number(choice.label_mean)}" if choice.label_mean is not None else ""
    taken = f"{integer(len(choice.indices))} (asked for {integer(choice.asked)})"
    facts = (
        ("Source", choice.source),
        ("Plan", choice.plan),
        ("Seed", str(choice.seed)),
        ("Samples", taken),
        ("Groups", f"{len(groups)}: {_listed(groups)}" if groups else ""),
        ("Labels", labels),
        ("Data", "random numbers, no data" if choice.made_up else ""),
        ("Notes", "; ".join(choice.notes)),
    )
    lead = "The samples from which the ranges come."
    return Section("calibration", "Calibration", lead, (_facts(facts),))


def _listed(names: Sequence[str], most: int = 24) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def parity(report: VerificationReport) -> Section:
    """The hops of the export."""
    table = make_table(
        (
            Column("Verdict", "verdict"),
            *text_columns("Hop", "Inputs"),
            *number_columns("Samples", "Largest difference", "Relative", "Cosine"),
        ),
        report.parity,
        lambda hop: (
            "passed" if hop.passed else "failed",
            hop.hop,
            hop.inputs,
            integer(hop.samples),
            number(hop.max_absolute),
            number(hop.max_relative),
            number(hop.cosine, 7),
        ),
        lambda hop: not hop.passed,
    )
    return Section("parity", "Export parity", "From the network to its FP32 graph.", (table,))


def findings(report: VerificationReport) -> Section:
    """What a person should know, and what was waived."""
    found = make_table(
        text_columns("Where", "What", "What to do"),
        report.findings,
        lambda finding: (finding.where, finding.what, finding.do or MISSING),
    )
    waived = make_table(
        text_columns("Waived", "Reason"),
        [waiver.partition(": ") for waiver in report.waived],
        lambda parts: (parts[0], parts[2] or MISSING),
    )
    tables = tuple(table for table in (found, waived) if table.rows)
    return Section("findings", "Findings and waivers", "", tables)


def files(report: VerificationReport) -> Section:
    """Names and hashes of what was measured."""
    parts = report.parts.parts if report.parts else ()
    table = make_table(
        (
            *text_columns("What"),
            *code_columns("File"),
            *number_columns("Bytes"),
            *code_columns("SHA-256"),
        ),
        (
            ("FP32", report.fp32),
            ("INT8", report.int8),
            *(
                ("INT8, part that ships", part)
                for part in (report.parts.parts if report.parts else ())
            ),
        ),
        lambda item: (item[0], item[1].name, integer(item[1].size_bytes), item[1].sha256),
    )
    lead = "What was measured."
    if report.parts is not None:
        lead += (
            f" The INT8 graph ships in {len(parts)} parts that were cut from it, and they are what "
            f"was judged. On {integer(report.parts.samples)} samples their outputs differ from "
            f"those of the whole by at most {number(report.parts.max_as_written)} as written, and "
            f"by {number(report.parts.max_absolute)} as judged."
        )
    return Section("files", "Files", lead, (table,))
