"""``onnxq doctor``: whether this installation can do its work."""

from dataclasses import asdict

import click

from onnxq.cli.console import DONE, DOUBT, Screen, command_options
from onnxq.errors import EXIT_NOT_JUDGED, EXIT_PASSED

__all__ = ["doctor"]

_MARKS = {"works": DONE, "note": DOUBT, "fails": "[red]✗[/] "}


@click.command()
@command_options
def doctor(screen: Screen) -> int:
    """Check packages, processor, ONNX Runtime and every stage on graphs of one operator.

    If a model fails and nothing here does, the fault is in the model or in onnxq; what fails here
    fails for every model. Exit code 2 if anything does.
    """
    from onnxq.plain.doctor import examine

    checks = []
    for check in examine():
        screen.say(f"{check.what:<24} {check.found}", mark=_MARKS[check.state])
        if check.do:
            screen.say(f"    → {check.do}")
        checks.append(asdict(check))
    failed = [check["what"] for check in checks if check["state"] == "fails"]
    if failed:
        screen.say(f"the installation cannot be relied on: {', '.join(failed)}", style="bold")
    else:
        screen.say("the tools work: what fails now lies in the model or in onnxq", style="bold")
    code = EXIT_NOT_JUDGED if failed else EXIT_PASSED
    screen.result({"exit_code": code, "checks": checks})
    return code
