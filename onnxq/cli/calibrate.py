"""``onnxq calibrate|merge``, and the flags by which samples and a method are given."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
import yaml

from onnxq.artifacts import CalibrationResult
from onnxq.calibrate.resources import Resources
from onnxq.cli.console import DONE, Screen, command_options
from onnxq.cli.flags import (
    build_dir_option,
    chosen_target,
    domain_option,
    flag,
    is_recipe,
    parsed_domains,
    parsed_waivers,
    path_type,
    required,
    run_stage,
    say_findings,
    target_option,
)
from onnxq.errors import UsageError
from onnxq.recipe import METHOD_OPTIONS, OVERLAP, CalibrateSection, FloatStepName, Method

if TYPE_CHECKING:
    from onnxq.plain.calibrate import Data

__all__ = ["FOR_CALIBRATING", "calibrate", "data_of", "data_options", "merge"]

_SECTION_OPTIONS = (
    *sorted(METHOD_OPTIONS), "collect", "optimization", "per_channel", "seed", "plan"
)  # fmt: skip
_STRATA = {"label": "by_label", "timestep": "by_timestep", "group": "by_group"}
FOR_CALIBRATING = frozenset(
    {
        *_SECTION_OPTIONS,
        "data",
        "evaluation",
        "source_options",
        "samples",
        "smoke_test_random",
        "domains",
        "stratify",
        "label_edges",
        "waive",
        "float_steps",
    }
)


def _method_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed((
        click.option(
            "--method", type=click.Choice(get_args(Method)),
            help="How statistics become ranges: smallest and largest value (minmax, the default); "
            "moving average of each sample's (ema); share of values kept (percentile); least error "
            "(mse); least information lost (entropy); mean ± k·σ (meanstd).",
        ),
        click.option("--coverage", type=float, help="Share kept by percentile (0.9999)."),
        click.option("--momentum", type=float, help="Weight of the newest sample in ema (0.05)."),
        click.option("--power", type=float, help="Power of the error in mse (2; 2.4 clips less)."),
        click.option("--sigmas", type=float, help="Standard deviations in meanstd (12)."),
    )):  # fmt: skip
        function = option(function)
    return function


def data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Flags that say which samples a plain model is calibrated on, and how."""
    for option in reversed((
        click.option(
            "--data", metavar="SOURCE",
            help=".npz, .npy, .safetensors, .h5, .pt, a folder of arrays or pictures, or "
            "module:function.",
        ),
        click.option(
            "--option", "source_options", multiple=True, metavar="KEY=VALUE",
            help="Option of the source: --option size=256 --option crop=224 for pictures, …",
        ),
        click.option(
            "--evaluation", metavar="SOURCE",
            help="Other samples, to see what ranges are worth on them: none may be in --data.",
        ),
        click.option("--samples", type=click.IntRange(1), help="How many (default: up to 200)."),
        click.option("--seed", type=click.IntRange(0), help="Seed of the choice (0)."),
        click.option(
            "--plan", type=click.Choice(["random", "first"]),
            help="Samples at random (default), or the first as they lie.",
        ),
        click.option(
            "--stratify", type=click.Choice(list(_STRATA)), multiple=True,
            help="Draw evenly over these; may be repeated.",
        ),
        click.option(
            "--label-edges", metavar="A,B,…",
            help="Draw evenly over bins of a numeric label between these edges.",
        ),
        _method_options,
        click.option(
            "--collect", type=click.Choice(["extremes", "histograms"]),
            help="histograms let the method be changed later without running the model again; "
            "extremes are quicker and do for minmax and ema (default: what --method needs).",
        ),
        click.option(
            "--optimization", type=click.Choice(["none", "full"]),
            help="none (default) computes what the graph says, as onnxruntime's calibrators do; "
            "full lets ONNX Runtime fuse: faster, and equal but for rounding.",
        ),
        click.option(
            "--per-channel", is_flag=True,
            help="Collect extremes by channel too, and tell where one scale serves most badly.",
        ),
        click.option(
            "--float-step", "float_steps", multiple=True,
            type=click.Choice(get_args(FloatStepName)),
            help="Give the FP32 graph other numbers for the same function first: even channels "
            "(equalize), no high biases (absorb), no outliers behind norms (smooth); repeatable.",
        ),
        click.option(
            "--waive", multiple=True, metavar="overlap=REASON",
            help="Let samples be among those of evaluation; the reason goes into the report.",
        ),
        click.option(
            "--smoke-test-random", is_flag=True,
            help="Calibrate on random numbers; the model is stamped and never verified.",
        ),
        domain_option,
    )):  # fmt: skip
        function = option(function)
    return function


