"""Flags of the step ``finetune``."""

from collections.abc import Callable
from typing import Any

import click

from onnxq.cli.flags import flag
from onnxq.errors import UsageError
from onnxq.recipe import FinetuneSection

__all__ = ["finetune_of", "finetune_options"]

_OPTIONS = {
    "epochs": (int, "Epochs of the step finetune."),
    "learning_rate": (float, "Its learning rate at the beginning, in steps of a weight's grid."),
    "devices": (int, "Its processes, a core each; or GPUs, where there are any."),
}


def finetune_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags of fine-tuning."""
    for name, (kind, text) in reversed(_OPTIONS.items()):
        command = click.option(f"--{name.replace('_', '-')}", name, type=kind, help=text)(command)
    return command


def finetune_of(options: dict[str, Any]) -> FinetuneSection:
    """What the flags say. Raises UsageError for one that the steps do not read, or of no sense."""
    given = {name: options[name] for name in _OPTIONS if options[name] is not None}
    if given and "finetune" not in options["steps"]:
        name = f"--{next(iter(given)).replace('_', '-')}"
        raise UsageError(
            "is of the step finetune, which is not asked for", where=name, do="add --step finetune"
        )
    with flag("usage"):
        return FinetuneSection(**given)
