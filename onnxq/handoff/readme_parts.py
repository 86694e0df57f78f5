"""What README.md says of a model in parts: the steps of a sample, in words and in indices."""

from collections.abc import Iterable, Sequence
from math import prod

from onnxq.artifacts import LoopStep, Manifest, RunStep, Step
from onnxq.handoff.part import Part

__all__ = ["steps_in_words"]


def steps_in_words(manifest: Manifest, parts: Sequence[Part]) -> str:
    """The section on the parts: what the host moves, how often each part runs, in what order."""
    lines = [
        "## Parts\n\nThe graph runs in parts, each a model in a folder of its own with its own "
        "contract, known answers and commands. For one sample, as `pipeline.json` says and "
        "`routing.py` does:\n"
    ]
    shapes = {value.name: tuple(value.shape) for value in manifest.inputs}
    for number, step in enumerate(manifest.steps, 1):
        lines.append(f"{number}. {_words(step, shapes)}")
    for part in parts:
        ends = [
            f"{value.direction} `{value.name}` {list(value.shape)}"
            + (
                f" ({value.quantization.type}, scale {value.quantization.scale!r}, zero point "
                f"{value.quantization.zero_point})"
                if value.quantization is not None
                else ""
            )
            for value in (*part.contract.inputs, *part.contract.outputs)
        ]
        lines.append(f"\n**`{part.model.stem}/`**: {'; '.join(ends)}.")
    lines.append(
        "\nWhat one part gives and the next takes has the same scale and zero point in both: the "
        "integers may be passed on as they are."
    )
    return "\n".join(lines)


def _words(step: Step, shapes: dict[str, tuple[int | str, ...]]) -> str:
    if isinstance(step, RunStep):
        ends = f"{_listed(step.inputs.values())} → {_listed(step.outputs.values())}"
        if not step.each_row:
            return f"Run `{step.part}` once: {ends}."
        return (
            f"Run `{step.part}` {step.times} times, on row 0, 1, … {step.times - 1} of the first "
            f"axis in this order, and put the rows of its outputs together: {ends}."
        )
    if isinstance(step, LoopStep):
        return _words_of_loop(step)
    told = ", ".join(f"{key} {list(numbers)}" for key, numbers in step.arguments.items())
    words = f"{step.op} {_listed(step.inputs)} → `{step.output}` ({told})."
    if step.op == "Transpose" and all(isinstance(d, int) for d in shapes.get(step.inputs[0], "?")):
        given = shapes[step.inputs[0]]
        shapes[step.output] = tuple(given[axis] for axis in step.arguments["perm"])
    if step.op == "Reshape":
        shape = step.arguments["shape"]
        words += _rows(shapes.get(step.inputs[0], ()), shape)
        shapes[step.output] = shape
    return words


def _words_of_loop(step: LoopStep) -> str:
    words = [f"Run `{step.part}` {step.times} times, one run after the other."]
    if step.inputs:
        words.append(f"Every run takes {_listed(step.inputs.values())}.")
    words += [f"Run i takes row i of `{name}` as `{own}`." for own, name in step.rows.items()]
    words += [f"Run i takes i, from 0 on, as `{own}`." for own in step.counters]
    words += [
        f"The first run takes `{carried.first}` as `{own}`, every further one the `{carried.then}` "
        "of the run before."
        for own, carried in step.carried.items()
    ]
    words += [f"`{name}` is the last run's `{own}`." for own, name in step.outputs.items()]
    words += [
        f"`{name}` is the `{own}` of all runs along a new first axis."
        for own, name in step.stacked.items()
    ]
    return " ".join(words)


def _rows(given: tuple[int | str, ...], shape: tuple[int, ...]) -> str:
    """How a row of the first axis counts through the axes that it was made of."""
    sizes = [size for size in given if isinstance(size, int)]
    for count in range(2, len(sizes) + 1):
        if len(sizes) == len(given) and prod(sizes[:count]) == shape[0] > 1:
            axes = [(f"i{axis}", size) for axis, size in enumerate(sizes[:count]) if size > 1]
            if len(axes) > 1:
                index = axes[0][0]
                for name, size in axes[1:]:
                    index = (
                        f"({index}) · {size} + {name}"
                        if "+" in index
                        else (f"{index} · {size} + {name}")
                    )
                return f" Row {index} is at {', '.join(name for name, _ in axes)}."
    return ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
