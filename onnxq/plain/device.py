"""What was found on devices after the hand-off: kept in the bundle, its report written anew.

The files that were handed off, and the SHA256SUMS that lists them, stay as they are: a folder of
its own holds what came later, with a SHA256SUMS of its own.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from onnxq.artifacts import (
    BUNDLE_FILE,
    Bundle,
    CompilerCheck,
    DeviceResults,
    DumpCheck,
    FileFacts,
    ProcessorCheck,
)
from onnxq.errors import StaleRecordError, UsageError
from onnxq.handoff.bundle import checksums
from onnxq.plain.judge import REPORT
from onnxq.store import atomic_folder, facts_of_file, load_record, save_record, sha256_of_file
from onnxq.verify.report.anew import write_anew

__all__ = ["DEVICE", "Found", "add_to_bundle", "judged_file", "now", "top_of"]

DEVICE = "device"
_RESULTS, _SUMS = "device.json", "SHA256SUMS"
Found: TypeAlias = ProcessorCheck | CompilerCheck | DumpCheck


def now() -> datetime:
    """The time, to the second, for a result's record."""
    return datetime.now(UTC).replace(microsecond=0)


def top_of(folder: Path) -> Path:
    """The bundle's own folder: of a part that ships in it, the one above.

    Raises UsageError if it is none.
    """
    for place in (folder, folder.resolve().parent):
        if (place / BUNDLE_FILE).is_file() and (folder / "contract.json").is_file():
            return place
    raise UsageError(
        f"is no bundle: it holds no contract.json and no {BUNDLE_FILE}",
        where=str(folder),
        do="give the folder that `onnxq handoff -o DIR` made, or that of one part in it",
    )


def judged_file(folder: Path, name: str) -> FileFacts:
    """The file ``name`` of a bundle's or part's ``folder`` as it is now, named from the bundle."""
    file = folder.resolve() / name
    place = file.relative_to(top_of(folder).resolve()).as_posix()
    return facts_of_file(file).model_copy(update={"name": place})


def add_to_bundle(bundle: Path, found: Sequence[Found]) -> Path:
    """Keep ``found`` in ``device/`` of the bundle and write its report anew there; that folder.

    ``device/`` holds ``device.json`` with all that was found so far, a ``SHA256SUMS`` of its own,
    and, of a bundle with a report, ``report.html``, ``.md``, ``.json`` and ``junit.xml``. A result
    takes the place of an earlier one about the same processor, the same report or the same dump.
    Raises StaleRecordError for a result, new or kept, about another model than the bundle's or a
    report that another version wrote; StoreError.
    """
    record = load_record(Bundle, bundle / BUNDLE_FILE)
    folder = bundle / DEVICE
    results = DeviceResults(model=record.model)
    if (folder / _RESULTS).is_file():
        results = load_record(DeviceResults, folder / _RESULTS)
        _refuse_another_model(results, record, folder / _RESULTS)
    results = results.model_copy(
        update={
            "processors": _joined(results.processors, found, ProcessorCheck),
            "compilations": _joined(results.compilations, found, CompilerCheck),
            "dumps": _joined(results.dumps, found, DumpCheck),
        }
    )
    _refuse_another_model(results, record, bundle)
    with atomic_folder(folder, _RESULTS) as temporary:
        save_record(results, temporary / _RESULTS)
        if (bundle / "report" / REPORT).is_file():
            write_anew(bundle / "report", results, temporary)
        sums = {file.name: sha256_of_file(file) for file in temporary.iterdir()}
        (temporary / _SUMS).write_text(checksums(sums), encoding="utf-8")
    return folder


def _joined(kept: Sequence[Found], found: Sequence[Found], kind: type[Found]) -> tuple[Found, ...]:
    fresh = [one for one in found if isinstance(one, kind)]
    known = {key for one in fresh for key in _keys(one)}
    return (*(one for one in kept if known.isdisjoint(_keys(one))), *fresh)


def _keys(found: Found) -> set[tuple[str, ...]]:
    """By what a later result is known to be about the same."""
    if isinstance(found, ProcessorCheck):
        return {(cpu,) for cpu in found.exit_codes}
    if isinstance(found, CompilerCheck):
        return {(found.model.name, type(found.report).__name__)}
    return {(found.model.name, found.dump.name)}


def _refuse_another_model(results: DeviceResults, record: Bundle, where: Path) -> None:
    known = {(file.name, file.sha256) for file in record.files}
    for what, model in _models(results):
        if (model.name, model.sha256) not in known:
            raise StaleRecordError(
                f"{what} is about {model.name} with a SHA-256 that begins with "
                f"{model.sha256[:12]}, which is no file of this bundle",
                where=str(where),
                do=f"check this bundle again; if {DEVICE}/ is another bundle's, remove it first",
            )


def _models(results: DeviceResults) -> Iterator[tuple[str, FileFacts]]:
    yield "the record", results.model
    for check in results.processors:
        yield f"the result for {', '.join(check.exit_codes)}", check.model
    for compiled in results.compilations:
        yield f"the result of {compiled.report.file}", compiled.model
    for dumped in results.dumps:
        yield f"the result of {dumped.dump.name}", dumped.model
