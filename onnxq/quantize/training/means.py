"""What fine-tuning may use beside the calibration's samples."""

from dataclasses import dataclass
from pathlib import Path

from onnxq.samples import Samples

__all__ = ["Means"]


@dataclass(frozen=True)
class Means:
    """Samples of ``training`` (unless given: those of the calibration), the folder in which a loss
    is ``search``ed for, and one in which the states of an unfinished training are ``kept``."""

    training: Samples | None = None
    search: Path | None = None
    kept: Path | None = None
