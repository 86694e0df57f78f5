"""``onnxq compare-st``: what ST's tool reported against what the bundle had planned."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from onnxq.artifacts import (
    BUNDLE_FILE,
    ST_METRICS,
    Bundle,
    CompilerCheck,
    Finding,
    GenerateReport,
    InfoReport,
    LayerDistance,
    MemoryEstimate,
    ValidateReport,
    VerificationReport,
)
from onnxq.cli.console import DONE, Screen, command_options
from onnxq.cli.device import no_report_option, say_kept
from onnxq.cli.flags import path_type
from onnxq.errors import EXIT_PASSED, EXIT_WORSE, StaleRecordError, UsageError
from onnxq.handoff.contract import Contract

if TYPE_CHECKING:
    from onnxq.target import Target

__all__ = ["compare_st"]

_CONTRACT_FILE = "contract.json"
_BAD = "[red]✗[/] "


@click.command("compare-st")
@click.argument("bundle", type=path_type)
@click.argument("reports", type=path_type, nargs=-1, required=True)
@no_report_option
@command_options
def compare_st(bundle: Path, reports: tuple[Path, ...], no_report: bool, screen: Screen) -> int:
    """Compare what ST's tool reported with the plan of BUNDLE, a folder of `onnxq handoff`.

    Where the model ships in parts, BUNDLE is the folder of one part.

    REPORTS are network_generate_report.txt, network_c_info.json or network_validate_report.txt.
    Ends with 1 where the compiler did something else than was planned: a software epoch for a node
    of the NPU, bytes in external RAM, a pool that overflows, memory that this network cannot have,
    another version of the tool. With 2 where a report is of another model. What is found is kept
    in device/ of the bundle, where its report is written anew.
    """
    from onnxq.handoff.st_compare import departures, plan_of
    from onnxq.handoff.st_reports import read_report
    from onnxq.handoff.st_values import refuse_another_model
    from onnxq.plain.device import judged_file, now

    target = _target_of(bundle)
    contract = _contract_of(bundle)
    read = [read_report(path) for path in reports]
    said = [refuse_another_model(report, contract) for report in read]
    plan = plan_of(bundle / contract.model, target, float_edges=not _integer_edges(contract))
    own = _own_metrics(bundle, contract)
    found: list[Finding] = []
    checks: list[CompilerCheck] = []
    model, when = judged_file(bundle, contract.model), now()
    for report, names_model in zip(read, said, strict=True):
        fresh = departures(plan, report)
        found += fresh
        checks.append(
            CompilerCheck(
                model=model,
                when=when,
                report=report,
                departures=fresh,
                activations_bytes=plan.memory.internal_bytes,
                weights_bytes=plan.memory.weights_bytes,
                macs=plan.macs,
            )
        )
        screen.say(report.file, mark=_BAD if fresh else DONE, style="bold")
        if not names_model:
            screen.say(f"  names no model: only its numbers say that it is of {contract.model}")
        if isinstance(report, ValidateReport):
            _show_metrics(screen, report, own)
        else:
            _show_compiled(screen, report, plan.memory)
        for finding in fresh:
            screen.say(f"{finding.where}: {finding.what}", mark=f"  {_BAD}")
            screen.say(f"    → {finding.do}")
    if not no_report:
        say_kept(bundle, checks, screen)
    code = EXIT_WORSE if found else EXIT_PASSED
    screen.result(
        {
            "exit_code": code,
            "departures": [finding.model_dump(mode="json") for finding in found],
            "reports": [report.model_dump(mode="json") for report in read],
            "own_metrics": [row.model_dump(mode="json") for row in own],
            "memory": plan.memory.model_dump(mode="json"),
        }
    )
    return code


# --- the bundle ---------------------------------------------------------------------------------


def _target_of(bundle: Path) -> "Target":
    """The bundle's target; UsageError if it is not one of ST's tool."""
    from onnxq.handoff.st_edge_ai import is_for_st
    from onnxq.plain.device import top_of
    from onnxq.store import load_record
    from onnxq.target import load_target

    target = load_target(load_record(Bundle, top_of(bundle) / BUNDLE_FILE).target)
    if not is_for_st(target):
        raise UsageError(
            f"was handed off for {target.name}, which ST's tool does not compile for",
            where=str(bundle),
            do="give the bundle that was handed off for stm32n6",
        )
    return target


def _contract_of(bundle: Path) -> Contract:
    """The contract of the model in this folder; StaleRecordError if it is another file's."""
    from onnxq.handoff.dump import part_folders
    from onnxq.store import load_record, sha256_of_file

    contract = load_record(Contract, bundle / _CONTRACT_FILE)
    if not contract.model.endswith(".onnx"):
        parts = ", ".join(part_folders(bundle))
        raise UsageError(
            "ships in parts, and the tool's report is about one of them",
            where=str(bundle),
            do=f"give the folder of that part: {parts}",
        )
    if sha256_of_file(bundle / contract.model) != contract.sha256:
        raise StaleRecordError(
            f"is not the file that {_CONTRACT_FILE} is about",
            where=str(bundle / contract.model),
            do="hand off again",
        )
    return contract


