"""A report written anew with what was found since: the same pages, and a section more.

Predictions are not kept with a report, so its plots cannot be drawn again; the pages hold marked
places, where what comes later is put. Records and JUnit are made again from the report's record.
"""

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from onnxq.artifacts import DeviceResults, VerificationReport
from onnxq.errors import StaleRecordError
from onnxq.store import load_record
from onnxq.verify.report.device import device, verdicts
from onnxq.verify.report.html import device_banner, device_section
from onnxq.verify.report.junit import junit
from onnxq.verify.report.markdown import list_text, section_text
from onnxq.verify.report.places import BANNER, LINK, SECTION

__all__ = ["write_anew"]


def write_anew(source: Path, results: DeviceResults, folder: Path) -> None:
    """Write the reports of the folder ``source`` into ``folder``, with ``results`` in them: its
    record and JUnit, and those of its pages that are there.

    ``source`` is left as it is. The caller puts the folder in place; nothing here is atomic.
    Raises StoreError if the record is missing, StaleRecordError if another version wrote one.
    """
    report = load_record(VerificationReport, source / "report.json")
    report = report.model_copy(update={"device": results})
    section, found = device(results), verdicts(results)
    off = [verdict for verdict in found if not verdict.passed]
    said = [f"{verdict.what}: {verdict.says}" for verdict in off]
    head = f"On the device: {len(found) - len(off)} of {len(found)} checks are as they should be."
    pages: dict[str, Mapping[str, str]] = {
        "report.html": {
            BANNER: device_banner(head, said),
            LINK: Markup('<li><a href="#{}">{}</a></li>').format(section.id, section.title),
            SECTION: device_section(section),
        },
        "report.md": {
            BANNER: list_text((head, *said)),
            SECTION: section_text(section),
        },
    }
    written = {
        name: _filled(source / name, parts)
        for name, parts in pages.items()
        if (source / name).is_file()
    }
    written["report.json"] = report.model_dump_json(indent=2) + "\n"
    written["junit.xml"] = junit(report)
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")


def _filled(page: Path, parts: Mapping[str, str]) -> str:
    """The page with its marked places filled."""
    text = page.read_text(encoding="utf-8")
    for place, put in parts.items():
        if text.count(place) != 1:
            raise StaleRecordError(
                "keeps no place for what is found on a device: another version of onnxq wrote it",
                where=str(page),
                do="verify and hand off again",
            )
        text = text.replace(place, put)
    return text
