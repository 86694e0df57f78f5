"""A report written anew with what was found after the hand-off: sections, JUnit, checksums."""

from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxq.artifacts import (
    CompiledEpoch,
    CompiledPool,
    CompilerCheck,
    DeviceResults,
    DumpCheck,
    DumpComparison,
    FileFacts,
    Finding,
    GenerateReport,
    OutputMetrics,
    ProcessorCheck,
    ProcessorRow,
    ValidateReport,
    VerificationReport,
)
from onnxq.errors import StaleRecordError
from onnxq.store import load_record
from onnxq.verify.report.anew import write_anew
from onnxq.verify.report.device import device, verdicts
from onnxq.verify.report.places import BANNER, LINK, SECTION
from onnxq.verify.report.write import write_reports
from verify.test_report import HOSTILE, parse, predictions, report, samples

__all__ = ["predictions", "report", "samples"]

MODEL = FileFacts(name="int8.onnx", sha256="3f" * 32, size_bytes=98_204)
WHEN = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def row(cpu: str, differing: int = 0, most_steps: float = 0.0, *, decides: bool = True, part=""):
    return ProcessorRow(
        cpu=cpu, part=part, level="ORT_ENABLE_ALL" if decides else "ORT_DISABLE_ALL",
        decides=decides, vectors=10, elements=2000, differing=differing, most_steps=most_steps,
    )  # fmt: skip


def processors(*rows: ProcessorRow, model: FileFacts = MODEL, **codes: int) -> ProcessorCheck:
    return ProcessorCheck(
        model=model, when=WHEN, bundle="b", sums_sha256="00", emulator="qemu-aarch64 9.2",
        packages={"onnxruntime": "1.31.1", "numpy": "2.1.0"}, sources={}, tolerance_steps=1.0,
        exit_codes={row.cpu: codes.get(row.cpu, 0) for row in rows}, rows=rows,
    )  # fmt: skip


def compiled(*departures: Finding) -> CompilerCheck:
    pools = (CompiledPool(pool="npuRAM5", used_bytes=608, size_bytes=458_752),)
    epochs = (
        CompiledEpoch(number=1, runs="hardware", cycles=900),
        CompiledEpoch(number=2, runs="software", operation="Softmax", cycles=1100),
    )
    report = GenerateReport(
        file="network_generate_report.txt", tool_version="4.0.1", profile="", model_format="",
        epochs=epochs, pools=pools, weights_bytes=71_992, activations_bytes=608, macc=336_136,
    )  # fmt: skip
    return CompilerCheck(
        model=MODEL, when=WHEN, report=report, departures=departures, activations_bytes=576,
        weights_bytes=70_112, macs=335_000,
    )  # fmt: skip


def validated() -> CompilerCheck:
    outputs = (OutputMetrics(output="X-cross #1", rmse=0.25, mae=0.125, cos=0.875),)
    report = ValidateReport(file="network_validate_report.txt", tool_version="", outputs=outputs)
    return compiled().model_copy(update={"report": report})


def dumped(verdict: str = "equal", name: str = "d.npz", says: str = "all is equal") -> DumpCheck:
    comparison = DumpComparison(
        verdict=verdict, model=MODEL.name, first=None, statement=says, layers=(), missing=(),
        unknown=(), notes=(),
    )  # fmt: skip
    facts = FileFacts(name=name, sha256="aa" * 32, size_bytes=1)
    return DumpCheck(model=MODEL, when=WHEN, dump=facts, comparison=comparison)


@pytest.fixture(scope="module")
def source(report, predictions, samples, tmp_path_factory) -> Path:
    """The reports of a judged model."""
    folder = tmp_path_factory.mktemp("reports")
    write_reports(report, predictions, samples, folder)
    return folder


def texts(results: DeviceResults) -> list[str]:
    """All cells, row by row, with plain spaces."""
    rows = [one.cells for table in device(results).tables for one in table.rows]
    return [" | ".join(cells).replace("\N{NARROW NO-BREAK SPACE}", " ") for cells in rows]


# --- what is said -------------------------------------------------------------------------------


def test_equal_answers_are_said_to_be_equal_and_others_by_how_many_steps():
    check = processors(
        row("cortex-a72"),
        row("cortex-a72", 1, 3.0, decides=False),
        row("cortex-a76", 7, 2.0),
        **{"cortex-a76": 1},
    )
    results = DeviceResults(model=MODEL, processors=(check,))
    first, second = texts(results)[:2]
    assert first.startswith("passed | cortex-a72 | all 2 000 numbers of 10 vectors equal")
    assert "ORT_DISABLE_ALL: 1 of 2 000 numbers" in first
    assert "7 of 2 000 numbers" in second
    assert "differ, by up to 2 output steps (allowed 1)" in second
    assert second.startswith("failed | cortex-a76")
    assert "1.31.1 | qemu-aarch64 9.2" in second
    assert [found.passed for found in verdicts(results)] == [True, False]
    assert "says nothing about speed" in device(results).lead


