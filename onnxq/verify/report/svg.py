"""Pieces of plots as inline SVG: axes, grid, lines, words. Colours come from the page's style."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

from onnxq.verify.report.formatting import number

__all__ = [
    "BOTTOM",
    "DIGIT",
    "LEFT",
    "RIGHT",
    "TOP",
    "WIDTH",
    "Axis",
    "grid",
    "line",
    "rect",
    "short",
    "span",
    "svg",
    "ticks",
    "words",
]

WIDTH, TOP, BOTTOM, LEFT, RIGHT = 460.0, 10.0, 46.0, 54.0, 12.0
DIGIT = 7.0  # width of a character of a label
Numbers = Float[np.ndarray, " _"]


@dataclass(frozen=True)
class Axis:
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


def grid(x: Axis, y: Axis, titles: tuple[str, str], *, upright: bool = True) -> str:
    """Grid lines with their values, and the titles of both axes."""
    parts = []
    for value in ticks(x.low, x.high):
        parts.append(line((x.at(value), y.start, x.at(value), y.end), "grid"))
        parts.append(words(_tick(value), (x.at(value), y.start + 17), "middle"))
    for value in ticks(y.low, y.high) if upright else ():
        parts.append(line((x.start, y.at(value), x.end, y.at(value)), "grid"))
        parts.append(words(_tick(value), (x.start - 7, y.at(value) + 4), "end"))
    parts.append(line((x.start, y.start, x.end, y.start), "axis"))
    parts.append(words(titles[0], ((x.start + x.end) / 2, y.start + 38), "middle title"))
    if titles[1]:
        centre = (y.start + y.end) / 2
        turned = f'transform="rotate(-90 13 {centre:.1f})"'
        parts.append(words(titles[1], (13.0, centre), "middle title", turned))
    return "".join(parts)


def _tick(value: float) -> str:
    return number(value, trim=True)


def span(*values: Numbers) -> tuple[float, float]:
    """Lowest and highest finite value with a margin; never empty."""
    joined = np.concatenate(values)
    joined = joined[np.isfinite(joined)]
    low, high = (float(joined.min()), float(joined.max())) if joined.size else (0.0, 1.0)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def short(name: str, most: int = 22) -> str:
    """``name`` without its middle, if it is longer than ``most`` characters."""
    half = most // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def line(ends: tuple[float, float, float, float], kind: str) -> str:
    """A line from (x1, y1) to (x2, y2), drawn as the page draws the class ``kind``."""
    x1, y1, x2, y2 = (f"{value:.1f}" for value in ends)
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def rect(box: tuple[float, float, float, float], kind: str) -> str:
    """A rectangle: left, top, right, bottom."""
    left, top, right, bottom = box
    size = f'width="{right - left:.1f}" height="{bottom - top:.1f}"'
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" {size}/>'


def words(said: str, place: tuple[float, float], kind: str, more: str = "") -> str:
    """Text at (x, y), escaped; ``more`` are attributes as they are written."""
    at = f'x="{place[0]:.1f}" y="{place[1]:.1f}"'
    return f'<text class="{kind}" {at}{more and " "}{more}>{escape(said)}</text>'


def svg(title: str, described: str, height: float, parts: Iterable[str]) -> str:
    """The whole plot, with what a screen reader tells of it."""
    return (
        f'<svg class="plot" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img">'
        f"<title>{escape(title)}</title><desc>{escape(described)}</desc>{''.join(parts)}</svg>"
    )
