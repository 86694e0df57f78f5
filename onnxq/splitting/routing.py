"""Run the steps of a manifest. Needs numpy and a way to run a part; it is copied into bundles."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["run_steps"]

Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Array]


def run_steps(
    steps: Sequence[Mapping[str, Any]],
    inputs: Values,
    run_part: Callable[[str, Values], Values],
) -> dict[str, Array]:
    """Every value of the manifest for one sample, by name; the graph's outputs are among them.

    ``steps`` are those of the manifest's JSON; ``run_part`` runs the part of that name once.
    """
    values = dict(inputs)
    for step in steps:
        if step["kind"] == "host":
            given = [values[name] for name in step["inputs"]]
            values[step["output"]] = _moved(step["op"], given, step["arguments"])
        elif step["kind"] == "loop":
            values.update(_loop(step, values, run_part))
        else:
            values.update(_run(step, values, run_part))
    return values


def _run(
    step: Mapping[str, Any], values: Values, run_part: Callable[[str, Values], Values]
) -> dict[str, Array]:
    given = {own: values[name] for own, name in step["inputs"].items()}
    if not step["each_row"]:
        rows = [run_part(step["part"], given)]
    else:
        rows = [
            run_part(step["part"], {own: array[row : row + 1] for own, array in given.items()})
            for row in range(step["times"])
        ]
    return {
        name: rows[0][own] if len(rows) == 1 else np.concatenate([row[own] for row in rows])
        for own, name in step["outputs"].items()
    }


def _loop(
    step: Mapping[str, Any], values: Values, run_part: Callable[[str, Values], Values]
) -> dict[str, Array]:
    same = {own: values[name] for own, name in step["inputs"].items()}
    state = {own: values[carried["first"]] for own, carried in step["carried"].items()}
    made: Values = {}
    kept: dict[str, list[Array]] = {own: [] for own in step["stacked"]}
    for number in range(step["times"]):
        rows = {own: np.asarray(values[name][number]) for own, name in step["rows"].items()}
        count = dict.fromkeys(step["counters"], np.array([number], np.int64))
        made = run_part(step["part"], {**same, **state, **rows, **count})
        state = {own: made[carried["then"]] for own, carried in step["carried"].items()}
        for own, arrays in kept.items():
            arrays.append(made[own])
    last = {name: made[own] for own, name in step["outputs"].items()}
    return last | {name: np.stack(kept[own]) for own, name in step["stacked"].items()}


def _moved(op: str, given: Sequence[Array], arguments: Mapping[str, Sequence[int]]) -> Array:
    """What a host step makes; each operator as ONNX defines it."""
    if op == "Reshape":
        return given[0].reshape(arguments["shape"])
    if op == "Transpose":
        return given[0].transpose(arguments["perm"])
    if op == "Concat":
        return np.concatenate(list(given), axis=arguments["axis"][0])
    if op == "Gather":
        return np.take(given[0], arguments["indices"], axis=arguments["axis"][0])
    if op != "Slice":
        raise ValueError(f"the manifest holds an operator that is not known: {op}")
    cuts = [slice(None)] * given[0].ndim
    starts, ends, axes, strides = (arguments[key] for key in ("starts", "ends", "axes", "steps"))
    for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
        cuts[axis] = slice(start, end if end >= -given[0].shape[axis] else None, stride)
    return given[0][tuple(cuts)]