def _integer_edges(contract: Contract) -> bool:
    """Whether every input and output of the model has an integer form on the device."""
    return all(value.quantization for value in (*contract.inputs, *contract.outputs))


def _own_metrics(bundle: Path, contract: Contract) -> list[LayerDistance]:
    """Distances of onnxq's own report between FP32 and INT8 at the outputs; none without it."""
    from onnxq.plain.device import top_of
    from onnxq.store import load_record

    file = top_of(bundle) / "report" / "report.json"
    if not file.is_file():
        return []
    outputs = {value.name for value in contract.outputs}
    report = load_record(VerificationReport, file)
    return [row for row in report.layers if row.tensor in outputs]


# --- what is shown ------------------------------------------------------------------------------


def _show_compiled(
    screen: Screen, report: GenerateReport | InfoReport, memory: MemoryEstimate
) -> None:
    software = [epoch for epoch in report.epochs if epoch.runs == "software"]
    screen.say(f"  {len(report.epochs)} epochs, {len(software)} in software")
    if isinstance(report, GenerateReport) and report.profile:
        screen.say(f"  compiled with the profile {report.profile}")
    table = Table("pool", "used", "of", box=None)
    for pool in report.pools:
        size = "" if pool.size_bytes is None else f"{pool.size_bytes:,}"
        table.add_row(pool.pool, f"{pool.used_bytes:,}", size)
    screen.text.print(table)
    if memory.internal_bytes is not None:
        band = f" (ST's: {memory.band[0]:,} to {memory.band[1]:,})" if memory.band else ""
        screen.say(f"  estimated for activations on chip: {memory.internal_bytes:,} bytes{band}")
    timed = sorted(
        (epoch for epoch in report.epochs if epoch.cycles), key=lambda epoch: -(epoch.cycles or 0)
    )
    for epoch in timed[:5]:
        screen.say(f"  epoch {epoch.number} {epoch.operation}: {epoch.cycles:,} cycles")


def _show_metrics(screen: Screen, report: ValidateReport, own: Sequence[LayerDistance]) -> None:
    columns = [*report.outputs, *own]
    heads = [f"ST: {row.output}" for row in report.outputs] + [
        f"onnxq: {row.tensor}" for row in own
    ]
    table = Table("", *heads, box=None)
    for metric in ST_METRICS:
        table.add_row(metric, *(_text(getattr(column, metric)) for column in columns))
    screen.text.print(table)
    screen.say(
        "  ST: the C model against ONNX Runtime on the same INT8 file. onnxq: INT8 against FP32. "
        "Names and definitions are the same; a `mean` far from 0 is an offset that `cos` hides."
    )


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
