"""The arrays of a file become the inputs of a graph, with labels, groups and timesteps beside."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Shaped
from pydantic import BeforeValidator

from onnxq.errors import DataError, nearest
from onnxq.formats.columns import Converted, whole
from onnxq.formats.content import ONLY, Content, Options, Request
from onnxq.formats.diffusion import PARTS, diffusion_rows
from onnxq.samples import GROUPS, LABELS, TIMESTEPS, Column, Samples

__all__ = ["ArrayOptions", "NestedOptions", "assigned"]

_BESIDE = (LABELS, GROUPS, TIMESTEPS)


def _pairs(value: object) -> object:
    """``["xs=sample"]``, as it is written on a command line, as ``{"xs": "sample"}``."""
    if isinstance(value, list) and all(isinstance(v, str) and "=" in v for v in value):
        return dict(v.split("=", 1) for v in value)
    return value


class ArrayOptions(Options):
    """Options of a file of arrays.

    ``inputs`` says which array is which input (or ``labels``, ``groups``, ``timesteps``) where the
    names differ. ``layout: diffusion`` reads ``xs``, ``ts``, ``cs`` and ``ucs`` of sampled
    diffusion steps. ``cast: true`` converts every array to its input's type as it is read.
    """

    layout: Literal["plain", "diffusion"] = "plain"
    inputs: Annotated[dict[str, str], BeforeValidator(_pairs)] = {}  # noqa: RUF012 - a model's
    cast: bool = False


class NestedOptions(ArrayOptions):
    """Options of a file that nests: ``key`` leads to the arrays, as ``train/images``."""

    key: str = ""


def assigned(content: Content, options: ArrayOptions, request: Request, where: str) -> Samples:
    """The samples of a file's arrays. Raises DataError for an array that no input takes."""
    columns, notes = dict(content.columns), content.notes
    beside: dict[str, Any] = {}
    if options.layout == "diffusion":
        rows = diffusion_rows(columns, options.inputs, request, where)
        columns, beside, notes = dict(rows.columns), {TIMESTEPS: rows.timesteps}, notes + rows.notes
    else:
        columns = _renamed(columns, options.inputs, where)
        columns = _only_named(columns, request.input_names, where)
        columns, by_position = _positional(columns, request.input_names)
        notes += by_position
        for name in _BESIDE:
            if name in columns and name not in request.input_names:
                beside[name] = _short(columns.pop(name), name, where)
    _refuse_unknown(columns, request.input_names, where)
    if options.cast:
        columns, cast_notes = _cast(columns, request, where)
        notes += cast_notes
    return Samples(name=Path(where).absolute().name, inputs=columns, notes=notes, **beside)


def _renamed(
    columns: Mapping[str, Column], names: Mapping[str, str], where: str
) -> dict[str, Column]:
    for name in names:
        if name not in columns:
            what = f"`inputs` names the array `{name}`; {nearest(name, columns)}"
            raise DataError(what, where=where, do="mend `inputs` among the options")
    made: dict[str, Column] = {}
    for name, column in columns.items():
        new = names.get(name, name)
        if new in made:
            raise DataError(f"two arrays are named `{new}`", where=where, do="mend `inputs`")
        made[new] = column
    return made


def _only_named(
    columns: dict[str, Column], input_names: tuple[str, ...], where: str
) -> dict[str, Column]:
    """A single array without a name is the one input's."""
    if ONLY not in columns:
        return columns
    if len(input_names) != 1:
        raise DataError(
            f"one array for a model of {len(input_names)} inputs",
            where=where,
            do="use an .npz with one array per input: " + ", ".join(input_names),
        )
    return {input_names[0] if name == ONLY else name: c for name, c in columns.items()}


def _positional(
    columns: dict[str, Column], input_names: tuple[str, ...]
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """``arr_0``, ``arr_1``, …, as numpy.savez calls arrays without a name, are the inputs in order,
    if there are as many."""
    places = {f"arr_{number}": name for number, name in enumerate(input_names)}
    if set(columns) - set(_BESIDE) != set(places) or set(places) & set(input_names):
        return columns, ()
    pairs = ", ".join(f"{place} is `{name}`" for place, name in places.items())
    named = {places.get(name, name): column for name, column in columns.items()}
    return named, (f"arrays without a name, by position: {pairs}",)


def _short(column: Column, name: str, where: str) -> Shaped[np.ndarray, " n"]:
    """Labels, groups or timesteps in memory, one number or word a sample."""
    if len(column.shape) != 1:
        raise DataError(
            f"`{name}` has shape {list(column.shape)}",
            where=where,
            do="give one value for each sample",
        )
    return whole(column)


def _refuse_unknown(names: Iterable[str], input_names: tuple[str, ...], where: str) -> None:
    names = tuple(names)
    for name in names:
        if name not in input_names:
            hint = f"array `{name}` is no input of the model; {nearest(name, input_names)}"
            do = (
                "name the arrays after the graph inputs, or say `inputs: {array: input}`; "
                "`labels`, `groups` and `timesteps` may stand beside them"
            )
            if set(names) >= set(PARTS[:2]):
                do = "if these are sampled diffusion steps, give the option `layout: diffusion`"
            raise DataError(hint, where=where, do=do)


def _cast(
    columns: Mapping[str, Column], request: Request, where: str
) -> tuple[dict[str, Column], tuple[str, ...]]:
    made, notes = dict(columns), []
    for name, column in columns.items():
        dtype = request.dtype(name)
        if dtype is None:
            raise DataError(
                f"`cast` needs to know the type of `{name}`",
                where=where,
                do="convert the data yourself, and leave out `cast`",
            )
        if dtype != column.dtype:
            made[name] = Converted(column, dtype, f"{where}, input `{name}`")
            notes.append(f"`{name}` is converted from {column.dtype} to {dtype} (`cast: true`)")
    return made, tuple(notes)
