"""Sampled diffusion steps: ``xs``, ``ts`` and conditions, as q-diffusion keeps them.

A dictionary of ``xs`` (the noisy inputs), ``ts`` (their timesteps), and for conditional models
``cs`` and ``ucs`` (conditions, and those of an empty prompt); each a list over sampling steps of
arrays ``(n, …)``, one array ``(steps, n, …)``, or one array ``(n, …)``. Source of the layout: Li
et al. 2023, Q-Diffusion, arXiv 2302.04304, and its ``get_train_samples``: with ``ucs``, all samples
are used twice, first with their condition, then without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Shaped

from onnxq.errors import DataError, nearest
from onnxq.formats.columns import Joined, flattened, whole
from onnxq.formats.content import Request
from onnxq.samples import Column

__all__ = ["PARTS", "DiffusionRows", "diffusion_rows"]

PARTS = ("xs", "ts", "cs")
_XS, _TS, _CS = PARTS
_UCS = "ucs"


@dataclass(frozen=True)
class DiffusionRows:
    """Columns by input name, the timestep of every row, and what a reader must know."""

    columns: Mapping[str, Column]
    timesteps: Shaped[np.ndarray, " n"]
    notes: tuple[str, ...]


def diffusion_rows(
    columns: Mapping[str, Column], inputs: Mapping[str, str], request: Request, where: str
) -> DiffusionRows:
    """The rows of all sampling steps. ``inputs`` maps ``xs``, ``ts``, ``cs`` to graph inputs; if it
    is empty, they go to the inputs in that order, if there are as many.

    Timesteps are converted to their input's type where every one is a whole number that the type
    holds exactly; a note says so. Raises DataError.
    """
    _refuse_other_names(columns, where)
    names, notes = _names(columns, inputs, request, where)
    stacked = _is_stacked(columns, request, names[_XS])
    xs, ts = _rows(columns[_XS], stacked), _timesteps(columns, where, stacked=stacked)
    if len(xs) != len(ts):
        what = f"`xs` has {len(xs)} rows, `ts` {len(ts)}"
        raise DataError(what, where=where, do="give every row its timestep")
    made: dict[str, Column] = {names[_XS]: xs}
    if _CS in names:
        made[names[_CS]] = _rows(columns[_CS], stacked)
        if _UCS in columns:
            conditions = [made[names[_CS]], _rows(columns[_UCS], stacked)]
            made[names[_CS]] = Joined.of(conditions, f"{where}, `cs` and `ucs`")
            made[names[_XS]] = Joined((xs, xs))
            ts = np.concatenate([ts, ts])
            notes += ("every sample is used twice: with its condition, then without (`ucs`)",)
    made[names[_TS]], ts_notes = _as_input(ts, names[_TS], request)
    return DiffusionRows(made, ts, notes + ts_notes)


def _refuse_other_names(columns: Mapping[str, Column], where: str) -> None:
    for name in columns:
        if name not in (*PARTS, _UCS):
            what = f"array `{name}` in a diffusion layout; {nearest(name, (*PARTS, _UCS))}"
            raise DataError(what, where=where, do="leave it out, or give no `layout`")
    for name in (_XS, _TS, *((_CS,) if _UCS in columns else ())):
        if name not in columns:
            what = f"has no `{name}`; there are: {', '.join(columns)}"
            raise DataError(what, where=where, do="a diffusion layout has xs, ts, and cs with ucs")


def _names(
    columns: Mapping[str, Column], inputs: Mapping[str, str], request: Request, where: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The graph input of each part, and notes."""
    there = [name for name in PARTS if name in columns]
    if not inputs:
        if len(there) != len(request.input_names):
            raise DataError(
                f"{', '.join(there)} for the inputs {', '.join(request.input_names)}",
                where=where,
                do="say which is which, as `inputs: {xs: …, ts: …, cs: …}`",
            )
        names = dict(zip(there, request.input_names, strict=True))
        pairs = ", ".join(f"{part} is `{name}`" for part, name in names.items())
        return names, (f"diffusion layout by position: {pairs}",)
    for part in inputs:
        if part not in there:
            what = f"`inputs` names `{part}`; {nearest(part, there)}"
            raise DataError(what, where=where, do="mend `inputs` among the options")
    if not {_XS, _TS} <= set(inputs):
        raise DataError("`inputs` must name xs and ts", where=where, do="mend `inputs`")
    if len(set(inputs.values())) != len(inputs):
        raise DataError("`inputs` gives one input two arrays", where=where, do="mend `inputs`")
    left_out = () if _CS in inputs or _CS not in there else (
        "`cs` and `ucs` are left out: `inputs` does not name them",
    )  # fmt: skip
    return dict(inputs), left_out


def _is_stacked(columns: Mapping[str, Column], request: Request, name: str) -> bool:
    """Whether the arrays are ``(steps, n, …)`` rather than ``(n, …)``."""
    xs, ts = columns[_XS], columns[_TS]
    rank = request.rank(name)
    if rank is not None:
        return len(xs.shape) == rank + 1
    return len(ts.shape) == 2 and ts.shape[1] > 1 and xs.shape[:2] == ts.shape


def _rows(column: Column, stacked: bool) -> Column:
    return flattened(column) if stacked else column


def _timesteps(
    columns: Mapping[str, Column], where: str, *, stacked: bool
) -> Shaped[np.ndarray, " n"]:
    """One timestep a row; a step whose rows share one is given it for all of them."""
    xs, ts = columns[_XS], whole(columns[_TS])
    if stacked:
        steps, count = xs.shape[:2]
        if ts.shape == (steps,):
            ts = np.repeat(ts, count)
    elif isinstance(xs, Joined) and ts.shape == (len(xs.parts),) and len(ts) != len(xs):
        ts = np.repeat(ts, [len(part) for part in xs.parts])
    if ts.dtype.kind not in "iuf":
        raise DataError(f"`ts` is {ts.dtype}", where=where, do="give numbers as timesteps")
    if prod(ts.shape[1:]) != 1 and not stacked:
        raise DataError(
            f"`ts` has shape {list(ts.shape)} for `xs` of shape {list(xs.shape)}",
            where=where,
            do="give one timestep a row: (n,), or (steps, n) where xs is (steps, n, …)",
        )
    return ts.reshape(-1)


def _as_input(
    ts: Shaped[np.ndarray, " n"], name: str, request: Request
) -> tuple[Shaped[np.ndarray, "n *one"], tuple[str, ...]]:
    """Timesteps in the shape and, where that is exact, the type of their input."""
    rank, dtype = request.rank(name), request.dtype(name)
    column = ts.reshape(-1, *(1,) * (rank - 1)) if rank else ts
    if dtype is None or dtype == ts.dtype:
        return column, ()
    with np.errstate(invalid="ignore", over="ignore"):
        made = column.astype(dtype)
        exact = np.array_equal(made.astype(ts.dtype), column) and np.array_equal(ts, np.round(ts))
    if not exact:
        return column, ()
    return made, (f"timesteps are converted from {ts.dtype} to {dtype}, exactly (`{name}`)",)
