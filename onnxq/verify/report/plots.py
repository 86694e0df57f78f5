"""Plots as inline SVG, drawn by hand.

Not plotly: its script alone makes each report 4.5 MB, and the plots vanish
where scripts are switched off or the page is printed. These are a few dozen kB, take their colours
from the page (light, dark, print), and tell a screen reader what they show.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from jaxtyping import Float

from onnxq.artifacts import CellCount, CellCoverage, GroupRow
from onnxq.verify.report.formatting import number
from onnxq.verify.report.observations import Limits, Pairs

__all__ = ["MOST_CELLS", "VARIANTS", "bland_altman", "by_group", "coverage", "scatter", "ticks"]

Variant = Literal["fp32", "int8"]
VARIANTS: tuple[Variant, ...] = ("fp32", "int8")
MOST_POINTS = 2_000  # drawn; every figure is of all points
MOST_GROUPS = 40
MOST_CELLS = 100  # with more, a plot is no help
_WIDTH, _TOP, _BOTTOM, _LEFT, _RIGHT = 460.0, 10.0, 46.0, 54.0, 12.0
_DIGIT = 7.0  # width of a character of a label
Numbers = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class _Axis:
    """Values ``low`` … ``high`` laid onto pixels ``start`` … ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """The pixel of ``value``."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, about: int = 5) -> tuple[float, ...]:
    """Round values within [low, high], in steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.75)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def scatter(pair: Pairs, variant: Variant, unit: str) -> str:
    """Predictions of one model against the label, on equal axes, the same for both models."""
    height = _WIDTH - _LEFT - _RIGHT + _TOP + _BOTTOM
    low, high = _span(pair.label, pair.fp32, pair.int8)
    x = _Axis(low, high, _LEFT, _WIDTH - _RIGHT)
    y = _Axis(low, high, height - _BOTTOM, _TOP)
    name, predicted = variant.upper(), pair.fp32 if variant == "fp32" else pair.int8
    labels = (float(pair.label.min()), float(pair.label.max()))
    box = (x.at(labels[0]), y.at(labels[1]), x.at(labels[1]), y.at(labels[0]))
    parts = [
        _rect(box, "band"),
        _grid(x, y, (_named("label", unit), _named(f"{name} prediction", unit))),
        _line((x.at(low), y.at(low), x.at(high), y.at(high)), "ideal"),
        _dots(zip(pair.label, predicted, strict=True), (x, y), variant),
    ]
    described = (
        f"{len(predicted)} dots. The diagonal is a perfect prediction; the shaded square spans the "
        f"labels, {number(labels[0])} to {number(labels[1])} {unit}. Predictions lie between "
        f"{number(float(predicted.min()))} and {number(float(predicted.max()))}."
    )
    return _svg(f"{name} predictions against labels", described, height, parts)


def bland_altman(pair: Pairs, limits: Limits, unit: str) -> str:
    """Difference INT8 − FP32 against the mean of both, with bias and limits of agreement."""
    height, margin = 340.0, 82.0
    mean, difference = (pair.int8 + pair.fp32) / 2, pair.int8 - pair.fp32
    x = _Axis(*_span(mean), _LEFT, _WIDTH - margin)
    marks = np.array([limits.low, limits.bias, limits.high, 0.0])
    y = _Axis(*_span(difference, marks), height - _BOTTOM, _TOP)
    band = (x.start, y.at(limits.high), x.end, y.at(limits.low))
    lines = (
        ("mean + 1.96 sd", limits.high, "limit"),
        ("bias", limits.bias, "bias"),
        ("mean − 1.96 sd", limits.low, "limit"),
    )
    places = _apart([y.at(value) for _, value, _ in lines], 31.0, (y.end + 14, y.start - 14))
    parts = [
        _rect(band, "band"),
        _grid(x, y, (_named("mean of FP32 and INT8", unit), _named("INT8 − FP32", unit))),
        _line((x.start, y.at(0.0), x.end, y.at(0.0)), "zero"),
        _dots(zip(mean, difference, strict=True), (x, y), "int8"),
    ]
    for (said, value, kind), place in zip(lines, places, strict=True):
        parts.append(_line((x.start, y.at(value), x.end, y.at(value)), kind))
        parts.append(_words(said.removeprefix("mean "), (x.end + 8, place - 2), "start small"))
        parts.append(_words(_signed(value), (x.end + 8, place + 12), "start strong"))
    described = (
        f"Bias {number(limits.bias)} {unit}, 95 % limits of agreement {number(limits.low)} to "
        f"{number(limits.high)} {unit}; {len(mean)} samples."
    )
    return _svg("Bland–Altman plot of INT8 against FP32", described, height, parts)


def by_group(groups: Sequence[GroupRow], worst: str | None, title: str) -> str:
    """FP32 and INT8 figures of every group, those most worsened first, at most ``MOST_GROUPS``."""
    finite = [row for row in groups if math.isfinite(row.fp32 + row.int8)]
    shown = sorted(finite, key=lambda row: -row.increase)[:MOST_GROUPS]
    step = 22.0
    height = _TOP + step * len(shown) + _BOTTOM
    left = min(
        max(_LEFT, 14 + _DIGIT * max((len(_short(row.group)) for row in shown), default=0)), 170.0
    )
    x = _Axis(*_span(np.array([[row.fp32, row.int8] for row in shown]).ravel()), left, 448.0)
    y = _Axis(0.0, 1.0, height - _BOTTOM, _TOP)
    parts = [_grid(x, y, (title, ""), upright=False)]
    for index, row in enumerate(shown):
        place = _TOP + step * (index + 0.5)
        kind = "end strong worst" if row.group == worst else "end"
        parts += [
            _words(_short(row.group), (left - 8, place + 4), kind),
            _line((x.at(row.fp32), place, x.at(row.int8), place), "link"),
            f'<circle class="fp32 mark" cx="{x.at(row.fp32):.1f}" cy="{place:.1f}" r="4.5"/>',
            f'<circle class="int8 mark" cx="{x.at(row.int8):.1f}" cy="{place:.1f}" r="4.5"/>',
        ]
    left_out = len(groups) - len(shown)
    more = f" {left_out} more are not drawn." if left_out else ""
    described = f"{title} of FP32 and INT8 for {len(shown)} groups, worst first.{more}"
    return _svg(f"{title} by group", described, height, parts)


