"""``onnxq compare-dump``: a device's layers beside those of a bundle."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxq.artifacts import ST_METRICS, DumpCheck
from onnxq.cli.console import DONE, Screen, command_options
from onnxq.cli.device import no_report_option, say_kept
from onnxq.cli.flags import path_type
from onnxq.errors import EXIT_PASSED, EXIT_WORSE

if TYPE_CHECKING:
    from onnxq.artifacts import DumpLayer

__all__ = ["compare_dump"]


@click.command("compare-dump")
@click.argument("bundle", type=path_type)
@click.argument("dump", type=path_type)
@no_report_option
@command_options
def compare_dump(bundle: Path, dump: Path, no_report: bool, screen: Screen) -> int:
    """Name the first layer of DUMP, a device's .npz, .csv or .bin, that departs from BUNDLE's.

    Exit 0: equal, or every difference is rounding. 1: a layer departs. 2: cannot be read. What is
    found is kept in device/ of the bundle, where its report is written anew.
    """
    from onnxq.plain.device import judged_file, now
    from onnxq.plain.dump import compare_dump as compare
    from onnxq.store import facts_of_file

    found = compare(bundle, dump, screen.progress)
    for note in found.notes:
        screen.say(f"  {note}")
    if found.unknown:
        screen.say(f"  no layer of the bundle: {', '.join(found.unknown)}")
    if found.missing:
        screen.say(f"  not in the dump: {', '.join(found.missing)}")
    for line in _table(found.layers):
        screen.say(line)
    departs = found.verdict == "departs"
    screen.say(found.statement, mark="[red]✗[/] " if departs else DONE)
    if not no_report:
        check = DumpCheck(
            model=judged_file(bundle, found.model),
            when=now(),
            dump=facts_of_file(dump),
            comparison=found,
        )
        say_kept(bundle, [check], screen)
    code = EXIT_WORSE if departs else EXIT_PASSED
    screen.result({"exit_code": code, **found.model_dump(mode="json")})
    return code


def _table(rows: "Sequence[DumpLayer]") -> list[str]:
    """A head and a line a layer; ``own`` are steps against the reference of the dump's integers."""
    lines = [["", "tensor", "node", "steps", "own", *ST_METRICS]]
    for row in rows:
        known = row.distance
        own = "" if row.own_steps is None else str(row.own_steps)
        head = [row.verdict, known.tensor, f"{known.op_type} {known.node}", str(row.steps), own]
        lines.append([*head, *(f"{getattr(known, name):.4g}" for name in ST_METRICS)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
