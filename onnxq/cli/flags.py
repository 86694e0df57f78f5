"""Flags that several commands share, and what they mean."""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic import ValidationError

from onnxq.artifacts import Finding
from onnxq.calibrate.resources import Resources
from onnxq.cli.console import Screen
from onnxq.cli.run import default_folder, run_recipe
from onnxq.errors import UsageError, nearest
from onnxq.pipeline import Stage
from onnxq.recipe import Recipe, Waiver
from onnxq.recipe_file import load_recipe
from onnxq.target import Target

__all__ = [
    "build_dir_option",
    "chosen_target",
    "domain_option",
    "flag",
    "is_recipe",
    "loaded_recipe",
    "parsed_domains",
    "parsed_waivers",
    "path_type",
    "refuse_flags",
    "required",
    "run_stage",
    "say_findings",
    "target_option",
]

_MOST_FINDINGS = 8
_FOR_RECIPES = frozenset({"build_dir"})
_RESOURCES = frozenset({"workers", "ray", "max_memory", "checkpoint"})
_WITH_RECIPE = _FOR_RECIPES | _RESOURCES | {"target", "split", "as_json", "quiet", "verbose"}
path_type = click.Path(path_type=Path)
target_option = click.option(
    "--target",
    help="Target (`onnxq targets`). Unless given: the recipe's, that of the INT8 file's record, or "
    "ort-x86.",
)
build_dir_option = click.option("--build-dir", type=path_type, help="Where a recipe's results go.")
domain_option = click.option(
    "--domain", "domains", multiple=True, metavar="NAME=LOW,HIGH",
    help="Declare the domain of an input or output; it pins the scale.",
)  # fmt: skip


def is_recipe(path: Path, own: Collection[str] = ()) -> bool:
    """True for a recipe; raises UsageError for flags that do not go with what ``path`` is.

    ``own`` are parameters of the command that go with both.
    """
    if path.suffix in {".yaml", ".yml"}:
        do = f"set it in the recipe, or once with `onnxq run {path} --set KEY=VALUE`"
        refuse_flags(
            lambda name: name not in {*_WITH_RECIPE, *own}, "for plain files", str(path), do
        )
        return True
    do = "leave it out: `-o` or --report says where results go"
    refuse_flags(lambda name: name in _FOR_RECIPES, "for recipes", str(path), do)
    return False


def refuse_flags(unused: Callable[[str], bool], purpose: str, where: str, do: str) -> None:
    """Raise UsageError if a flag was given that would be ignored."""
    context = click.get_current_context()
    flags = [
        f"`{option.opts[0]}`"
        for option in context.command.params
        if isinstance(option, click.Option)
        and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE
        and unused(str(option.name))
    ]
    if flags:
        verb = "is" if len(flags) == 1 else "are"
        raise UsageError(f"{', '.join(flags)} {verb} {purpose} only", where=where, do=do)


def run_stage(
    recipe: Path,
    stage: Stage,
    target: str | None,
    build_dir: Path | None,
    screen: Screen,
    resources: Resources | None = None,
) -> int:
    """Run a recipe up to ``stage``; the exit code."""
    loaded, folder = loaded_recipe(recipe, target, build_dir)
    return run_recipe(loaded, folder, screen, last=stage, resources=resources)


def loaded_recipe(recipe: Path, target: str | None, build_dir: Path | None) -> tuple[Recipe, Path]:
    """A recipe, for another target if one is given, and where its results go."""
    settings = (f"target={target}",) if target else ()
    loaded = load_recipe(recipe, settings)
    return loaded, build_dir or default_folder(loaded, target, quick=False)


def chosen_target(target: str | None) -> Target:
    """The target that is asked for, or the usual one."""
    from onnxq.plain.quantize import target_for

    return target_for(None, target)


def required(value: Any, flag: str) -> Any:
    """``value``; raises UsageError if the flag was not given."""
    if value is None:
        raise UsageError(f"`{flag}` is needed for a plain file", where="usage")
    return value


@contextlib.contextmanager
def flag(name: str) -> Iterator[None]:
    """Turn a value that a section of the recipe refuses into a UsageError that names the flag."""
    try:
        yield
    except ValidationError as fault:
        first = fault.errors()[0]
        found = "" if isinstance(first["input"], dict) else f" (found {first['input']!r:.60})"
        if name == "usage" and first["loc"]:
            name = f"--{str(first['loc'][0]).replace('_', '-')}"
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(what + found, where=name) from fault


def parsed_domains(domains: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """What ``--domain`` says. Raises UsageError for what is no interval."""
    parsed = {}
    for text in domains:
        name, _, interval = text.partition("=")
        try:
            low, high = (float(part) for part in interval.split(","))
        except ValueError:
            raise UsageError(
                f"`{text}` is not of the form NAME=LOW,HIGH", where="--domain"
            ) from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UsageError(
                f"`{text}` is no interval of finite numbers with LOW below HIGH", where="--domain"
            )
        parsed[name] = (low, high)
    return parsed


def parsed_waivers(texts: tuple[str, ...], known: Sequence[str]) -> tuple[Waiver, ...]:
    """What ``--waive`` says. Raises UsageError for a check that is not ``known``, or no reason."""
    waivers = []
    for text in texts:
        name, _, reason = text.partition("=")
        if not reason.strip():
            raise UsageError(
                f"`{text}` is not of the form NAME=REASON",
                where="--waive",
                do="say why: the reason goes into the report",
            )
        if name not in known:
            raise UsageError(f"no check `{name}`; {nearest(name, known)}", where="--waive")
        waivers.append(Waiver(name=name, reason=reason.strip()))
    return tuple(waivers)


def say_findings(screen: Screen, findings: Iterable[Finding]) -> None:
    """One line for each, and no more than fit on a screen: the record holds them all."""
    found = list(findings)
    for finding in found[:_MOST_FINDINGS]:
        screen.say(f"  ! {finding.where}: {finding.what}")
    if len(found) > _MOST_FINDINGS:
        screen.say(f"  ! and {len(found) - _MOST_FINDINGS} more findings, in the record (--json)")
