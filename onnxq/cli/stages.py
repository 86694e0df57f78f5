"""``onnxq export|quantize|verify|handoff``, on a recipe or on plain files."""

import math
from pathlib import Path
from typing import Any, get_args

import click

from onnxq.cli.calibrate import FOR_CALIBRATING, data_of, data_options
from onnxq.cli.console import DONE, Screen, command_options, print_verdict
from onnxq.cli.finetune import finetune_of, finetune_options
from onnxq.cli.flags import (
    build_dir_option,
    chosen_target,
    domain_option,
    flag,
    is_recipe,
    loaded_recipe,
    parsed_domains,
    parsed_waivers,
    path_type,
    refuse_flags,
    required,
    run_stage,
    say_findings,
    target_option,
)
from onnxq.cli.run import run_recipe
from onnxq.errors import UsageError
from onnxq.recipe import (
    Effort,
    Elementwise,
    Gate,
    NodePrecision,
    QuantizeSection,
    Step,
    VerifySection,
    Waiver,
)

__all__ = ["export", "handoff", "quantize", "verify"]

_BITS = {"int4": "weights", "int8": "weights", "float": "weights", "int16": "activations"}


@click.command()
@click.argument("model", type=path_type)
@target_option
@build_dir_option
@domain_option
@click.option(
    "-o", "output", type=path_type, help="Folder for the canonical graph of a plain model."
)
@click.option(
    "--propose-split",
    "split",
    is_flag=True,
    help="Also print where the graph could be cut into parts, as lines for a recipe.",
)
@click.option(
    "--body-data",
    metavar="SOURCE",
    help="Samples for the parts of --propose-split: what the body of a loop takes on every run is "
    "written beside it.",
)
@command_options
def export(  # noqa: PLR0913 - one parameter a flag
    *,
    model: Path,
    target: str | None,
    build_dir: Path | None,
    domains: tuple[str, ...],
    output: Path | None,
    split: bool,
    body_data: str | None,
    screen: Screen,
) -> int:
    """Export a recipe's network, or bring a plain MODEL.onnx to canonical form."""
    if is_recipe(model):
        recipe, folder = loaded_recipe(model, target, build_dir)
        code = run_recipe(recipe, folder, screen, last="export")
        if split:
            from onnxq.cli.split import say_proposals
            from onnxq.target import load_target

            say_proposals(folder / "export" / "fp32.onnx", load_target(recipe.target), screen)
        return code
    output = required(output, "-o DIR")
    if split:
        from onnxq.cli.split import export_with_split

        given = chosen_target(target), parsed_domains(domains)
        return export_with_split(model, *given, output, body_data, screen)
    if body_data is not None:
        raise UsageError("is read with --propose-split", where="--body-data", do="give both")
    from onnxq.export.stage import RECORD as EXPORT
    from onnxq.plain.export import export_file
    from onnxq.store import atomic_folder

    with atomic_folder(output, EXPORT) as folder:
        record = export_file(model, chosen_target(target), parsed_domains(domains), folder)
    for step in record.steps:
        screen.say(f"  {step}")
    screen.say(str(output), mark=DONE)
    screen.result({"exit_code": 0, "record": record.model_dump(mode="json")})
    return 0


@click.command()
@click.argument("model", type=path_type)
@target_option
@build_dir_option
@data_options
@click.option("--calibration", type=path_type, help="Folder that `onnxq calibrate` made.")
@click.option("--exclude", multiple=True, metavar="NODE", help="Keep this node float.")
@click.option(
    "--step",
    "steps",
    multiple=True,
    type=click.Choice(get_args(Step)),
    help="Refine the numbers by this step instead of those of the effort; repeatable.",
)
@finetune_options
@click.option(
    "--effort",
    type=click.Choice([*get_args(Effort), "none"]),
    default="balanced",
    help="Which steps refine the numbers; none: plain rounding.",
)
@click.option(
    "--saturation",
    type=click.Choice(["ignore", "narrow"]),
    help="Give weights 7 bits where sums saturate on x86 without VNNI (default: as the target "
    "says).",
)
@click.option(
    "--elementwise",
    type=click.Choice(get_args(Elementwise)),
    default="weigh",
    help="Operators without weights: float where integers save too little (default), or one way.",
)
@click.option(
    "--weights",
    type=click.Choice(["int8", "int4"]),
    default="int8",
    help="Bits of the weights; with int4 the network's ends keep 8.",
)
@click.option(
    "--block", type=int, help="Give every so many 4-bit weights of a channel a step of their own."
)
@click.option(
    "--storage",
    type=click.Choice(["packed", "int8"]),
    default="packed",
    help="Store 4-bit weights two a byte (default), or a byte each.",
)
@click.option(
    "--precision",
    multiple=True,
    metavar="NODE=BITS",
    help="Bits of one node, or of all that fit a pattern: int4, int8 or float weights, or int16 "
    "activations; repeatable.",
)
@click.option("-o", "output", type=path_type, help="The INT8 file of a plain model.")
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
    if is_recipe(model):
        return run_stage(model, "quantize", target, build_dir, screen)
    from onnxq.plain.made_from import quantize_from

    if options["calibration"]:
        refuse_flags(
            lambda name: name in FOR_CALIBRATING, "for calibrating", "--calibration",
            "give it to `onnxq calibrate`, which made that folder",
        )  # fmt: skip
    source = options["calibration"] or data_of(options)
    excluded = tuple(Waiver(name=name, reason="--exclude") for name in options["exclude"])
    is_plain = options["effort"] == "none" or options["steps"]
    steps = options["steps"] if is_plain else None
    effort = "balanced" if is_plain else options["effort"]
    with flag("usage"):
        section = QuantizeSection(
            exclude=excluded, steps=steps, effort=effort, saturation=options["saturation"],
            weights=options["weights"], block=options["block"], storage=options["storage"],
            precision=_precisions(options["precision"]), elementwise=options["elementwise"],
            finetune=finetune_of(options),
        )  # fmt: skip
    record = quantize_from(
        model, chosen_target(target), source, section, required(output, "-o OUT.onnx"),
        screen.progress,
    )  # fmt: skip
    screen.say(f"{output}: {len(record.quantized_nodes)} nodes for {record.target}", mark=DONE)
    for node in record.float_nodes:
        screen.say(f"  float: {node.op_type} `{node.node}`: {node.reason}")
    for name, bits in record.weight_precision.items():
        if bits.reason:
            screen.say(f"  {bits.type} weights: `{name}`: {bits.reason}")
    for step in record.steps:
        screen.say(f"  {step}")
    say_findings(screen, record.findings)
    if record.made_up_data:
        screen.say(
            "calibrated on random numbers: `onnxq verify` will end with 2", mark="[yellow]![/] "
        )
    screen.result({"exit_code": 0, "record": record.model_dump(mode="json")})
    return 0


