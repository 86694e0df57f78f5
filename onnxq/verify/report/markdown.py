"""The report as Markdown: for a pull request, a wiki, a terminal."""

import re
from collections.abc import Iterable

from onnxq.artifacts import VerificationReport
from onnxq.verify.report.observations import ClassAgreement, Pairs
from onnxq.verify.report.places import BANNER, SECTION
from onnxq.verify.report.sections import sections
from onnxq.verify.report.tables import Column, Section, Table

__all__ = ["list_text", "markdown", "section_text"]

_RULES = {"number": "---:", "text": "---", "code": "---", "verdict": "---"}


def markdown(
    report: VerificationReport,
    pair: Pairs | None = None,
    classes: tuple[ClassAgreement, ...] = (),
) -> str:
    """All sections but the long ones, which are in ``report.html`` and ``report.json``."""
    head = [
        f"# {report.verdict.upper()}: {_plain(report.name)} for {_plain(report.target)}",
        list_text(report.reasons),
        BANNER,
    ]
    body = map(section_text, (s for s in sections(report, pair, classes) if not s.long))
    foot = (
        f"Made by onnxq {_plain(report.provenance.onnxq)} on {_plain(report.provenance.machine)}. "
        "Plots, ranges and the audit are in report.html, every figure in full in report.json."
    )
    return "\n\n".join(part for part in (*head, *body, SECTION, foot) if part) + "\n"


def list_text(lines: Iterable[str]) -> str:
    """One point a line."""
    return "\n".join(f"- {_plain(line)}" for line in lines)


def section_text(section: Section) -> str:
    """One section: its title, its lead, its tables."""
    parts = (
        f"## {_plain(section.title)}",
        _plain(section.lead),
        *map(_table, section.tables),
    )
    return "\n\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    title = f"### {_plain(table.title)}\n\n" if table.title else ""
    lines = [
        [_plain(column.title) for column in table.columns],
        [_RULES[column.kind] for column in table.columns],
    ]
    for row in table.rows:
        cells = [_cell(*pair) for pair in zip(table.columns, row.cells, strict=True)]
        lines.append(
            [f"**{cell}**" if row.marked and i == 0 else cell for i, cell in enumerate(cells)]
        )
    return title + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(column: Column, text: str) -> str:
    return f"`{_line(text)}`" if column.kind == "code" and _is_simple(text) else _plain(text)


def _is_simple(text: str) -> bool:
    """Whether ``text`` can stand between back-ticks in a table."""
    return bool(text) and not re.search(r"[`|\s]", text)


def _plain(text: str) -> str:
    """``text`` on one line, with what Markdown or HTML would take for its own made harmless."""
    return (
        re.sub(r"([\\`*_\[\]|])", r"\\\1", _line(text)).replace("&", "&amp;").replace("<", "&lt;")
    )


def _line(text: str) -> str:
    return " ".join(text.split())
