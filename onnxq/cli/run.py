"""``onnxq run``."""

from pathlib import Path

import click

from onnxq.calibrate.resources import Resources
from onnxq.cli.console import Screen, command_options, print_verdict
from onnxq.errors import EXIT_PASSED, EXIT_WORSE
from onnxq.pipeline import STAGES, Outcome, Stage
from onnxq.pipeline import run as run_pipeline
from onnxq.recipe import Recipe
from onnxq.recipe_file import load_recipe
from onnxq.target import load_target

__all__ = ["run", "run_recipe"]

_QUICK_CALIBRATION, _QUICK_EVALUATION = 40, 120


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--target", help="Another target than the recipe's.")
@click.option("--from", "again_from", type=click.Choice(STAGES), help="Run again from this stage.")
@click.option("--to", "last", type=click.Choice(STAGES), default="handoff", help="Last stage.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Overrule a recipe key."
)
@click.option("--build-dir", type=click.Path(path_type=Path), help="Where results go.")
@click.option(
    "--quick", is_flag=True, help="Few samples, to try a recipe; its verdict is worth less."
)
@command_options
def run(  # noqa: PLR0913 - one parameter a flag
    *,
    recipe: Path,
    target: str | None,
    again_from: Stage | None,
    last: Stage,
    settings: tuple[str, ...],
    build_dir: Path | None,
    quick: bool,
    screen: Screen,
) -> int:
    """Run RECIPE: export, calibrate, quantize, verify, hand off.

    A stage whose inputs have not changed is not run again. Results lie in build/<recipe name>/,
    the report in its verify/report.html.
    """
    if quick:
        settings = (
            f"calibrate.samples={_QUICK_CALIBRATION}",
            f"verify.samples={_QUICK_EVALUATION}",
            *settings,
        )
    if target:
        settings = (*settings, f"target={target}")
    loaded = load_recipe(recipe, settings)
    folder = build_dir or default_folder(loaded, target, quick)
    return run_recipe(loaded, folder, screen, last=last, again_from=again_from)


def default_folder(recipe: Recipe, target: str | None, quick: bool) -> Path:
    """``build/<name>``, with the target and ``quick`` behind it where they are not the recipe's."""
    parts = [
        recipe.name,
        *([load_target(target).slug] if target else []),
        *(["quick"] if quick else []),
    ]
    return (recipe.build or Path("build")) / "-".join(parts)


def run_recipe(
    recipe: Recipe,
    folder: Path,
    screen: Screen,
    *,
    last: Stage = "handoff",
    again_from: Stage | None = None,
    resources: Resources | None = None,
) -> int:
    """Run stages, print what came out, return the exit code."""
    outcome = run_pipeline(
        recipe,
        folder,
        screen,
        last=last,
        again_from=again_from,
        resources=resources,
        progress=screen.progress,
    )
    reports = [outcome.report] if outcome.report else []
    codes = [print_verdict(screen, report) for report in (*reports, *outcome.twin_reports.values())]
    code = EXIT_WORSE if EXIT_WORSE in codes else max(codes, default=EXIT_PASSED)
    _print_places(screen, outcome)
    screen.result(
        {
            "exit_code": code,
            "verdict": outcome.report.verdict if outcome.report else None,
            "build": str(folder),
            "report": outcome.report.model_dump(mode="json") if outcome.report else None,
            "bundle": str(folder / "handoff") if outcome.bundle else None,
            "also": {
                name: report.model_dump(mode="json")
                for name, report in outcome.twin_reports.items()
            },
        }
    )
    return code


def _print_places(screen: Screen, outcome: Outcome) -> None:
    if outcome.report:
        screen.say(f"  report  {outcome.folder / 'verify' / 'report.html'}")
    if outcome.bundle:
        screen.say(f"  bundle  {outcome.folder / 'handoff'}")
    for name in outcome.twin_bundles:
        screen.say(f"  bundle  {outcome.folder / 'handoff' / name}")