def test_parts_are_named_and_the_judged_file_stands_with_its_hash_and_the_time():
    check = processors(row("cortex-a72", part="Body"), row("cortex-a72", 1, 1.0, part="Head"))
    lines = texts(DeviceResults(model=MODEL, processors=(check,)))
    assert "Body: all" in lines[0]
    assert "Head: 1 of" in lines[0]
    assert lines[-1] == f"cortex-a72 | int8.onnx | {MODEL.sha256} | 2026-03-01 12:30 UTC"


def test_what_a_compiler_reports_stands_beside_what_was_planned():
    fault = Finding(where="epoch 2", what="runs in software: a `Softmax`", do="rewrite it")
    results = DeviceResults(model=MODEL, compilations=(compiled(fault), validated()))
    said = "\n".join(texts(results))
    assert "| 4.0.1 | 2 | 1 | 2 000" in said
    assert "activations (bytes) | 608 | 576" in said
    assert "weights (bytes) | 71 992 | 70 112" in said
    assert "multiply–accumulates | 336 136 | 335 000" in said
    assert "npuRAM5 | 608 | 458 752" in said
    assert "X-cross #1 | – | 0.2500 | 0.1250" in said
    assert "epoch 2 | runs in software: a `Softmax` | rewrite it" in said
    assert "speed" not in device(results).lead  # nothing was emulated
    assert [found.passed for found in verdicts(results)] == [False, True]


@pytest.mark.parametrize(
    ("verdict", "passed"), [("equal", True), ("rounding", True), ("departs", False)]
)
def test_a_dump_fails_only_where_a_layer_departs(verdict, passed):
    results = DeviceResults(model=MODEL, dumps=(dumped(verdict),))
    assert [found.passed for found in verdicts(results)] == [passed]
    assert texts(results)[0].startswith("passed" if passed else "failed")


# --- the pages ----------------------------------------------------------------------------------


def test_pages_keep_one_place_each_and_what_was_there_stays(source, tmp_path):
    results = DeviceResults(model=MODEL, processors=(processors(row("cortex-a72")),))
    write_anew(source, results, tmp_path)
    page, again = ((folder / "report.html").read_text() for folder in (source, tmp_path))
    for place in (BANNER, LINK, SECTION):
        assert page.count(place) == 1
        assert place not in again
        head, _, tail = page.partition(place)
        page = tail
        assert head.strip() in again
    assert page in again
    seen = parse(again)
    assert seen.ids.count("device") == seen.links.count("#device") == 1
    assert "On the device" in "".join(seen.text)
    assert "1 of 1 checks are as they should be" in "".join(seen.text)
    text = (tmp_path / "report.md").read_text()
    assert "## On the device" in text
    assert "all 2" in text


def test_a_failure_on_a_device_stands_beside_the_verdict_and_fails_in_junit(source, tmp_path):
    check = processors(row("cortex-a76", 7, 2.0), **{"cortex-a76": 1})
    write_anew(source, DeviceResults(model=MODEL, processors=(check,)), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "cortex-a76: 7 of" in page[: page.index("<dl")]
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert root.get("failures") == "1"
    (case,) = (case for case in root.iter("testcase") if case.get("name") == "device cortex-a76")
    assert "2 output steps" in case.find("failure").get("message")


def test_the_record_can_be_read_and_holds_the_results(source, tmp_path):
    results = DeviceResults(model=MODEL, compilations=(compiled(), validated()), dumps=(dumped(),))
    write_anew(source, results, tmp_path)
    assert load_record(VerificationReport, tmp_path / "report.json").device == results
    assert load_record(VerificationReport, source / "report.json").device is None


def test_what_comes_from_a_device_is_escaped(source, tmp_path):
    fault = Finding(where=HOSTILE, what=HOSTILE, do=HOSTILE)
    found = (dumped("departs", HOSTILE, HOSTILE),)
    results = DeviceResults(model=MODEL, compilations=(compiled(fault),), dumps=found)
    write_anew(source, results, tmp_path)
    seen = parse((tmp_path / "report.html").read_text())
    assert "script" not in seen.tags
    assert "<script>" not in (tmp_path / "report.md").read_text()
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "2"


def test_pages_of_another_version_are_refused(source, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / "report.json").write_text((source / "report.json").read_text())
    (old / "report.html").write_text("<html></html>")
    with pytest.raises(StaleRecordError, match="another version of onnxq wrote it"):
        write_anew(old, DeviceResults(model=MODEL), tmp_path)
