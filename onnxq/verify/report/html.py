"""The report as one HTML file that needs nothing else: no script, font or picture from outside."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup

from onnxq.artifacts import CellCoverage, LayerDistance, Verdict, VerificationReport
from onnxq.verify.report import places
from onnxq.verify.report.contents import WORST_LAYERS, worst
from onnxq.verify.report.formatting import byte_unit, integer, interval, number, percent
from onnxq.verify.report.observations import ClassAgreement, Pairs, limits_of_agreement
from onnxq.verify.report.page import Figure
from onnxq.verify.report.plots import (
    MOST_CELLS,
    VARIANTS,
    bland_altman,
    by_group,
    coverage,
    scatter,
)
from onnxq.verify.report.quality import label_unit
from onnxq.verify.report.sections import sections
from onnxq.verify.report.tables import Section

__all__ = ["device_banner", "device_section", "html"]

_SIGNS: dict[Verdict, str] = {
    "passed": "✓",
    "failed": "✕",
    "inconclusive": "?",
    "unverified": "!",
}
_MEANINGS: dict[Verdict, str] = {
    "passed": "Every gate is met.",
    "failed": "INT8 is worse than allowed.",
    "inconclusive": "The measurement does not settle it.",
    "unverified": "Nothing was shown about this file.",
}
_MODELS = (("fp32", "FP32"), ("int8", "INT8"))
_SIDES = (("calibration", "calibration"), ("evaluation", "evaluation"))
_FULL_BAR_DB = 40.0  # a bar is full at this SQNR, or at the highest there is


@dataclass(frozen=True)
class _Tile:
    """One key figure."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class _Bar:
    """SQNR of one tensor; ``share`` of the full width in percent."""

    tensor: str
    op_type: str
    value: str
    share: float
    worst: bool


def html(
    report: VerificationReport,
    pair: Pairs | None = None,
    classes: Sequence[ClassAgreement] = (),
) -> str:
    """The whole page. Everything that comes from outside is escaped."""
    bars = _bars(report.layers)
    return _template("report.html.j2").render(
        report=report,
        places=places,
        sign=_SIGNS[report.verdict],
        meaning=_MEANINGS[report.verdict],
        signs=_SIGNS,
        tiles=_tiles(report),
        sections=sections(report, pair, classes),
        figures=_figures(report, pair),
        bars=bars,
        full_bar=number(_full_bar(report.layers), 3),
        options=json.dumps(report.provenance.options, indent=2, ensure_ascii=False, default=str),
    )


def device_section(section: Section) -> str:
    """The section that is put in the place kept for it."""
    return _template("device.html.j2").render(section=section, signs=_SIGNS)


def device_banner(head: str, said: Sequence[str]) -> str:
    """A line, and what is not as it should be, beside the verdict."""
    return _template("banner.html.j2").render(head=head, said=said)


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.verify.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _figures(report: VerificationReport, pair: Pairs | None) -> dict[str, tuple[Figure, ...]]:
    """Plots by the section that they stand in."""
    figures: dict[str, tuple[Figure, ...]] = {}
    unit, headline = label_unit(report), report.comparison.metrics[:1]
    if pair is not None:
        figures["predictions"] = tuple(
            Figure(
                Markup(scatter(pair, variant, unit)),
                f"{variant.upper()} against the label"
                + "".join(
                    f"; {row.metric} {number(getattr(row, variant))} {row.unit}" for row in headline
                )
                + ". Dashed: perfect. Shaded: where the labels lie.",
            )
            for variant in VARIANTS
        )
        figures["agreement"] = (
            Figure(
                Markup(bland_altman(pair, limits_of_agreement(pair), unit)),
                "Bland–Altman plot. Solid: bias. Dashed: 95 % limits of agreement.",
            ),
        )
    if report.comparison.by_group and headline:
        row, worst_group = headline[0], report.comparison.worst_group
        title = f"{row.metric} ({row.unit})" if row.unit else row.metric
        svg = by_group(report.comparison.by_group, worst_group, title)
        figures["groups"] = (Figure(Markup(svg), "The most worsened first.", _MODELS),)
    if report.passport is not None:
        figures["passport"] = tuple(
            _coverage(seen) for seen in report.passport.coverage if len(seen.cells) <= MOST_CELLS
        )
    return figures


def _coverage(seen: CellCoverage) -> Figure:
    compared = any(cell.evaluation is not None for cell in seen.cells)
    caption = f"Share of the samples by {seen.word}."
    if seen.missing:
        caption += " Marked: in evaluation and not in calibration."
    return Figure(Markup(coverage(seen)), caption, _SIDES if compared else _SIDES[:1])


def _tiles(report: VerificationReport) -> tuple[_Tile, ...]:
    """The figures that a reader looks for first."""
    tiles = []
    for row in report.comparison.metrics[:1]:
        seen = f" {interval(row.interval.low, row.interval.high, 3)}" if row.interval else ""
        worse = f"worse by {number(row.increase, 3)}{seen}" if row.increase is not None else ""
        title = f"{row.metric} ({row.unit})" if row.unit else row.metric
        tiles.append(_Tile(title, f"{number(row.fp32, 3)} → {number(row.int8, 3)}", worse))
    for line in report.sizes:
        before, after = line.fp32_bytes, line.int8_bytes
        if line.what != "file" or not before or not after:
            continue
        unit, factor = byte_unit(max(before, after))
        sizes = f"{number(before / factor, 3)} → {number(after / factor, 3)} {unit}"
        ratio = f"{number(max(before / after, after / before), 3)}×"
        ratio += " smaller" if after <= before else " larger"
        tiles.append(_Tile("file size", ratio, sizes))
    macs, operators = report.coverage.macs, report.coverage.operators
    if macs.total:
        counted = f"{integer(operators.integer)} of {integer(operators.total)} operators"
        tiles.append(_Tile("integer MACs", f"{percent(macs.fraction)} %", counted))
    for at in worst(report.layers)[:1]:
        tiles.append(_Tile("worst tensor", f"{number(at.sqnr_db, 3)} dB", at.tensor))
    return tuple(tiles)


def _full_bar(layers: Sequence[LayerDistance]) -> float:
    finite = [layer.sqnr_db for layer in layers if math.isfinite(layer.sqnr_db)]
    return max([_FULL_BAR_DB, *finite])


def _bars(layers: Sequence[LayerDistance]) -> tuple[_Bar, ...]:
    full, low = _full_bar(layers), worst(layers) if len(layers) > WORST_LAYERS else ()
    return tuple(
        _Bar(
            layer.tensor,
            layer.op_type,
            number(layer.sqnr_db, 3),
            100 * min(max(layer.sqnr_db, 0.0) / full, 1.0) if not math.isnan(layer.sqnr_db) else 0,
            layer in low,
        )
        for layer in layers
    )
