"""Plots of many models or layers as inline SVG: intervals, bars, a waterfall, a Pareto front."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.verify.report.formatting import number
from onnxq.verify.report.svg import (
    BOTTOM,
    DIGIT,
    TOP,
    Axis,
    grid,
    line,
    rect,
    short,
    span,
    svg,
    words,
)

__all__ = ["Bar", "Dot", "Span", "bars", "dots", "spans", "waterfall"]

_RIGHT = 448.0
_ROW = 22.0
_NAME = 190.0  # the widest that names may be


@dataclass(frozen=True)
class Span:
    """A point and the interval around it; None where there is none."""

    name: str
    point: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Bar:
    """A named value; ``kind`` is how the page draws it. A value that is not finite has no bar."""

    name: str
    value: float
    kind: str = "fp32"


@dataclass(frozen=True)
class Dot:
    """A named point of a plane; those ``on_front`` are joined, rising in x."""

    name: str
    x: float
    y: float
    on_front: bool


def spans(rows: Sequence[Span], title: str, limit: float | None = None) -> str:
    """Intervals one below the other, with a line at zero and a dashed one at ``limit``."""
    ends = [v for row in rows for v in (row.point, row.low, row.high) if v is not None]
    low, high = span(np.array([*ends, 0.0, *([] if limit is None else [limit])], float))
    x, y, left = _rows([row.name for row in rows], low, high)
    parts = [grid(x, y, (title, ""), upright=False)]
    parts.append(line((x.at(0.0), y.start, x.at(0.0), y.end), "zero"))
    if limit is not None:
        parts.append(line((x.at(limit), y.start, x.at(limit), y.end), "limit"))
    for index, row in enumerate(rows):
        place = TOP + _ROW * (index + 0.5)
        parts.append(words(short(row.name, 26), (left - 8, place + 4), "end"))
        if row.low is not None and row.high is not None:
            parts.append(line((x.at(row.low), place, x.at(row.high), place), "link"))
        if math.isfinite(row.point):
            parts.append(_mark(x.at(row.point), place, "int8"))
    said = "; ".join(
        f"{row.name} {number(row.point, 3)}"
        + ("" if row.low is None else f" from {number(row.low, 3)} to {number(row.high, 3)}")
        for row in rows
    )
    return svg(title, said, _height(len(rows)), parts)


def bars(rows: Sequence[Bar], title: str) -> str:
    """A bar from zero for every row, with its value behind it."""
    finite = [row.value for row in rows if math.isfinite(row.value)]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    room = 0.16 * (high - low or 1.0)  # for the values
    x, y, left = _rows([row.name for row in rows], low - (room if low < 0 else 0), high + room)
    parts = [grid(x, y, (title, ""), upright=False)]
    for index, row in enumerate(rows):
        place = TOP + _ROW * (index + 0.5)
        parts.append(words(short(row.name, 26), (left - 8, place + 4), "end"))
        end = 0.0
        if math.isfinite(row.value):
            end = row.value
            box = sorted((x.at(0.0), x.at(end)))
            parts.append(rect((box[0], place - 7, box[1], place + 7), row.kind))
        at = (x.at(end) + (5 if end >= 0 else -5), place + 4)
        parts.append(words(number(row.value, 3), at, "small" if end >= 0 else "small end"))
    parts.append(line((x.at(0.0), y.start, x.at(0.0), y.end), "axis"))
    said = "; ".join(f"{row.name} {number(row.value, 3)}" for row in rows)
    return svg(title, said, _height(len(rows)), parts)


def waterfall(steps: Sequence[Bar], title: str, total: str) -> str:
    """Every step begins where the one before ended; steps of one name that follow one another share
    a row. The last row, ``total``, runs from zero to the sum of all, as ``math.fsum`` gives it."""
    ends = [math.fsum(step.value for step in steps[:index]) for index in range(len(steps) + 1)]
    low, high = span(np.array([*ends, 0.0]))
    names = [name for name, _ in itertools.groupby(steps, key=lambda step: step.name)]
    x, y, left = _rows([*names, total], low, high)
    parts = [grid(x, y, (title, ""), upright=False)]
    numbers = itertools.chain.from_iterable(
        itertools.repeat(row, len(list(of)))
        for row, (_, of) in enumerate(itertools.groupby(steps, key=lambda step: step.name))
    )
    drawn = [
        (row, *pair, step.kind)
        for row, pair, step in zip(numbers, itertools.pairwise(ends), steps, strict=True)
    ]
    for row, first, last, kind in (*drawn, (len(names), 0.0, ends[-1], "total")):
        place = TOP + _ROW * (row + 0.5)
        start, end = sorted((x.at(first), x.at(last)))
        parts.append(rect((start, place - 7, max(end, start + 0.8), place + 7), kind))
    for row, name in enumerate((*names, total)):
        style = "end strong" if row == len(names) else "end"
        parts.append(words(short(name, 26), (left - 8, TOP + _ROW * (row + 0.5) + 4), style))
    parts.append(line((x.at(0.0), y.start, x.at(0.0), y.end), "axis"))
    said = "; ".join(f"{step.name} {number(step.value, 3)}" for step in steps)
    said += f"; together {number(ends[-1], 4)}"
    return svg(title, said, _height(len(names) + 1), parts)


def dots(points: Sequence[Dot], titles: tuple[str, str], limit: float | None = None) -> str:
    """Points of a plane; those of the front are joined and named, a dashed line is at y = limit."""
    height, left = 340.0, 64.0
    shown = [dot for dot in points if math.isfinite(dot.x + dot.y)]
    x = Axis(*span(np.array([dot.x for dot in shown], float)), left, _RIGHT - 40)
    heights = [*(dot.y for dot in shown), *([] if limit is None else [limit])]
    y = Axis(*span(np.array(heights, float)), height - BOTTOM, TOP)
    parts = [grid(x, y, titles)]
    if limit is not None:
        parts.append(line((x.start, y.at(limit), x.end, y.at(limit)), "limit"))
    front = sorted((dot for dot in shown if dot.on_front), key=lambda dot: dot.x)
    for one, other in itertools.pairwise(front):
        parts.append(line((x.at(one.x), y.at(one.y), x.at(other.x), y.at(other.y)), "link"))
    for dot in shown:
        kind = "int8" if dot.on_front else "fp32"
        parts.append(_mark(x.at(dot.x), y.at(dot.y), kind))
        if dot.on_front:
            parts.append(words(short(dot.name, 20), (x.at(dot.x) + 7, y.at(dot.y) - 6), "small"))
    said = f"{len(shown)} points. On the front: " + "; ".join(
        f"{dot.name} ({number(dot.x, 3)}, {number(dot.y, 3)})" for dot in front
    )
    return svg(f"{titles[1]} against {titles[0]}", said, height, parts)


def _rows(names: Sequence[str], low: float, high: float) -> tuple[Axis, Axis, float]:
    """Both axes of a plot with one row a name, and where the rows begin."""
    longest = max((len(short(name, 26)) for name in names), default=0)
    left = min(14 + DIGIT * longest, _NAME)
    x = Axis(low, high, left, _RIGHT)
    return x, Axis(0.0, 1.0, _height(len(names)) - BOTTOM, TOP), left


def _height(rows: int) -> float:
    return TOP + _ROW * rows + BOTTOM


def _mark(x: float, y: float, kind: str) -> str:
    return f'<circle class="{kind} mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
