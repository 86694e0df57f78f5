"""The hand-off's shell: reads the model, writes the bundle, replays it, and only then keeps it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.artifacts import (
    BUNDLE_FILE,
    Bundle,
    ExportedModel,
    FileFacts,
    Ledger,
    Manifest,
    MemoryEstimate,
    Origin,
    QuantizedModel,
    RuleResult,
    Verdict,
    VerificationReport,
)
from onnxq.graph import MADE_UP_STAMP, load_model
from onnxq.handoff.answers import made_up_samples
from onnxq.handoff.bundle import (
    checksums,
    compare_records,
    make_bundle,
    refuse_unverified,
)
from onnxq.handoff.check import check, refuse_broken_rules
from onnxq.handoff.contract import Contract, contract
from onnxq.handoff.ledger import ledger, ledgers_of_parts
from onnxq.handoff.memory import MEMORY_FILE
from onnxq.handoff.part import Part, write_part
from onnxq.handoff.parts import parts_to_ship, write_parts_of_bundle
from onnxq.handoff.readme import Contents, readme, unverified_notice
from onnxq.handoff.stand_alone import write_scripts
from onnxq.recipe import HandoffSection
from onnxq.samples import Samples
from onnxq.splitting.manifest import MANIFEST
from onnxq.store import atomic_folder, facts_of_file, load_record, save_record, sha256_of_file
from onnxq.target import Target

__all__ = ["hand_off"]

SUMS_FILE, RECIPE_FILE = "SHA256SUMS", "recipe.yaml"
_REPORT_KINDS = frozenset({".html", ".md", ".json", ".xml"})
_STAGE_NOTE = "stage.json"


@dataclass(frozen=True)
class _Judged:
    """A model that may be handed off, and what was found about it before anything is written."""

    model: Path
    target: Target
    contract: Contract
    rules: tuple[RuleResult, ...]
    verdict: Verdict
    made_up_ranges: bool
    report: VerificationReport | None
    report_folder: Path | None
    origin: Origin | None
    recipe_text: str
    parts: tuple[Part, ...]
    manifest: Manifest | None
    also: tuple[str, ...]


def hand_off(  # noqa: PLR0913  (one keyword per record; all of them go into the bundle)
    *,
    model: Path,
    target: Target,
    folder: Path,
    section: HandoffSection = HandoffSection(),  # noqa: B008  (frozen)
    exported: ExportedModel | None = None,
    quantized: QuantizedModel | None = None,
    report: VerificationReport | None = None,
    report_folder: Path | None = None,
    samples: Samples | None = None,
    allow_unverified: bool = False,
    origin: Origin | None = None,
    recipe_text: str = "",
    also: Sequence[str] = (),
) -> Bundle:
    """Write the bundle of ``model`` for ``target`` into ``folder``, whole or not at all.

    ``samples`` are evaluation samples for the known answers; without any, answers of made-up
    numbers are written and called so. Without a report the bundle is stamped as unverified.
    ``origin`` and the text of the recipe let it be made again. ``also`` names folders in it that
    will hold bundles of their own, for other targets.
    Raises TargetRuleError if a rule is broken without leave; JudgedError or DataError if the
    verdict is not ``passed`` (unless ``allow_unverified``); StaleRecordError if a record is about
    another file; RecipeError for a waiver of no rule; ModelError, RuntimeFailureError, StoreError.
    """
    proto = load_model(model)
    facts = _facts(model, model.parent)
    compare_records(facts, quantized, report, target)
    parts = parts_to_ship(model, exported, quantized, target)
    rules: tuple[RuleResult, ...] = ()
    for file in [part.model for part in parts] or [model]:
        found = check(load_model(file), target, section.waive, file_name=file.name)
        refuse_broken_rules(found, target, file.name)
        rules += found
    judged = _Judged(
        model=model,
        target=target,
        contract=contract(proto, quantized, exported, name=model.name, sha256=facts.sha256),
        rules=rules,
        verdict=refuse_unverified(report, allowed=allow_unverified),
        made_up_ranges=any(entry.key == MADE_UP_STAMP for entry in proto.metadata_props),
        report=report,
        report_folder=report_folder,
        origin=origin,
        recipe_text=recipe_text,
        parts=parts,
        manifest=quantized.parts if quantized is not None else None,
        also=tuple(also),
    )
    if samples is None:
        samples = made_up_samples(judged.contract, section.known_answers)
    with atomic_folder(folder, BUNDLE_FILE) as temporary:
        return _fill(temporary, judged, samples, section.known_answers)


def _fill(folder: Path, judged: _Judged, samples: Samples, count: int) -> Bundle:
    target, name, made = judged.target, judged.model.name, judged.contract
    if judged.manifest is not None:
        name = MANIFEST
        made, answers = write_parts_of_bundle(
            folder, judged.parts, judged.manifest, made, samples, count
        )
    else:
        answers = write_part(folder, Part(judged.model, made, target), samples, count)
    _copy_report(judged.report_folder, folder / "report")
    write_scripts(folder, parts=judged.manifest is not None)
    if judged.recipe_text:
        (folder / RECIPE_FILE).write_text(judged.recipe_text, encoding="utf-8")
    if judged.verdict != "passed":
        notice = unverified_notice(judged.verdict).replace("**", "")
        (folder / "UNVERIFIED.txt").write_text(notice + "\n", encoding="utf-8")
    contents = Contents(
        contract=made,
        parts=judged.parts,
        manifest=judged.manifest,
        also=judged.also,
        memory=[
            load_record(MemoryEstimate, folder / place / MEMORY_FILE)
            for place in [part.model.stem for part in judged.parts] or ["."]
        ],
        ledgers=_ledgers(folder, name, target),
        target=target,
        report=judged.report,
        rules=judged.rules,
        answers=answers,
        files=[*_names(folder), "README.md", BUNDLE_FILE, SUMS_FILE],
        verdict=judged.verdict,
        made_up=samples.made_up,
        made_up_ranges=judged.made_up_ranges,
    )
    (folder / "README.md").write_text(readme(contents), encoding="utf-8")
    files = [_facts(folder / file, folder) for file in _names(folder)]
    files.sort(key=lambda file: file.name != name)  # the model first
    bundle = make_bundle(files, target, judged.verdict, judged.rules, answers)
    bundle = bundle.model_copy(update={"origin": judged.origin})
    save_record(bundle, folder / BUNDLE_FILE)
    sums = {file: sha256_of_file(folder / file) for file in _names(folder)}
    (folder / SUMS_FILE).write_text(checksums(sums), encoding="utf-8")
    return bundle


def _ledgers(folder: Path, name: str, target: Target) -> tuple[Ledger, ...]:
    if name == MANIFEST:
        return ledgers_of_parts(load_record(Manifest, folder / name), folder, target)
    return (ledger(folder / name, target),)


def _copy_report(source: Path | None, folder: Path) -> None:
    if source is None:
        return
    folder.mkdir()
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in _REPORT_KINDS and file.name != _STAGE_NOTE:
            shutil.copyfile(file, folder / file.name)


def _names(folder: Path) -> list[str]:
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()
    )


def _facts(file: Path, folder: Path) -> FileFacts:
    name = file.relative_to(folder).as_posix()
    return facts_of_file(file).model_copy(update={"name": name})
