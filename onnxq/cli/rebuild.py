"""``onnxq rebuild``."""

import tempfile
from pathlib import Path

import click

from onnxq.artifacts import BUNDLE_FILE, Bundle, Origin, RebuildCheck
from onnxq.cli.console import DONE, Screen, command_options
from onnxq.cli.flags import path_type
from onnxq.errors import EXIT_PASSED, EXIT_WORSE, DataError, UsageError

__all__ = ["rebuild"]

_RECIPE = "recipe.yaml"


@click.command()
@click.argument("bundle", type=path_type)
@click.option(
    "--recipe", type=path_type,
    help="The recipe that it was made from, where it is not found: paths begin at its folder.",
)  # fmt: skip
@command_options
def rebuild(bundle: Path, recipe: Path | None, screen: Screen) -> int:
    """Make BUNDLE again from what it records, and compare every byte: exit 0 equal, 1 different.

    Everything is made again: of a recipe from the bundle's own copy of it, of a plain file from the
    FP32 model and the data that it was quantized from. Of a file that somebody else quantized, or
    from a folder of ranges, the hand-off alone.
    """
    from onnxq.handoff.rebuilt import changes_since, compare_bundles, listed_files
    from onnxq.plain.rebuild import hand_off_again
    from onnxq.provenance import provenance
    from onnxq.store import load_record

    listed_files(bundle)
    record = load_record(Bundle, bundle / BUNDLE_FILE)
    origin = _origin(record, bundle)
    with tempfile.TemporaryDirectory() as scratch:
        if origin.kind == "recipe":
            again = _run_again(bundle, record, recipe, Path(scratch) / "build", screen)
        else:
            if recipe is not None:
                what = "this bundle was made of a plain file, not of a recipe"
                raise UsageError(what, where="--recipe", do="leave it out")
            again = Path(scratch) / "handoff"
            if origin.made_from is None:
                screen.say("  nothing says what the model was quantized from: it is taken as it is")
            hand_off_again(bundle, record, origin, again)
        made = None if again is None else load_record(Bundle, again / BUNDLE_FILE).origin
        reasons = changes_since(record, provenance({}), made)
        if again is None:
            result = RebuildCheck(files=0, differences=(), reasons=reasons)
        else:
            result = compare_bundles(bundle, again, reasons)
    return _print(screen, bundle, result, made is not None)


def _origin(record: Bundle, bundle: Path) -> Origin:
    if record.origin is None:
        raise DataError(
            "does not say what it was made from",
            where=str(bundle),
            do="hand it off again, with this version of onnxq",
        )
    return record.origin


def _run_again(
    bundle: Path, record: Bundle, given: Path | None, folder: Path, screen: Screen
) -> Path | None:
    """The bundle of the recipe's own copy, run from its first stage; None if it did not pass.

    A recipe's bundles for further targets lie in the folder of the first, by the target's name.
    """
    from onnxq.handoff.origin import find_recipe
    from onnxq.pipeline import run
    from onnxq.recipe_file import load_recipe
    from onnxq.target import load_target

    origin = _origin(record, bundle)
    place = given or find_recipe(origin, bundle)
    if place is None:
        raise DataError(
            f"its recipe {origin.source} is not found",
            where=str(bundle),
            do="give it with --recipe: paths in it begin at its folder",
        )
    recipe = load_recipe(bundle / _RECIPE, origin.settings, place=place)
    outcome = run(recipe, folder, screen, progress=screen.progress)
    if outcome.bundle is not None and outcome.bundle.target == record.target:
        return folder / "handoff"
    twin = folder / "handoff" / load_target(record.target).slug
    return twin if record.target in outcome.twin_bundles else None


def _print(screen: Screen, bundle: Path, result: RebuildCheck, made: bool) -> int:
    """Print the result; the exit code."""
    same = made and not result.differences
    for finding in result.differences:
        screen.say(f"{finding.where} {finding.what}", mark="[red]✗[/] ")
    for finding in result.reasons:
        screen.say(f"  ! {finding.where}: {finding.what}")
    if same:
        screen.say(f"{bundle}: {result.files} files made again, every byte the same", mark=DONE)
    elif not made:
        screen.say("the model did not pass verification this time: no bundle", mark="[red]✗[/] ")
    elif not result.reasons:
        screen.say("  versions, processor, code and ingredients are the same: report this fault")
    code = EXIT_PASSED if same else EXIT_WORSE
    screen.result({"exit_code": code, "rebuilt": made, **result.model_dump(mode="json")})
    return code