def _resource_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed((
        click.option(
            "--resume", is_flag=True,
            help="Insist on going on from what an interrupted run of the same samples has left "
            "beside -o. Without this flag too it is gone on from, if it is there and fits.",
        ),
        click.option(
            "--checkpoint", type=click.FloatRange(min=0.01), metavar="SECONDS",
            help="Keep what is done about every SECONDS (10).",
        ),
        click.option(
            "--max-memory", type=click.FloatRange(min=1), metavar="MB",
            help="Most memory of one process; the forecast is compared with it before work.",
        ),
        click.option(
            "--workers", type=click.IntRange(1), metavar="N",
            help="Processes that share the samples (1; one process uses all cores already).",
        ),
        click.option(
            "--ray", metavar="ADDRESS",
            help="Share the samples over a running Ray cluster (needs onnxq[ray]).",
        ),
    )):  # fmt: skip
        function = option(function)
    return function


def data_of(options: dict[str, Any]) -> "Data":
    """The samples that flags ask for. Raises UsageError."""
    from onnxq.plain.calibrate import Data

    source, random = options["data"], options["smoke_test_random"]
    if random and options["evaluation"] is not None:
        raise UsageError(
            "--evaluation says nothing of random numbers",
            where="usage",
            do="leave it out, or give real samples as --data",
        )
    if (source is None) == (not random):
        raise UsageError(
            "give `--data SOURCE` (and not --smoke-test-random beside it)",
            where="usage",
            do="calibration needs real samples; --smoke-test-random is for trying the tool only",
        )
    return Data(
        source=source,
        domains=parsed_domains(options["domains"]),
        section=_section(
            options,
            _SECTION_OPTIONS,
            {
                "stratify": _strata(options),
                "waive": parsed_waivers(options["waive"], [OVERLAP]),
            },
        ),
        samples=options["samples"],
        options=_parsed_options(options["source_options"]),
        evaluation=options["evaluation"],
        float_steps=options["float_steps"],
    )


def _strata(options: dict[str, Any]) -> dict[str, object]:
    strata: dict[str, object] = {_STRATA[name]: True for name in options["stratify"]}
    if options["label_edges"] is not None:
        try:
            strata["label_edges"] = [float(edge) for edge in options["label_edges"].split(",")]
        except ValueError:
            what = f"`{options['label_edges']}` is no list of numbers"
            raise UsageError(what, where="--label-edges", do="give A,B,C") from None
    return strata


def _section(
    options: dict[str, Any], names: tuple[str, ...], more: dict[str, Any] | None = None
) -> CalibrateSection:
    given = {name: options[name] for name in names if options[name] is not None} | (more or {})
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{value} is no number to use", where=f"--{name}")
    with flag("usage"):
        return CalibrateSection.model_validate(given)


def _parsed_options(texts: tuple[str, ...]) -> dict[str, object]:
    parsed = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"`{text}` is not of the form KEY=VALUE", where="--option")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as fault:
            raise UsageError(f"`{value}` is no value: {fault}", where="--option") from fault
    return parsed


