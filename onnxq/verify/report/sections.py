"""The report in the order in which a reader wants it. What has nothing to say is left out."""

from collections.abc import Iterable, Sequence

from onnxq.artifacts import VerificationReport
from onnxq.verify.report.contents import (
    audit,
    coverage,
    float_nodes,
    fusion,
    layers,
    ranges,
    saturation,
    sizes,
)
from onnxq.verify.report.observations import ClassAgreement, Pairs
from onnxq.verify.report.origin import calibration, files, findings, parity
from onnxq.verify.report.passport import passport
from onnxq.verify.report.quality import agreement, classes, gates, groups, metrics, predictions
from onnxq.verify.report.tables import Section

__all__ = ["sections"]


def sections(
    report: VerificationReport, pair: Pairs | None = None, by_class: Sequence[ClassAgreement] = ()
) -> tuple[Section, ...]:
    """All sections that have something to say."""
    made: Iterable[Section] = (
        gates(report),
        metrics(report),
        predictions(report, pair),
        agreement(report, pair),
        classes(by_class),
        groups(report),
        layers(report),
        ranges(report),
        coverage(report),
        fusion(report),
        saturation(report),
        float_nodes(report),
        audit(report),
        sizes(report),
        calibration(report),
        passport(report),
        parity(report),
        findings(report),
        files(report),
    )
    return tuple(section for section in made if any(table.rows for table in section.tables))
