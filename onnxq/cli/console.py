"""What a person sees: progress, errors on one screen, one JSON object where it is asked for."""

import functools
import json
import logging
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from onnxq.artifacts import GateResult, VerificationReport
from onnxq.errors import EXIT_NOT_JUDGED, EXIT_PASSED, EXIT_WORSE, OnnxqError
from onnxq.pipeline import Stage

__all__ = ["DONE", "EXIT_CODES", "Screen", "as_json", "command_options", "print_verdict"]

T = TypeVar("T")
EXIT_CODES = {
    "passed": EXIT_PASSED,
    "failed": EXIT_WORSE,
    "inconclusive": EXIT_NOT_JUDGED,
    "unverified": EXIT_NOT_JUDGED,
}
DONE, DOUBT = "[green]✓[/] ", "[yellow]?[/] "
_MARKS = {"passed": DONE, "failed": "[red]✗[/] ", "inconclusive": DOUBT, "unverified": DOUBT}
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Screen:
    """Where text goes: stdout for people; stderr when stdout is kept for one JSON object."""

    as_json: bool
    quiet: bool
    verbose: bool

    @functools.cached_property
    def text(self) -> Console:
        """The console for text."""
        return Console(stderr=self.as_json, quiet=self.quiet, highlight=False, soft_wrap=True)

    @functools.cached_property
    def side(self) -> Console:
        """The console for progress and errors."""
        return Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, line: str, mark: str = "", style: str | None = None) -> None:
        """Print one line of text as it is; only ``mark``, which stands before it, is markup."""
        self.text.print(mark, end="")
        self.text.print(line, markup=False, style=style)

    def result(self, value: dict[str, Any]) -> None:
        """Print the one JSON object, if JSON was asked for."""
        if self.as_json:
            click.echo(as_json(value))

    def progress(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """A bar on a terminal, plain lines elsewhere, nothing if quiet."""
        if self.quiet:
            yield from items
        elif self.side.is_terminal:
            columns = (
                TextColumn("  {task.description}"), BarColumn(),
                TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn(),
            )  # fmt: skip
            with Progress(*columns, console=self.side, transient=True) as bar:
                yield from bar.track(items, total=total, description=what)
        else:
            yield from self._lines(items, what, total)

    def _lines(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        last = time.monotonic()
        self.side.print(f"  {what}: 0/{total}")
        for number, item in enumerate(items, start=1):
            yield item
            if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                self.side.print(f"  {what}: {number}/{total}")

    # --- what the pipeline tells -----------------------------------------------------------------

    def stage_is_current(self, stage: Stage) -> None:
        """Say that nothing has to be done."""
        self.say(f"{stage:<10} up to date", mark="[dim]·[/] ")

    def stage_starts(self, stage: Stage) -> None:
        """Say what runs."""
        if not self.quiet:
            self.side.print(f"… {stage}")

    def stage_ends(self, stage: Stage, seconds: float) -> None:
        """Say what is done."""
        self.say(f"{stage:<10} {seconds:.1f} s", mark=DONE)


def as_json(value: object) -> str:
    """Strict JSON: what is no finite number becomes "NaN" or "Infinity", as in the records."""
    return json.dumps(_finite(value), default=str, allow_nan=False)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value


def command_options(function: Callable[..., int | None]) -> Callable[..., int]:
    """Give a command ``--json``, ``--quiet``, ``--verbose``, a ``screen``; turn errors to codes."""

    @click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
    @click.option("--quiet", "-q", is_flag=True, help="Print errors only.")
    @click.option("--verbose", "-v", is_flag=True, help="Show debug messages and tracebacks.")
    @functools.wraps(function)
    def command(*args: Any, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> int:
        screen = Screen(as_json, quiet, verbose)
        level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.WARNING
        logging.basicConfig(level=level, stream=sys.stderr, format="  ! %(message)s")
        signal.signal(signal.SIGTERM, _terminated)
        try:
            return function(*args, screen=screen, **options) or 0
        except OnnxqError as fault:
            return _print_error(screen, fault)
        except KeyboardInterrupt:
            raise
        except Exception as fault:  # a fault of onnxq's own must still end on one screen with 2
            return _print_unexpected(screen, fault)

    return command


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def _print_error(screen: Screen, fault: OnnxqError) -> int:
    if screen.verbose:
        screen.side.print(traceback.format_exc(), markup=False)
    screen.side.print("[bold red]✗[/] ", end="")
    if fault.where:
        screen.side.print(fault.where, style="bold", markup=False)
    screen.side.print(("  " if fault.where else "") + fault.what, markup=False)
    if fault.do:
        screen.side.print(f"  → {fault.do}", style="cyan", markup=False)
    facts = {"kind": type(fault).__name__, "where": fault.where, "what": fault.what, "do": fault.do}
    screen.result({"exit_code": fault.exit_code, "error": facts})
    return fault.exit_code


def _print_unexpected(screen: Screen, fault: Exception) -> int:
    if screen.verbose:
        screen.side.print(traceback.format_exc(), markup=False)
    what = f"{type(fault).__name__}: {fault}"
    screen.side.print("[bold red]✗[/] a fault in onnxq or in a function of the recipe")
    screen.side.print(f"  {what}", markup=False)
    screen.side.print("  → run it again with --verbose to see where, and report it", style="cyan")
    screen.result({"exit_code": EXIT_NOT_JUDGED, "error": {"kind": "unexpected", "what": what}})
    return EXIT_NOT_JUDGED


def print_verdict(screen: Screen, report: VerificationReport) -> int:
    """Print gates and verdict; return the exit code."""
    for gate in report.gates:
        screen.say(_gate_line(gate), mark=f"  {_MARKS[gate.verdict]}")
    line = f"{report.name} on {report.target}: {report.verdict}"
    screen.say(line, mark=_MARKS[report.verdict], style="bold")
    told = tuple(gate.statement for gate in report.gates)  # in the lines above
    for reason in report.reasons:
        if not reason.startswith(told):
            screen.say(f"  {reason}")
    return EXIT_CODES[report.verdict]


def _gate_line(gate: GateResult) -> str:
    bound = "" if gate.bound is None else f", 95 % interval up to {gate.bound:.3g}"
    needs = f" — {gate.needs}" if gate.needs else ""
    allowed = f"(allowed {gate.allowed:g}, judged by {gate.judge})"
    return f"{gate.statement}: {gate.point:.3g}{bound} {allowed}{needs}"
