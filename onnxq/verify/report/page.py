"""A page of titled tables and plots about anything: one HTML file that needs nothing else."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

from onnxq.artifacts import Provenance
from onnxq.store import write_text
from onnxq.verify.report.markdown import list_text, section_text
from onnxq.verify.report.tables import Section

__all__ = ["Figure", "Page", "page_html", "page_markdown", "write_page"]


@dataclass(frozen=True)
class Figure:
    """A plot and its caption; ``keys`` says what each colour is."""

    svg: Markup
    caption: str
    keys: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Page:
    """A title, a sentence that says what came out, notes, sections; plots, and text to be copied as
    it is, by their section's id. ``record`` is the file that holds every figure in full."""

    title: str
    lead: str
    sections: tuple[Section, ...]
    provenance: Provenance
    record: str
    notes: tuple[str, ...] = ()
    figures: Mapping[str, tuple[Figure, ...]] = field(default_factory=dict)
    listings: Mapping[str, str] = field(default_factory=dict)


def page_html(page: Page) -> str:
    """The whole page. Everything that comes from outside is escaped."""
    options = json.dumps(page.provenance.options, indent=2, ensure_ascii=False, default=str)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.verify.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html.j2")
    return template.render(page=page, options=options, signs={})


def page_markdown(page: Page) -> str:
    """Title, sentence, notes and all sections but the long ones."""
    parts = [
        section_text(Section("page", page.title, page.lead)),
        list_text(page.notes),
        *(_text_of(page, section) for section in page.sections if not section.long),
        f"Made by onnxq {page.provenance.onnxq} on {page.provenance.machine}. Every figure in "
        f"full: {page.record}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text_of(page: Page, section: Section) -> str:
    listing = page.listings.get(section.id, "")
    return section_text(section) + (f"\n\n```\n{listing.rstrip()}\n```" if listing else "")


def write_page(page: Page, folder: Path) -> None:
    """``report.html`` and ``report.md`` in ``folder``, each whole or not at all."""
    write_text(folder / "report.html", page_html(page))
    write_text(folder / "report.md", page_markdown(page))