def _precisions(texts: tuple[str, ...]) -> tuple[NodePrecision, ...]:
    """What ``--precision`` says. Raises UsageError for what is not of the form NODE=BITS."""
    found = []
    for text in texts:
        name, _, bits = text.rpartition("=")
        if not name or bits not in _BITS:
            known = ", ".join(_BITS)
            do = f"NODE is a name or a pattern (`block_*`), BITS one of {known}"
            raise UsageError(f"`{text}` is not of the form NODE=BITS", where="--precision", do=do)
        found.append(NodePrecision(name=name, **{_BITS[bits]: bits}, reason="--precision"))
    return tuple(found)


@click.command()
@click.argument(
    "models", type=path_type, nargs=-1, required=True, metavar="RECIPE | FP32.onnx INT8.onnx"
)
@target_option
@build_dir_option
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
@click.option("--report", type=path_type, help="Folder for the report.")
@command_options
def verify(
    models: tuple[Path, ...],
    target: str | None,
    build_dir: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Judge INT8 against FP32 on held-out samples: exit 0 passed, 1 worse, 2 cannot be judged."""
    if is_recipe(models[0]) and len(models) == 1:
        return run_stage(models[0], "verify", target, build_dir, screen)
    if len(models) != 2 or is_recipe(models[0]):
        raise UsageError("give a recipe, or FP32.onnx and INT8.onnx", where="usage")
    import tempfile

    from onnxq.plain.judge import REPORT, samples_for, task_for, verify_files
    from onnxq.plain.quantize import record_of
    from onnxq.store import atomic_folder
    from onnxq.verify.gate import AT_CHANCE

    fp32, int8 = models
    source = required(options["data"], "--data")
    task, metric = task_for(required(options["metric"], "--metric"))
    section = VerifySection(
        gate=_gates(metric, options), waive=parsed_waivers(options["waive"], [AT_CHANCE])
    )
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


def _gates(metric: str, options: dict[str, Any]) -> tuple[Gate, ...]:
    limits = {name: options[name] for name in ("max_drop", "max_to_fp32")}
    for name, limit in limits.items():
        if limit is not None and not math.isfinite(limit):
            where = f"--{name.replace('_', '-')}"
            raise UsageError(f"{limit} is no limit", where=where, do="give a finite number")
    gates, judge = [], options["judge"]
    if limits["max_drop"] is not None:
        with flag("--max-drop"):
            gates.append(Gate(metric=metric, max_increase=limits["max_drop"], judge=judge))
    if limits["max_to_fp32"] is not None:
        with flag("--max-to-fp32"):
            gates.append(Gate(metric=f"{metric}_to_fp32", max=limits["max_to_fp32"], judge=judge))
    if not gates:
        raise UsageError(
            "no limit was given", where="usage", do="give --max-drop X, --max-to-fp32 X or both"
        )
    return tuple(gates)


@click.command()
@click.argument("model", type=path_type)
@target_option
@build_dir_option
@click.option("--data", metavar="SOURCE", help="Samples for the known answers.")
@click.option("--report", type=path_type, help="Folder that `onnxq verify --report` made.")
@click.option("--allow-unverified", is_flag=True, help="Pack a model that has no passed report.")
@click.option("--waive", multiple=True, metavar="RULE=REASON", help="Let a broken rule pass.")
@click.option("-o", "output", type=path_type, help="The bundle's folder.")
@command_options
def handoff(
    model: Path,
    target: str | None,
    build_dir: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Check the target's rules and pack the bundle of a recipe or of a plain OUT.onnx."""
    if is_recipe(model):
        return run_stage(model, "handoff", target, build_dir, screen)
    if options["report"] is None and not options["allow_unverified"]:
        raise UsageError(
            "nothing says that this model was verified",
            where="usage",
            do="give --report DIR of `onnxq verify`, or --allow-unverified for a stamped bundle",
        )
    from onnxq.plain.judge import hand_off_file
    from onnxq.plain.quantize import record_of, target_for

    rules = [rule.id for rule in target_for(record_of(model), target).rules]
    bundle = hand_off_file(
        model,
        required(options["output"], "-o DIR"),
        target=target,
        source=options["data"],
        report=options["report"],
        allow_unverified=options["allow_unverified"],
        waive=parsed_waivers(options["waive"], rules),
    )
    screen.say(f"{options['output']}: {bundle.verdict}, {len(bundle.files)} files", mark=DONE)
    screen.result({"exit_code": 0, "bundle": bundle.model_dump(mode="json")})
    return 0
