"""The shell: parse, call, print, exit code. A command is imported when it is called."""

import importlib
import json
import sys
from typing import NoReturn

import click

from onnxq import __version__

__all__ = ["main"]

_COMMANDS = {
    "run": ("onnxq.cli.run", "Take a recipe from checkpoint to verified bundle."),
    "export": ("onnxq.cli.stages", "Make the canonical FP32 graph and prove its parity."),
    "calibrate": (
        "onnxq.cli.calibrate",
        "Run samples through the graph and find the range of every tensor.",
    ),
    "merge": ("onnxq.cli.calibrate", "Join statistics that were collected apart."),
    "quantize": ("onnxq.cli.stages", "Write the INT8 Q/DQ model."),
    "verify": ("onnxq.cli.stages", "Judge INT8 against FP32 on the task's own metric."),
    "compare": ("onnxq.cli.compare", "Lay FP32 and its quantized forms side by side."),
    "sensitivity": ("onnxq.cli.sensitivity", "Measure what quantizing each layer costs."),
    "tune": ("onnxq.cli.tune", "Find the cheapest precision of each layer that is good enough."),
    "handoff": ("onnxq.cli.stages", "Check the target's rules and pack the bundle."),
    "rebuild": ("onnxq.cli.rebuild", "Make a bundle again and prove that every byte is the same."),
    "inspect": ("onnxq.cli.inspect", "Show what is integer in a model, what is not, and why."),
    "convert": ("onnxq.cli.convert", "Change activations between int8 and uint8, same numbers."),
    "compare-st": ("onnxq.cli.st", "Compare the reports of ST's tool with a bundle's plan."),
    "doctor": ("onnxq.cli.doctor", "Check whether this installation can do its work."),
    "check": ("onnxq.cli.targets", "Judge a model by a target's rules, and say what runs where."),
    "compare-dump": (
        "onnxq.cli.dump",
        "Name the first layer of a device's dump that departs from a bundle's.",
    ),
    "targets": ("onnxq.cli.targets", "List the targets, or show one."),
    "schema": ("onnxq.cli.look", "Print the JSON Schema of recipes."),
}


class _Group(click.Group):
    """Knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command = getattr(module, cmd_name.replace("-", "_"))
        if not isinstance(command, click.Command):
            raise TypeError(f"{cmd_name} is no command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS and not args[0].startswith("-"):
            from onnxq.errors import nearest

            ctx.fail(f"no command `{args[0]}`; {nearest(args[0], _COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 passed · 1 judged and worse than allowed, or a target rule broken · "
    "2 could not judge.",
)
@click.version_option(__version__, prog_name="onnxq")
def _cli() -> None:
    """Take a trained model to a verified INT8 ONNX model, or say no."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    arguments = sys.argv[1:] if args is None else args
    try:
        code = _cli.main(arguments, prog_name="onnxq", standalone_mode=False)
    except click.ClickException as wrong:
        wrong.show()
        _end_with_two(arguments, "UsageError", wrong.format_message())
    except (click.Abort, KeyboardInterrupt):
        from onnxq.errors import InterruptedRunError

        fault = InterruptedRunError("interrupted", do="run the same command again to resume")
        click.echo(str(fault), err=True)
        _end_with_two(arguments, "InterruptedRunError", fault.what)
    sys.exit(code if isinstance(code, int) else 0)


def _end_with_two(arguments: list[str], kind: str, what: str) -> NoReturn:
    """Exit with 2; where JSON was asked for, one object says why."""
    if "--json" in arguments:
        error = {"kind": kind, "where": "usage", "what": what, "do": ""}
        click.echo(json.dumps({"exit_code": 2, "error": error}))
    sys.exit(2)