def _resources(options: dict[str, Any]) -> Resources:
    if options["ray"] is not None and options["workers"] is not None:
        raise UsageError("give --workers or --ray, not both", where="usage")
    return Resources(
        workers=options["workers"] or 1,
        ray=options["ray"],
        max_memory_mb=options["max_memory"],
        resume=options["resume"] or None,
        checkpoint_seconds=options["checkpoint"] or Resources.checkpoint_seconds,
    )


@click.command()
@click.argument("model", type=path_type)
@target_option
@build_dir_option
@data_options
@click.option("--exclude", multiple=True, metavar="NODE", help="This node will stay float.")
@click.option(
    "--also-for",
    multiple=True,
    metavar="TARGET",
    help="Look at what this target needs too, so that one calibration serves both.",
)
@_resource_options
@click.option("-o", "output", type=path_type, help="Folder for statistics and ranges.")
@command_options
def calibrate(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    output: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Find the range of every tensor that will carry Q/DQ, of a recipe's graph or a plain
    MODEL.onnx.

    \b
      onnxq calibrate model.onnx --data calib.npz -o calibration
      onnxq calibrate model.onnx --data calib.npz --method mse -o calibration
      onnxq quantize model.onnx --calibration calibration -o int8.onnx

    This takes the place of a CalibrationDataReader and a create_calibrator call of onnxruntime:
    minmax gives the same ranges to the last bit, and no method keeps activations, so memory does
    not grow with the samples. Samples are checked first (names, shapes, NaN); an Inf or NaN inside
    the network is an error that names sample, tensor and node.

    The folder holds statistics.safetensors and calibration.json with ranges, method, seed and every
    sample's number and hash. Repeated with another method that the statistics suffice for, the
    command makes new ranges without running the model. Statistics of several machines are joined
    by `onnxq merge`.
    """  # noqa: D301 - click keeps lines after this control character
    resources = _resources(options)
    if is_recipe(model):
        return run_stage(model, "calibrate", target, build_dir, screen, resources)
    from onnxq.plain.calibrate import Means, calibrate_file

    data = data_of(options)
    folder = required(output, "-o DIR")
    means = Means(
        excluded=dict.fromkeys(options["exclude"], "--exclude"),
        also_for=tuple(chosen_target(name) for name in options["also_for"]),
        resources=resources,
        progress=screen.progress,
    )
    result = calibrate_file(model, chosen_target(target), data, folder, means)
    return _say_result(screen, folder, result)


@click.command()
@click.argument("folders", type=path_type, nargs=-1, required=True, metavar="DIR…")
@_method_options
@click.option("-o", "output", type=path_type, required=True, help="Folder for the result.")
@command_options
def merge(folders: tuple[Path, ...], output: Path, screen: Screen, **options: Any) -> int:
    """Join statistics that `onnxq calibrate` made, on this machine or on others.

    \b
      onnxq merge machine-1 machine-2 -o calibration
      onnxq merge calibration --method mse -o calibration-mse

    All must be of the same model, target, tensors and preprocessing, and no sample may be in two of
    them. The result does not depend on their order, and its ranges are those that one machine would
    have found on all samples. Unless a method is given, they are made as in all of them.
    """  # noqa: D301 - as above
    from onnxq.plain.calibrate import merge_folders

    given = {name: options[name] for name in METHOD_OPTIONS if options[name] is not None}
    with flag("usage"):
        result = merge_folders(folders, output, given)
    return _say_result(screen, output, result)


def _say_result(screen: Screen, folder: Path, result: CalibrationResult) -> int:
    screen.say(
        f"{folder}: {len(result.ranges)} ranges by {result.method} from "
        f"{len(result.choice.indices)} samples ({result.choice.plan})",
        mark=DONE,
    )
    say_findings(screen, result.findings)
    say_findings(screen, result.passport.findings if result.passport else ())
    screen.result({"exit_code": 0, "record": result.model_dump(mode="json")})
    return 0