def coverage(seen: CellCoverage) -> str:
    """Share of the samples in each of at most ``MOST_CELLS`` cells, on both sides."""
    shown = seen.cells
    totals = [sum(_held(cell)[side] for cell in seen.cells) for side in (0, 1)]
    shares = [
        [100 * n / (total or 1) for n, total in zip(_held(cell), totals, strict=True)]
        for cell in shown
    ]
    step = max(11.0, min(24.0, 420.0 / len(shown)))
    height = _TOP + step * len(shown) + _BOTTOM
    left = min(max(_LEFT, 14 + _DIGIT * max(len(_short(cell.cell)) for cell in shown)), 170.0)
    x = _Axis(0.0, 1.05 * max(max(pair) for pair in shares) or 1.0, left, 448.0)
    y = _Axis(0.0, 1.0, height - _BOTTOM, _TOP)
    parts = [_grid(x, y, ("% of the samples", ""), upright=False)]
    missing, every = set(seen.missing), math.ceil(12.0 / step)
    for index, (cell, pair) in enumerate(zip(shown, shares, strict=True)):
        place, thick = _TOP + step * (index + 0.5), 0.36 * step
        if index % every == 0 or cell.cell in missing:
            kind = "end strong worst" if cell.cell in missing else "end"
            parts.append(_words(_short(cell.cell), (left - 8, place + 4), kind))
        for share, side, top in zip(
            pair, ("calibration", "evaluation"), (place - thick, place), strict=True
        ):
            if share:
                parts.append(_rect((x.start, top, x.at(share), top + thick), side))
    parts.append(_line((x.start, y.start, x.start, y.end), "axis"))
    none = f" In evaluation only: {', '.join(seen.missing)}." if seen.missing else ""
    described = f"Bars for {len(shown)} cells ({seen.word}).{none}"
    return _svg(f"Samples by {seen.word}, calibration and evaluation", described, height, parts)


def _held(cell: CellCount) -> tuple[int, int]:
    return cell.calibration, cell.evaluation or 0


# --- pieces -------------------------------------------------------------------------------------


def _span(*values: Numbers) -> tuple[float, float]:
    """Lowest and highest finite value with a margin; never empty."""
    joined = np.concatenate(values)
    joined = joined[np.isfinite(joined)]
    low, high = (float(joined.min()), float(joined.max())) if joined.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _apart(places: Sequence[float], least: float, within: tuple[float, float]) -> list[float]:
    """``places`` (rising) moved so that neighbours are ``least`` apart, centred on the middle."""
    first, middle, last = places
    middle = min(max(middle, within[0] + least), within[1] - least)
    return [min(first, middle - least), middle, max(last, middle + least)]


def _dots(points: Iterable[tuple[float, float]], axes: tuple[_Axis, _Axis], kind: str) -> str:
    places = [(axes[0].at(a), axes[1].at(b)) for a, b in points]
    stride = -(-len(places) // MOST_POINTS)
    radius = "2" if len(places) >= 500 else "3"
    drawn = "".join(
        f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>' for a, b in places[::stride]
    )
    return f'<g class="dots {kind}">{drawn}</g>'


def _grid(x: _Axis, y: _Axis, titles: tuple[str, str], *, upright: bool = True) -> str:
    """Grid lines with their values, and the titles of both axes."""
    parts = []
    for value in ticks(x.low, x.high):
        parts.append(_line((x.at(value), y.start, x.at(value), y.end), "grid"))
        parts.append(_words(_tick(value), (x.at(value), y.start + 17), "middle"))
    for value in ticks(y.low, y.high) if upright else ():
        parts.append(_line((x.start, y.at(value), x.end, y.at(value)), "grid"))
        parts.append(_words(_tick(value), (x.start - 7, y.at(value) + 4), "end"))
    parts.append(_line((x.start, y.start, x.end, y.start), "axis"))
    parts.append(_words(titles[0], ((x.start + x.end) / 2, y.start + 38), "middle title"))
    if titles[1]:
        centre = (y.start + y.end) / 2
        turned = f'transform="rotate(-90 13 {centre:.1f})"'
        parts.append(_words(titles[1], (13.0, centre), "middle title", turned))
    return "".join(parts)


def _tick(value: float) -> str:
    return number(value, trim=True)


def _signed(value: float) -> str:
    return f"+{number(value, 3)}" if value > 0 else number(value, 3)


def _named(title: str, unit: str) -> str:
    return f"{title} ({unit})" if unit else title


def _short(name: str, most: int = 22) -> str:
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def _line(ends: tuple[float, float, float, float], kind: str) -> str:
    x1, y1, x2, y2 = (f"{value:.1f}" for value in ends)
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _rect(box: tuple[float, float, float, float], kind: str) -> str:
    left, top, right, bottom = box
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size}/>'


def _words(said: str, place: tuple[float, float], kind: str, more: str = "") -> str:
    at = f'x="{place[0]:.1f}" y="{place[1]:.1f}"'
    return f'<text class="{kind}" {at}{more and " "}{more}>{escape(said)}</text>'


def _svg(title: str, described: str, height: float, parts: Iterable[str]) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc>{''.join(parts)}</svg>"
    )
