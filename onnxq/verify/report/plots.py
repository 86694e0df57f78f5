"""Plots as inline SVG, drawn by hand.

Not plotly: its script alone makes each report 4.5 MB, and the plots vanish
where scripts are switched off or the page is printed. These are a few dozen kB, take their colours
from the page (light, dark, print), and tell a screen reader what they show.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from onnxq.artifacts import CellCount, CellCoverage, GroupRow
from onnxq.verify.report.formatting import number
from onnxq.verify.report.observations import Limits, Pairs
from onnxq.verify.report.svg import (
    BOTTOM,
    DIGIT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    grid,
    line,
    rect,
    short,
    span,
    svg,
    words,
)

__all__ = ["MOST_CELLS", "VARIANTS", "bland_altman", "by_group", "coverage", "scatter"]

Variant = Literal["fp32", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")
MOST_POINTS = 2_000  # drawn; every figure is of all points
MOST_GROUPS = 40
MOST_CELLS = 100  # with more, a plot is no help


def scatter(pair: Pairs, variant: Variant, unit: str) -> str:
    """Predictions of one model against the label, on equal axes, the same for both models."""
    height = WIDTH - LEFT - RIGHT + TOP + BOTTOM
    low, high = span(pair.label, pair.fp32, pair.int8)
    x = Axis(low, high, LEFT, WIDTH - RIGHT)
    y = Axis(low, high, height - BOTTOM, TOP)
    name, predicted = variant.upper(), pair.fp32 if variant == "fp32" else pair.int8
    labels = (float(pair.label.min()), float(pair.label.max()))
    box = (x.at(labels[0]), y.at(labels[1]), x.at(labels[1]), y.at(labels[0]))
    parts = [
        rect(box, "band"),
        grid(x, y, (_named("label", unit), _named(f"{name} prediction", unit))),
        line((x.at(low), y.at(low), x.at(high), y.at(high)), "ideal"),
        _dots(zip(pair.label, predicted, strict=True), (x, y), variant),
    ]
    described = (
        f"{len(predicted)} dots. The diagonal is a perfect prediction; the shaded square spans the "
        f"labels, {number(labels[0])} to {number(labels[1])} {unit}. Predictions lie between "
        f"{number(float(predicted.min()))} and {number(float(predicted.max()))}."
    )
    return svg(f"{name} predictions against labels", described, height, parts)


def bland_altman(pair: Pairs, limits: Limits, unit: str) -> str:
    """Difference INT8 − FP32 against the mean of both, with bias and limits of agreement."""
    height, margin = 340.0, 82.0
    mean, difference = (pair.int8 + pair.fp32) / 2, pair.int8 - pair.fp32
    x = Axis(*span(mean), LEFT, WIDTH - margin)
    marks = np.array([limits.low, limits.bias, limits.high, 0.0])
    y = Axis(*span(difference, marks), height - BOTTOM, TOP)
    band = (x.start, y.at(limits.high), x.end, y.at(limits.low))
    lines = (
        ("mean + 1.96 sd", limits.high, "limit"),
        ("bias", limits.bias, "bias"),
        ("mean − 1.96 sd", limits.low, "limit"),
    )
    places = _apart([y.at(value) for _, value, _ in lines], 31.0, (y.end + 14, y.start - 14))
    parts = [
        rect(band, "band"),
        grid(x, y, (_named("mean of FP32 and INT8", unit), _named("INT8 − FP32", unit))),
        line((x.start, y.at(0.0), x.end, y.at(0.0)), "zero"),
        _dots(zip(mean, difference, strict=True), (x, y), "int8"),
    ]
    for (said, value, kind), place in zip(lines, places, strict=True):
        parts.append(line((x.start, y.at(value), x.end, y.at(value)), kind))
        parts.append(words(said.removeprefix("mean "), (x.end + 8, place - 2), "start small"))
        parts.append(words(_signed(value), (x.end + 8, place + 12), "start strong"))
    described = (
        f"Bias {number(limits.bias)} {unit}, 95 % limits of agreement {number(limits.low)} to "
        f"{number(limits.high)} {unit}; {len(mean)} samples."
    )
    return svg("Bland–Altman plot of INT8 against FP32", described, height, parts)


def by_group(groups: Sequence[GroupRow], worst: str | None, title: str) -> str:
    """FP32 and INT8 figures of every group, those most worsened first, at most ``MOST_GROUPS``."""
    finite = [row for row in groups if math.isfinite(row.fp32 + row.int8)]
    shown = sorted(finite, key=lambda row: -row.increase)[:MOST_GROUPS]
    step = 22.0
    height = TOP + step * len(shown) + BOTTOM
    left = min(
        max(LEFT, 14 + DIGIT * max((len(short(row.group)) for row in shown), default=0)), 170.0
    )
    x = Axis(*span(np.array([[row.fp32, row.int8] for row in shown]).ravel()), left, 448.0)
    y = Axis(0.0, 1.0, height - BOTTOM, TOP)
    parts = [grid(x, y, (title, ""), upright=False)]
    for index, row in enumerate(shown):
        place = TOP + step * (index + 0.5)
        kind = "end strong worst" if row.group == worst else "end"
        parts += [
            words(short(row.group), (left - 8, place + 4), kind),
            line((x.at(row.fp32), place, x.at(row.int8), place), "link"),
            f'<circle class="fp32 mark" cx="{x.at(row.fp32):.1f}" cy="{place:.1f}" r="4.5"/>',
            f'<circle class="int8 mark" cx="{x.at(row.int8):.1f}" cy="{place:.1f}" r="4.5"/>',
        ]
    left_out = len(groups) - len(shown)
    more = f" {left_out} more are not drawn." if left_out else ""
    described = f"{title} of FP32 and INT8 for {len(shown)} groups, worst first.{more}"
    return svg(f"{title} by group", described, height, parts)


def coverage(seen: CellCoverage) -> str:
    """Share of the samples in each of at most ``MOST_CELLS`` cells, on both sides."""
    shown = seen.cells
    totals = [sum(_held(cell)[side] for cell in seen.cells) for side in (0, 1)]
    shares = [
        [100 * n / (total or 1) for n, total in zip(_held(cell), totals, strict=True)]
        for cell in shown
    ]
    step = max(11.0, min(24.0, 420.0 / len(shown)))
    height = TOP + step * len(shown) + BOTTOM
    left = min(max(LEFT, 14 + DIGIT * max(len(short(cell.cell)) for cell in shown)), 170.0)
    x = Axis(0.0, 1.05 * max(max(pair) for pair in shares) or 1.0, left, 448.0)
    y = Axis(0.0, 1.0, height - BOTTOM, TOP)
    parts = [grid(x, y, ("% of the samples", ""), upright=False)]
    missing, every = set(seen.missing), math.ceil(12.0 / step)
    for index, (cell, pair) in enumerate(zip(shown, shares, strict=True)):
        place, thick = TOP + step * (index + 0.5), 0.36 * step
        if index % every == 0 or cell.cell in missing:
            kind = "end strong worst" if cell.cell in missing else "end"
            parts.append(words(short(cell.cell), (left - 8, place + 4), kind))
        for share, side, top in zip(
            pair, ("calibration", "evaluation"), (place - thick, place), strict=True
        ):
            if share:
                parts.append(rect((x.start, top, x.at(share), top + thick), side))
    parts.append(line((x.start, y.start, x.start, y.end), "axis"))
    none = f" In evaluation only: {', '.join(seen.missing)}." if seen.missing else ""
    described = f"Bars for {len(shown)} cells ({seen.word}).{none}"
    return svg(f"Samples by {seen.word}, calibration and evaluation", described, height, parts)


def _held(cell: CellCount) -> tuple[int, int]:
    return cell.calibration, cell.evaluation or 0


# --- pieces -------------------------------------------------------------------------------------


def _apart(places: Sequence[float], least: float, within: tuple[float, float]) -> list[float]:
    """``places`` (rising) moved so that neighbours are ``least`` apart, centred on the middle."""
    first, middle, last = places
    middle = min(max(middle, within[0] + least), within[1] - least)
    return [min(first, middle - least), middle, max(last, middle + least)]


def _dots(points: Iterable[tuple[float, float]], axes: tuple[Axis, Axis], kind: str) -> str:
    places = [(axes[0].at(a), axes[1].at(b)) for a, b in points]
    stride = -(-len(places) // MOST_POINTS)
    radius = "2" if len(places) >= 500 else "3"
    drawn = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>' for a, b in places[::stride]
    )
    return f'<g class="dots {kind}">{drawn}</g>'


def _signed(value: float) -> str:
    return f"+{number(value, 3)}" if value > 0 else number(value, 3)


def _named(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title
