"""``onnxq sensitivity``: what the quantization of each layer costs."""

import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.calibrate import data_of, data_options
from onnxq.cli.console import Screen, command_options
from onnxq.cli.flags import (
    build_dir_option,
    chosen_target,
    is_recipe,
    loaded_recipe,
    path_type,
    required,
    target_option,
)

if TYPE_CHECKING:
    from onnxq.artifacts import Sensitivity
    from onnxq.tuning.subject import Subject

__all__ = ["opened_subject", "sensitivity"]

_MODES = ("only", "without", "parts", "budget", "fisher")
_OWN = frozenset({"trial_samples", "modes", "output"})
_SHOWN, _BAR = 20, 30  # layers on the terminal; characters of the longest bar


@click.command()
@click.argument("model", type=path_type)
@target_option
@build_dir_option
@data_options
@click.option(
    "--trial-samples", type=click.IntRange(1), default=8, show_default=True,
    help="On how many samples each trial is measured.",
)  # fmt: skip
@click.option(
    "--measure", "modes", type=click.Choice(_MODES), multiple=True,
    help="only: each layer alone quantized; without: all others; parts: its weights and its "
    "activations alone; budget: what each adds to the whole error; fisher: squared gradients. "
    "May be repeated; all unless given.",
)  # fmt: skip
@click.option("-o", "output", type=path_type, help="Folder for trials and report.")
@command_options
def sensitivity(  # noqa: PLR0913 - one parameter a flag
    *,
    model: Path,
    target: str | None,
    build_dir: Path | None,
    modes: tuple[str, ...],
    trial_samples: int,
    output: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Measure what quantizing each layer of MODEL costs (an .onnx file with --data, or a recipe).

    Every trial is kept as it is measured: the same command goes on where it was interrupted.
    Results lie in build/<name>/sensitivity unless -o is given.
    """
    from onnxq.tuning.sensitivity import sensitivity as measure
    from onnxq.tuning.sensitivity_page import sensitivity_page
    from onnxq.verify.report.page import write_page

    with opened_subject(model, target, build_dir, options, screen) as (subject, folder):
        place = output or folder / "sensitivity"
        found = measure(
            subject, place, samples=trial_samples, modes=modes or _MODES, progress=screen.progress
        )
    _print(screen, found)
    write_page(sensitivity_page(found), place)
    screen.say(f"  report  {place / 'report.html'}")
    screen.result({"exit_code": 0, "sensitivity": found.model_dump(mode="json")})
    return 0


@contextmanager
def opened_subject(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    options: dict[str, Any],
    screen: Screen,
    own: Collection[str] = _OWN,
) -> "Iterator[tuple[Subject, Path]]":
    """A recipe's graph with its ranges, or a plain file's, which is calibrated in a folder that
    lasts as long as the block; and where results go."""
    from onnxq.tuning.subject import subject_of_file, subject_of_recipe

    if is_recipe(model, own):
        recipe, folder = loaded_recipe(model, target, build_dir)
        yield subject_of_recipe(recipe, folder, screen, screen.progress), folder
        return
    required(options["data"], "--data")
    from onnxq.plain.calibrate import Means

    with tempfile.TemporaryDirectory() as scratch:
        means = Means(progress=screen.progress)
        data = data_of(options)
        subject = subject_of_file(model, chosen_target(target), data, Path(scratch), means)
        yield subject, Path("build") / model.stem


def _print(screen: Screen, found: "Sensitivity") -> None:
    from onnxq.artifacts import decibels
    from onnxq.tuning.sensitivity_page import budget_parts, cost_of, ranked

    screen.say(
        f"{found.name} for {found.target}: {decibels(found.error):.1f} dB all quantized, "
        f"{decibels(found.weights_error):.1f} weights alone, "
        f"{decibels(found.activations_error):.1f} activations alone "
        f"({found.samples} samples, as the graph says)",
        style="bold",
    )
    rows = ranked(found)[:_SHOWN]
    costs = [cost_of(row) or 0.0 for row in rows]
    width = max((len(row.layer) for row in rows), default=0)
    longest = max(map(abs, costs), default=0.0) or 1.0
    for row, cost in zip(rows, costs, strict=True):
        bar = "█" * max(round(_BAR * abs(cost) / longest), 1 if cost else 0)
        screen.say(f"  {row.layer:<{width}} {bar:<{_BAR}} {1000 * cost:8.3f} ‰")
    if len(found.layers) > len(rows):
        screen.say(f"  and {len(found.layers) - len(rows)} more layers, in the report")
    parts = budget_parts(found)
    if parts is not None:
        screen.say(
            f"  budget  weights {1000 * parts[0]:.3f} ‰ + activations {1000 * parts[1]:.3f} ‰ = "
            f"{1000 * found.error:.3f} ‰"
        )
