"""What commands about a device share: where their results are kept, and the flag against it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxq.cli.console import DONE, Screen

if TYPE_CHECKING:
    from onnxq.plain.device import Found

__all__ = ["no_report_option", "say_kept"]

no_report_option = click.option(
    "--no-report", is_flag=True, help="Print only, and leave the bundle's folder as it is."
)


def say_kept(folder: Path, found: "Sequence[Found]", screen: Screen) -> None:
    """Keep what was found in the bundle of ``folder``, which may be a part's, and say where."""
    from onnxq.plain.device import add_to_bundle, top_of

    kept = add_to_bundle(top_of(folder), found)
    page = kept / "report.html"
    screen.say(f"kept in {page if page.is_file() else kept}", mark=DONE)
