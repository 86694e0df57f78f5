"""What was found after the hand-off: other processors, the vendor's compiler, a device's dump."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onnxq.artifacts import (
    ST_METRICS,
    CompilerCheck,
    DeviceResults,
    DumpCheck,
    GenerateReport,
    ProcessorCheck,
    ProcessorRow,
    ValidateReport,
)
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

__all__ = ["DeviceVerdict", "device", "verdicts"]

_VERDICT = Column("Verdict", "verdict")


@dataclass(frozen=True)
class DeviceVerdict:
    """One check after the hand-off: what was checked, whether it is as it should be, and a
    sentence."""

    what: str
    passed: bool
    says: str


def verdicts(results: DeviceResults) -> tuple[DeviceVerdict, ...]:
    """A verdict for each processor, each report of a compiler, and each dump."""
    return (
        *(
            DeviceVerdict(cpu, check.exit_codes[cpu] == 0, _answers(check, cpu, decides=True))
            for check, cpu in _processors(results)
        ),
        *(
            DeviceVerdict(
                f"{check.model.name}, {check.report.file}",
                not check.departures,
                "; ".join(f"{found.where}: {found.what}" for found in check.departures)
                or "as planned",
            )
            for check in results.compilations
        ),
        *(
            DeviceVerdict(
                f"{check.model.name}, {check.dump.name}",
                check.comparison.verdict != "departs",
                check.comparison.statement,
            )
            for check in results.dumps
        ),
    )


def device(results: DeviceResults) -> Section:
    """Everything that is known from outside the machine that handed off."""
    tables = (
        _of_processors(results),
        *_of_compilers(results.compilations),
        _of_dumps(results.dumps),
        _judged(results),
    )
    lead = "Found after the hand-off, on the files below."
    if results.processors:
        lead += (
            " The bundle's own self-test was run on these processors under emulation, and its known"
            " answers compared with those of the machine that handed off. Emulation tells which"
            " integers a processor computes; it says nothing about speed."
        )
    return Section("device", "On the device", lead, tuple(t for t in tables if t.rows))


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"


# --- processors ---------------------------------------------------------------------------------


def _processors(results: DeviceResults) -> Iterator[tuple[ProcessorCheck, str]]:
    return ((check, cpu) for check in results.processors for cpu in check.exit_codes)


def _of_processors(results: DeviceResults) -> Table:
    return make_table(
        (
            _VERDICT,
            *text_columns("Processor", "Answers", "For information", "ONNX Runtime", "Emulator"),
        ),
        _processors(results),
        lambda item: (
            _word(item[0].exit_codes[item[1]] == 0),
            item[1],
            _answers(*item, decides=True),
            _answers(*item, decides=False) or MISSING,
            item[0].packages.get("onnxruntime", MISSING),
            item[0].emulator,
        ),
        lambda item: item[0].exit_codes[item[1]] != 0,
        title="Other processors, emulated",
    )


def _answers(check: ProcessorCheck, cpu: str, *, decides: bool) -> str:
    """How the answers on one processor compare: at the level that decides, or at the others."""
    allowed = f" (allowed {number(check.tolerance_steps, trim=True)})" if decides else ""
    rows = [row for row in check.rows if row.cpu == cpu and row.decides == decides]
    return "; ".join(_compared(row, allowed, level=not decides) for row in rows)


def _compared(row: ProcessorRow, allowed: str, *, level: bool) -> str:
    named = [name for name in (row.part, row.level if level else "") if name]
    head = f"{', '.join(named)}: " if named else ""
    vectors = f"{integer(row.vectors)} vector{'' if row.vectors == 1 else 's'}"
    if not row.differing:
        return f"{head}all {integer(row.elements)} numbers of {vectors} equal, bit for bit"
    plural = "" if row.most_steps == 1 else "s"
    return (
        f"{head}{integer(row.differing)} of {integer(row.elements)} numbers of {vectors} differ, "
        f"by up to {number(row.most_steps, trim=True)} output step{plural}{allowed}"
    )


# --- the vendor's compiler ----------------------------------------------------------------------


def _of_compilers(checks: Sequence[CompilerCheck]) -> tuple[Table, ...]:
    compiled = [check for check in checks if not isinstance(check.report, ValidateReport)]
    lines = [
        (check, pool)
        for check in compiled
        if not isinstance(check.report, ValidateReport)
        for pool in check.report.pools
        if pool.used_bytes
    ]
    pools = make_table(
        (*code_columns("Model"), *text_columns("Report", "Memory"), *number_columns("Used", "Of")),
        lines,
        lambda line: (
            line[0].model.name,
            line[0].report.file,
            line[1].pool,
            integer(line[1].used_bytes),
            integer(line[1].size_bytes),
        ),
        title="Memory that the compiler uses (bytes)",
    )
    departures = make_table(
        (*code_columns("Model"), *text_columns("Where", "What", "What to do")),
        ((check, found) for check in checks for found in check.departures),
        lambda item: (item[0].model.name, item[1].where, item[1].what, item[1].do or MISSING),
        lambda _: True,
        title="Not as planned",
    )
    return _compiled(compiled), _planned(checks), pools, _validated(checks), departures


def _compiled(checks: Sequence[CompilerCheck]) -> Table:
    return make_table(
        (
            _VERDICT,
            *code_columns("Model"),
            *text_columns("Report", "Tool"),
            *number_columns("Epochs", "In software", "Cycles"),
        ),
        checks,
        _compiled_cells,
        lambda check: bool(check.departures),
        title="ST Edge AI: what was compiled",
    )


def _compiled_cells(check: CompilerCheck) -> tuple[str, ...]:
    report = check.report
    epochs = () if isinstance(report, ValidateReport) else report.epochs
    cycles = [epoch.cycles for epoch in epochs if epoch.cycles is not None]
    return (
        _word(not check.departures),
        check.model.name,
        report.file,
        report.tool_version or MISSING,
        integer(len(epochs)),
        integer(sum(epoch.runs == "software" for epoch in epochs)),
        integer(sum(cycles)) if cycles else MISSING,
    )


def _planned(checks: Sequence[CompilerCheck]) -> Table:
    lines = [
        (check, *line)
        for check in checks
        if isinstance(check.report, GenerateReport)
        for line in (
            ("activations (bytes)", check.report.activations_bytes, check.activations_bytes),
            ("weights (bytes)", check.report.weights_bytes, check.weights_bytes),
            ("multiply–accumulates", check.report.macc, check.macs),
        )
    ]
    return make_table(
        (*code_columns("Model"), *text_columns("Quantity"), *number_columns("Reported", "Planned")),
        lines,
        lambda line: (line[0].model.name, line[1], integer(line[2]), integer(line[3])),
        title="ST Edge AI: what it reports, beside what was planned",
    )


def _validated(checks: Sequence[CompilerCheck]) -> Table:
    """The C model against ONNX Runtime on the same file, output by output."""
    rows = [
        (check, output)
        for check in checks
        if isinstance(check.report, ValidateReport)
        for output in check.report.outputs
    ]
    return make_table(
        (
            _VERDICT,
            *code_columns("Model"),
            *text_columns("Output"),
            *number_columns("acc", *ST_METRICS),
        ),
        rows,
        lambda row: (
            _word(not row[0].departures),
            row[0].model.name,
            row[1].output,
            *(number(getattr(row[1], name)) for name in ("acc", *ST_METRICS)),
        ),
        title="ST Edge AI: the C model against ONNX Runtime, on the same INT8 file",
    )


# --- dumps --------------------------------------------------------------------------------------


def _of_dumps(checks: Sequence[DumpCheck]) -> Table:
    ways = ("equal", "follows", "rounding", "departs")
    return make_table(
        (
            _VERDICT,
            *code_columns("Model", "Dump"),
            *number_columns("Layers", "Equal", "Follow", "Rounding", "Depart"),
            *text_columns("What"),
        ),
        checks,
        lambda check: (
            _word(check.comparison.verdict != "departs"),
            check.model.name,
            check.dump.name,
            integer(len(check.comparison.layers)),
            *(
                integer(sum(layer.verdict == way for layer in check.comparison.layers))
                for way in ways
            ),
            check.comparison.statement,
        ),
        lambda check: check.comparison.verdict == "departs",
        title="Layers of a device's dump, beside the bundle's",
    )


# --- what was judged ----------------------------------------------------------------------------


def _judged(results: DeviceResults) -> Table:
    checks: list[tuple[str, ProcessorCheck | CompilerCheck | DumpCheck]] = [
        *((", ".join(check.exit_codes), check) for check in results.processors),
        *((check.report.file, check) for check in results.compilations),
        *((check.dump.name, check) for check in results.dumps),
    ]
    return make_table(
        (*text_columns("Check"), *code_columns("Judged file", "SHA-256"), *text_columns("When")),
        checks,
        lambda item: (
            item[0],
            item[1].model.name,
            item[1].model.sha256,
            f"{item[1].when:%Y-%m-%d %H:%M %Z}",
        ),
        title="What was judged",
    )
