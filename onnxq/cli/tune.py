"""``onnxq tune``: the cheapest precision of every layer that is still good enough."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxq.cli.calibrate import data_options
from onnxq.cli.compare import print_table
from onnxq.cli.console import DONE, DOUBT, Screen, command_options
from onnxq.cli.flags import build_dir_option, path_type, target_option
from onnxq.cli.sensitivity import opened_subject
from onnxq.errors import EXIT_NOT_JUDGED, EXIT_PASSED, EXIT_WORSE, UsageError

if TYPE_CHECKING:
    from onnxq.artifacts import Tuning
    from onnxq.samples import Samples
    from onnxq.tuning.subject import Subject
    from onnxq.verify.metrics import Task

__all__ = ["tune"]

_OWN = frozenset({"metric", "max_drop", "max_bytes", "max_latency_ratio", "min_hardware_macs",
                  "trial_samples", "judged_samples", "output"})  # fmt: skip
_BRIEF = (0, 1, 2, 3, 4, 5)  # columns that a terminal has room for
_ENOUGH = 30  # samples that the ranges do not come from; with fewer, those that they do serve


@click.command()
@click.argument("model", type=path_type)
@target_option
@build_dir_option
@data_options
@click.option("--metric", help="What counts. Unless given: that of the recipe's gate.")
@click.option("--max-drop", type=click.FloatRange(min=0), help="How much worse than FP32.")
@click.option("--max-bytes", type=click.IntRange(1), help="Budget: bytes of the file.")
@click.option(
    "--max-latency-ratio", type=click.FloatRange(min=0, min_open=True),
    help="Budget: latency over FP32's, in ONNX Runtime here.",
)  # fmt: skip
@click.option(
    "--min-hardware-macs", type=click.FloatRange(0, 1),
    help="Budget: least share of MACs on the target's integer units.",
)  # fmt: skip
@click.option(
    "--trial-samples", type=click.IntRange(1), default=8, show_default=True,
    help="On how many samples each layer is measured.",
)  # fmt: skip
@click.option(
    "--judged-samples", type=click.IntRange(2), help="On how many samples plans are judged at most."
)
@click.option("-o", "output", type=path_type, help="Folder for trials and report.")
@command_options
def tune(
    *,
    model: Path,
    target: str | None,
    build_dir: Path | None,
    output: Path | None,
    screen: Screen,
    **options: Any,
) -> int:
    """Find the smallest plan of 4, 8 and 16 bits and float that keeps the gate and the budgets.

    MODEL is a recipe, or an .onnx file with --data, --metric and --max-drop. Plans are judged on
    samples of calibration's source that the ranges do not come from (or on --evaluation), never on
    a recipe's evaluation data. Every trial is kept: the same command goes on where it was
    interrupted. Exit 0: a plan was found; 1: none keeps gate and budgets; 2: not settled.
    """
    from onnxq.artifacts import Budgets
    from onnxq.tuning.bench import Request
    from onnxq.tuning.judging import Judge
    from onnxq.tuning.tune import tune as search
    from onnxq.tuning.tune_page import plans_table, tuning_page
    from onnxq.verify.gate import metric_named
    from onnxq.verify.report.page import write_page
    from onnxq.verify.report.tables import only_columns

    with opened_subject(model, target, build_dir, options, screen, _OWN) as (subject, folder):
        place = output or folder / "tune"
        task, metric, limit, by = _gate(subject, options)
        samples = _judged_on(model, subject, options)
        request = Request(
            metric=metric,
            unit=metric_named(task, metric).unit,
            limit=limit,
            by="point" if by == "point" else "bound",
            budgets=Budgets.model_validate({key: options[key] for key in Budgets.model_fields}),
            trial_samples=options["trial_samples"],
        )
        judge = Judge(subject.model, samples, task, metric, screen.progress)
        found = search(subject, judge, request, place, screen.progress)
    print_table(screen, only_columns(plans_table(found), _BRIEF))
    for note in found.notes:
        screen.say(f"  ! {note}")
    screen.say(found.advice, mark=DONE if found.chosen else DOUBT, style="bold")
    if found.lines:
        screen.say(found.lines.rstrip())
    write_page(tuning_page(found), place)
    screen.say(f"  report  {place / 'report.html'}")
    code = _exit_code(found)
    screen.result({"exit_code": code, "tuning": found.model_dump(mode="json")})
    return code


def _gate(subject: "Subject", options: dict[str, Any]) -> "tuple[Task, str, float, str]":
    """Task, metric, limit, and whether the point or the bound is judged: as flags or the recipe
    say. Raises UsageError if neither does."""
    from onnxq.compare.candidates import gate_of, task_of
    from onnxq.plain.judge import task_for

    metric, limit, gate, task = options["metric"], options["max_drop"], None, None
    if subject.recipe is not None:
        gate, task = gate_of(subject.recipe), task_of(subject.recipe)
    if task is None or (metric is not None and metric not in {m.name for m in task.metrics}):
        if metric is None:
            raise UsageError("`--metric` is needed for a plain file", where="usage")
        task, metric = task_for(metric)
    if metric is None:
        metric = gate.metric if gate is not None else task.metrics[0].name
    if limit is None and gate is not None and gate.metric == metric:
        limit = gate.max_increase
    if limit is None or not math.isfinite(limit):
        raise UsageError(
            f"nothing says how much worse `{metric}` may be", where="usage", do="give --max-drop X"
        )
    return task, metric, limit, gate.judge if gate is not None else "bound"


def _judged_on(model: Path, subject: "Subject", options: dict[str, Any]) -> "Samples":
    """The samples that plans are judged on: other ones than the ranges come from, if there are."""
    from onnxq.calibrate.readers import refuse_overlap
    from onnxq.plain.judge import samples_for

    samples = subject.samples
    if options["evaluation"] is not None:
        samples = samples_for(model, options["evaluation"])
        refuse_overlap(subject.calibration.choice, samples)
    elif subject.unused is not None and len(subject.unused) >= _ENOUGH:
        samples = subject.unused
    return samples.thinned(options["judged_samples"] or len(samples))


def _exit_code(found: "Tuning") -> int:
    if found.chosen is not None:
        return EXIT_PASSED
    open_ones = any(trial.verdict == "not settled" for trial in found.trials)
    passed = any(trial.verdict == "passed" for trial in found.trials)
    return EXIT_NOT_JUDGED if open_ones and not passed else EXIT_WORSE
