"""The report as files: JSON for programs, Markdown and HTML for people, JUnit for CI."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from onnxq.artifacts import VerificationReport
from onnxq.samples import Samples
from onnxq.verify.report.html import html
from onnxq.verify.report.junit import junit
from onnxq.verify.report.markdown import markdown
from onnxq.verify.report.observations import agreement, pairs

__all__ = ["write_reports"]


def write_reports(
    report: VerificationReport,
    predictions: Mapping[str, Float[np.ndarray, "n ..."]],
    samples: Samples,
    folder: Path,
) -> None:
    """Write ``report.json``, ``report.md``, ``junit.xml`` and ``report.html`` into ``folder``.

    ``predictions`` holds those of ``fp32`` and ``int8`` (others are not looked at), row for row
    those of ``samples``. They are plotted against the labels where each is one number and the
    labels are floats, and compared class by class where they are scores. The caller puts the
    folder in place; nothing here is atomic.
    """
    seen, classes = pairs(predictions, samples), agreement(predictions, samples)
    written = {
        "report.json": report.model_dump_json(indent=2) + "\n",
        "report.md": markdown(report, seen, classes),
        "junit.xml": junit(report),
        "report.html": html(report, seen, classes),
    }
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
