"""``onnxq export|calibrate|quantize|verify|handoff``, on a recipe or on plain files."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from pydantic import ValidationError

from onnxq.cli.console import DONE, Screen, command_options, print_verdict
from onnxq.cli.run import default_folder, run_recipe
from onnxq.errors import UsageError, nearest
from onnxq.pipeline import Stage
from onnxq.recipe import CalibrateSection, Gate, QuantizeSection, VerifySection, Waiver, load_recipe
from onnxq.target import Target

__all__ = ["calibrate", "export", "handoff", "quantize", "verify"]

_FOR_RECIPES = frozenset({"build_dir"})
_FOR_CALIBRATING = frozenset({"data", "samples", "method", "seed", "smoke_test_random", "domains"})
_WITH_RECIPE = _FOR_RECIPES | {"target", "as_json", "quiet", "verbose"}
_path = click.Path(path_type=Path)
_target = click.option(
    "--target",
    help="Target (`onnxq targets`). Unless given: the recipe's, that of the INT8 file's record, or "
    "ort-x86.",
)
_build_dir = click.option("--build-dir", type=_path, help="Where a recipe's results go.")
_domain = click.option(
    "--domain", "domains", multiple=True, metavar="NAME=LOW,HIGH",
    help="Declare the domain of an input or output; it pins the scale.",
)  # fmt: skip


def _data_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--data", metavar="SOURCE", help="A file, or module:function."),
        click.option("--samples", type=click.IntRange(1), help="How many (default: up to 200)."),
        click.option(
            "--method", type=click.Choice(["minmax", "percentile", "mse"]), default="minmax",
            help="How statistics become ranges (default: minmax).",
        ),
        click.option("--seed", type=click.IntRange(0), default=0, help="Seed of the choice."),
        click.option(
            "--smoke-test-random", is_flag=True,
            help="Calibrate on random numbers; the model is stamped and never verified.",
        ),
        _domain,
    ):  # fmt: skip
        function = option(function)
    return function


def _is_recipe(path: Path) -> bool:
    """True for a recipe; raises UsageError for flags that do not go with what ``path`` is."""
    if path.suffix in {".yaml", ".yml"}:
        do = f"set it in the recipe, or once with `onnxq run {path} --set KEY=VALUE`"
        _refuse_flags(lambda name: name not in _WITH_RECIPE, "for plain files", str(path), do)
        return True
    do = "leave it out: `-o` or --report says where results go"
    _refuse_flags(lambda name: name in _FOR_RECIPES, "for recipes", str(path), do)
    return False


def _refuse_flags(unused: Callable[[str], bool], purpose: str, where: str, do: str) -> None:
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


def _run_stage(
    recipe: Path, stage: Stage, target: str | None, build_dir: Path | None, screen: Screen
) -> int:
    settings = (f"target={target}",) if target else ()
    loaded = load_recipe(recipe, settings)
    folder = build_dir or default_folder(loaded, target, quick=False)
    return run_recipe(loaded, folder, screen, last=stage)


def _chosen(target: str | None) -> Target:
    from onnxq.plain import target_for

    return target_for(None, target)


def _required(value: Any, flag: str) -> Any:
    if value is None:
        raise UsageError(f"`{flag}` is needed for a plain file", where="usage")
    return value


@contextlib.contextmanager
def _flag(name: str) -> Iterator[None]:
    """Turn a value that a section of the recipe refuses into a UsageError that names the flag."""
    try:
        yield
    except ValidationError as fault:
        first = fault.errors()[0]
        raise UsageError(
            f"{first['msg'].removeprefix('Value error, ')} (found {first['input']!r:.60})",
            where=name,
        ) from fault


def _parsed_domains(domains: tuple[str, ...]) -> dict[str, tuple[float, float]]:
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


def _data(options: dict[str, Any]) -> Any:
    from onnxq.plain import Data

    source, random = options["data"], options["smoke_test_random"]
    if (source is None) == (not random):
        raise UsageError(
            "give `--data SOURCE` (and not --smoke-test-random beside it)",
            where="usage",
            do="calibration needs real samples; --smoke-test-random is for trying the tool only",
        )
    section = CalibrateSection(method=options["method"], seed=options["seed"])
    return Data(source, _parsed_domains(options["domains"]), section, options["samples"])


@click.command()
@click.argument("model", type=_path)
@_target
@_build_dir
@_domain
@click.option("-o", "output", type=_path, help="Folder for the canonical graph of a plain model.")
@command_options
def export(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    domains: tuple[str, ...],
    output: Path | None,
    screen: Screen,
) -> int:
    """Export a recipe's network, or bring a plain MODEL.onnx to canonical form."""
    if _is_recipe(model):
        return _run_stage(model, "export", target, build_dir, screen)
    from onnxq.export.stage import RECORD as EXPORT
    from onnxq.plain import export_file
    from onnxq.store import atomic_folder

    with atomic_folder(_required(output, "-o DIR"), EXPORT) as folder:
        record = export_file(model, _chosen(target), _parsed_domains(domains), folder)
    for step in record.steps:
        screen.say(f"  {step}")
    screen.say(str(output), mark=DONE)
    screen.result({"exit_code": 0, "record": record.model_dump(mode="json")})
    return 0


