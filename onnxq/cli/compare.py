"""``onnxq compare``: FP32 and its quantized forms side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table as RichTable
from rich.text import Text

from onnxq.cli.console import Screen, command_options
from onnxq.cli.flags import loaded_recipe, path_type
from onnxq.errors import EXIT_NOT_JUDGED, EXIT_PASSED, EXIT_WORSE, UsageError

if TYPE_CHECKING:
    from onnxq.artifacts import SideBySide
    from onnxq.compare.candidates import Given
    from onnxq.compare.measure import Question
    from onnxq.samples import Samples
    from onnxq.verify.report.tables import Table

__all__ = ["compare", "print_table"]

_RECIPES = {".yaml", ".yml"}


@click.command()
@click.argument("models", nargs=-1, required=True, type=path_type)
@click.option("--data", metavar="SOURCE", help="Held-out samples with labels. Unless given: the "
              "recipes'.")  # fmt: skip
@click.option("--metric", help="What counts: top1, mae, …, a name of the recipe's task, or "
              "module:function (a Task).")  # fmt: skip
@click.option(
    "--max-drop", type=click.FloatRange(min=0), help="How much worse than FP32 is allowed."
)
@click.option(
    "--rounds", type=click.IntRange(min=0), default=12, show_default=True,
    help="How often each of 8 samples is timed; 0: not at all.",
)  # fmt: skip
@click.option("--report", type=path_type, help="Folder for the comparison (JSON, Markdown, HTML).")
@command_options
def compare(  # noqa: PLR0913 - one parameter a flag
    *,
    models: tuple[Path, ...],
    data: str | None,
    metric: str | None,
    max_drop: float | None,
    rounds: int,
    report: Path | None,
    screen: Screen,
) -> int:
    """Lay FP32 and MODELS side by side: metric with interval, bytes, latency, SQNR.

    MODELS are recipes (what is missing of their results is made first), their build folders, or
    .onnx files with FP32 among them. All must come from one FP32 file and are judged on the same
    samples. Exit 0: a candidate keeps --max-drop (or the first recipe's gate), or none was asked
    for; 1: every one is surely worse; 2: not settled, or not comparable.
    """
    from onnxq.compare.candidates import fp32_of, open_candidates
    from onnxq.compare.measure import compare as measure
    from onnxq.compare.page import RECORD, brief_table, comparison_page, pairs_table
    from onnxq.store import atomic_folder, save_record
    from onnxq.verify.report.page import write_page

    given = [_given(model, screen) for model in models]
    fp32 = fp32_of(given)
    candidates = open_candidates(given, fp32)
    samples, question = _question(given, fp32, (data, metric), max_drop, rounds, screen)
    found = measure(fp32, candidates, samples, question, screen.progress)
    print_table(screen, brief_table(found))
    if found.pairs:
        print_table(screen, pairs_table(found))
    for note in found.notes:
        screen.say(f"  ! {note}")
    screen.say(found.advice, style="bold")
    if report is not None:
        with atomic_folder(report, RECORD) as folder:
            write_page(comparison_page(found), folder)
            save_record(found, folder / RECORD)
        screen.say(f"  report  {report / 'report.html'}")
    code = _exit_code(found)
    screen.result({"exit_code": code, "comparison": found.model_dump(mode="json")})
    return code


def print_table(screen: Screen, table: "Table") -> None:
    """A table of a report on the terminal; rows that stand out are bold."""
    shown = RichTable(title=table.title or None, box=None, padding=(0, 2, 0, 0), header_style="dim")
    for column in table.columns:
        right = column.kind == "number"
        shown.add_column(column.title, justify="right" if right else "left", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(Text, row.cells), style="bold" if row.marked else None)
    screen.text.print(shown, soft_wrap=False)


def _given(model: Path, screen: Screen) -> "Given":
    """What a path stands for; a recipe's results are made first, as far as they are missing."""
    from onnxq.compare.candidates import Given

    if model.suffix not in _RECIPES:
        return Given(model)
    from onnxq.pipeline import run

    recipe, folder = loaded_recipe(model, None, None)
    screen.say(f"{recipe.name}:")
    run(recipe, folder, screen, last="quantize", progress=screen.progress)
    return Given(folder, recipe)


def _question(
    given: "Sequence[Given]",
    fp32: Path,
    asked: tuple[str | None, str | None],
    max_drop: float | None,
    rounds: int,
    screen: Screen,
) -> "tuple[Samples, Question]":
    """The samples and the task: those of the recipes, unless others are asked for."""
    from onnxq.compare.candidates import evaluation_samples, gate_of, task_of
    from onnxq.compare.measure import Question
    from onnxq.plain.judge import samples_for, task_for

    (data, metric), recipes = asked, [each.recipe for each in given if each.recipe is not None]
    missing = [flag for flag, value in (("--data", data), ("--metric", metric)) if value is None]
    if missing and not recipes:
        raise UsageError(
            f"`{missing[0]}` is needed where no recipe is given", where="usage",
            do="give held-out samples with --data and what counts with --metric",
        )  # fmt: skip
    samples = samples_for(fp32, data) if data else evaluation_samples(recipes, screen.progress)
    task, gate = (task_of(recipes[0]), gate_of(recipes[0])) if recipes else (None, None)
    if task is not None and (metric is None or metric in {m.name for m in task.metrics}):
        headline = metric or (gate.metric if gate else task.metrics[0].name)
    else:
        task, headline = task_for(metric or "")
    limit = max_drop
    if limit is None and gate is not None and gate.metric == headline:
        limit = gate.max_increase
    return samples, Question(task, headline, limit, rounds)


def _exit_code(found: "SideBySide") -> int:
    if found.limit is None or found.within:
        return EXIT_PASSED
    settled = len(found.beyond) == len(found.models) - 1
    return EXIT_WORSE if settled else EXIT_NOT_JUDGED