@click.command()
@click.argument("model", type=_path)
@_target
@_build_dir
@_data_options
@click.option("-o", "output", type=_path, help="Folder for the ranges of a plain model.")
@command_options
def calibrate(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    output: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Find the range of every tensor of a recipe's graph or of a plain MODEL.onnx."""
    if _is_recipe(model):
        return _run_stage(model, "calibrate", target, build_dir, screen)
    from onnxq.plain import calibrate_file

    data = _data(options)
    folder = _required(output, "-o DIR")
    result = calibrate_file(model, _chosen(target), data, folder, screen.progress)
    screen.say(
        f"{folder}: {len(result.ranges)} ranges by {result.method} from "
        f"{len(result.choice.indices)} samples ({result.choice.plan})",
        mark=DONE,
    )
    _say_findings(screen, result.findings)
    screen.result({"exit_code": 0, "record": result.model_dump(mode="json")})
    return 0


@click.command()
@click.argument("model", type=_path)
@_target
@_build_dir
@_data_options
@click.option("--calibration", type=_path, help="Folder that `onnxq calibrate` made.")
@click.option("--exclude", multiple=True, metavar="NODE", help="Keep this node float.")
@click.option("-o", "output", type=_path, help="The INT8 file of a plain model.")
@command_options
def quantize(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    output: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Write the INT8 Q/DQ form of a recipe's graph or of a plain MODEL.onnx."""
    if _is_recipe(model):
        return _run_stage(model, "quantize", target, build_dir, screen)
    from onnxq.plain import quantize_file

    if options["calibration"]:
        _refuse_flags(
            lambda name: name in _FOR_CALIBRATING, "for calibrating", "--calibration",
            "give it to `onnxq calibrate`, which made that folder",
        )  # fmt: skip
    source = options["calibration"] or _data(options)
    excluded = tuple(Waiver(name=name, reason="--exclude") for name in options["exclude"])
    record = quantize_file(
        model, _chosen(target), source, QuantizeSection(exclude=excluded),
        _required(output, "-o OUT.onnx"), screen.progress,
    )  # fmt: skip
    screen.say(f"{output}: {len(record.quantized_nodes)} nodes for {record.target}", mark=DONE)
    for node in record.float_nodes:
        screen.say(f"  float: {node.op_type} `{node.node}`: {node.reason}")
    _say_findings(screen, record.findings)
    if record.made_up_data:
        screen.say(
            "calibrated on random numbers: `onnxq verify` will end with 2", mark="[yellow]![/] "
        )
    screen.result({"exit_code": 0, "record": record.model_dump(mode="json")})
    return 0


@click.command()
@click.argument(
    "models", type=_path, nargs=-1, required=True, metavar="RECIPE | FP32.onnx INT8.onnx"
)
@_target
@_build_dir
@click.option("--data", metavar="SOURCE", help="Held-out samples with labels.")
@click.option("--metric", help="top1, top5, mae, or module:function (a Task).")
@click.option("--max-drop", type=float, help="How much worse INT8 may be, in the metric's unit.")
@click.option("--max-to-fp32", type=float, help="How far INT8 may be from FP32 itself, on average.")
@click.option(
    "--judge", type=click.Choice(["bound", "point"]), default="bound",
    help="Judge the upper end of the 95 % interval (default), or the point.",
)  # fmt: skip
@click.option(
    "--waive", multiple=True, metavar="NAME=REASON", help="Let a check pass: fp32-at-chance."
)
@click.option("--report", type=_path, help="Folder for the report.")
@command_options
def verify(
    models: tuple[Path, ...],
    target: str | None,
    build_dir: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Judge INT8 against FP32 on held-out samples: exit 0 passed, 1 worse, 2 cannot be judged."""
    if _is_recipe(models[0]) and len(models) == 1:
        return _run_stage(models[0], "verify", target, build_dir, screen)
    if len(models) != 2 or _is_recipe(models[0]):
        raise UsageError("give a recipe, or FP32.onnx and INT8.onnx", where="usage")
    import tempfile

    from onnxq.plain import REPORT, record_of, samples_for, task_for, verify_files
    from onnxq.store import atomic_folder

    fp32, int8 = models
    source = _required(options["data"], "--data")
    task, metric = task_for(_required(options["metric"], "--metric"))
    section = VerifySection(gate=_gates(metric, options), waive=_waivers(options["waive"]))
    with (
        tempfile.TemporaryDirectory() as scratch,
        atomic_folder(options["report"] or Path(scratch) / "report", REPORT) as folder,
    ):
        report = verify_files(
            fp32, int8, samples_for(fp32, source), task, section, folder,
            target=target, progress=screen.progress,
        )  # fmt: skip
    code = print_verdict(screen, report)
    record = record_of(int8)
    if record is None or record.calibration is None:
        screen.say(
            f"no record says what {int8.name} was calibrated on: whether these samples are held "
            "out is not known",
            mark="  [yellow]![/] ",
        )
    if options["report"]:
        screen.say(f"  report  {options['report'] / 'report.html'}")
    screen.result(
        {"exit_code": code, "verdict": report.verdict, "report": report.model_dump(mode="json")}
    )
    return code


def _waivers(texts: tuple[str, ...]) -> tuple[Waiver, ...]:
    from onnxq.verify.gate import AT_CHANCE

    waivers = []
    for text in texts:
        name, _, reason = text.partition("=")
        if not reason.strip():
            raise UsageError(
                f"`{text}` is not of the form NAME=REASON",
                where="--waive",
                do="say why: the reason goes into the report",
            )
        if name != AT_CHANCE:
            raise UsageError(f"no check `{name}`; {nearest(name, [AT_CHANCE])}", where="--waive")
        waivers.append(Waiver(name=name, reason=reason.strip()))
    return tuple(waivers)


def _gates(metric: str, options: dict[str, Any]) -> tuple[Gate, ...]:
    limits = {name: options[name] for name in ("max_drop", "max_to_fp32")}
    for name, limit in limits.items():
        if limit is not None and not math.isfinite(limit):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{limit} is no limit", where=flag, do="give a finite number")
    gates, judge = [], options["judge"]
    if limits["max_drop"] is not None:
        with _flag("--max-drop"):
            gates.append(Gate(metric=metric, max_increase=limits["max_drop"], judge=judge))
    if limits["max_to_fp32"] is not None:
        with _flag("--max-to-fp32"):
            gates.append(Gate(metric=f"{metric}_to_fp32", max=limits["max_to_fp32"], judge=judge))
    if not gates:
        raise UsageError(
            "no limit was given", where="usage", do="give --max-drop X, --max-to-fp32 X or both"
        )
    return tuple(gates)


@click.command()
@click.argument("model", type=_path)
@_target
@_build_dir
@click.option("--data", metavar="SOURCE", help="Samples for the known answers.")
@click.option("--report", type=_path, help="Folder that `onnxq verify --report` made.")
@click.option("--allow-unverified", is_flag=True, help="Pack a model that has no passed report.")
@click.option("-o", "output", type=_path, help="The bundle's folder.")
@command_options
def handoff(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Check the target's rules and pack the bundle of a recipe or of a plain OUT.onnx."""
    if _is_recipe(model):
        return _run_stage(model, "handoff", target, build_dir, screen)
    if options["report"] is None and not options["allow_unverified"]:
        raise UsageError(
            "nothing says that this model was verified",
            where="usage",
            do="give --report DIR of `onnxq verify`, or --allow-unverified for a stamped bundle",
        )
    from onnxq.plain import hand_off_file

    bundle = hand_off_file(
        model,
        _required(options["output"], "-o DIR"),
        target=target,
        source=options["data"],
        report=options["report"],
        allow_unverified=options["allow_unverified"],
    )
    screen.say(f"{options['output']}: {bundle.verdict}, {len(bundle.files)} files", mark=DONE)
    screen.result({"exit_code": 0, "bundle": bundle.model_dump(mode="json")})
    return 0


def _say_findings(screen: Screen, findings: Any) -> None:
    for finding in findings:
        screen.say(f"  ! {finding.where}: {finding.what}")
