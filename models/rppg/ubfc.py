"""One subject of UBFC-rPPG DATASET_2: ``subjectN/vid.avi`` and ``subjectN/ground_truth.txt``.

Bobbia et al. 2019, doi 10.1016/j.patrec.2017.10.017. The data set is not distributed here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from models.rppg.heart_rate import cached_bpm
from models.rppg.patches import Patches, cached_patches
from onnxq.errors import DataError

__all__ = [
    "GROUND_TRUTH",
    "SYNTHETIC",
    "VIDEO",
    "GroundTruth",
    "Recording",
    "read_ground_truth",
    "read_recording",
    "subject_folders",
]

VIDEO, GROUND_TRUTH = "vid.avi", "ground_truth.txt"
SYNTHETIC = "synthetic.json"  # beside a video in which no person was filmed
LINES = ("pulse wave", "heart rate", "timestamps")
FEWEST_SAMPLES = 60  # two seconds: the filter needs some beats
UNPAIRED_SHARE = 0.05  # frames that may be without a sample, and the reverse


@dataclass(frozen=True)
class GroundTruth:
    """The three lines of ``ground_truth.txt``: one value for every frame of the video."""

    ppg: Float[np.ndarray, " n"]
    bpm: Float[np.ndarray, " n"]  # as the instrument showed it; the labels come from `ppg`
    seconds: Float[np.ndarray, " n"]


@dataclass(frozen=True)
class Recording:
    """One subject: patches, and the heart rate in BPM at every frame."""

    name: str
    patches: Patches
    bpm: Float[np.ndarray, " frames"]
    synthetic: bool


def read_ground_truth(path: Path) -> GroundTruth:
    """Read and check ``ground_truth.txt``.

    Raises DataError unless there are three lines of equally many finite numbers, the last of which
    never runs backwards.
    """
    remedy = "copy the subject again from DATASET_2; DATASET_1 has another format"
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as fault:
        raise DataError(f"cannot be read: {fault}", where=str(path), do=remedy) from fault
    if len(lines) != len(LINES):
        raise DataError(
            f"{len(lines)} lines of numbers instead of 3 ({', '.join(LINES)})",
            where=str(path),
            do=remedy,
        )
    rows = []
    for name, words in zip(LINES, lines, strict=True):
        try:
            row = np.array(words, dtype=np.float64)
        except ValueError as fault:
            raise DataError(f"{name}: {fault}", where=str(path), do=remedy) from fault
        if not np.isfinite(row).all():
            first = int(np.flatnonzero(~np.isfinite(row))[0])
            raise DataError(f"{name}: value {first} is {row[first]}", where=str(path), do=remedy)
        rows.append(row)
    counts = {len(row) for row in rows}
    if len(counts) > 1 or min(counts) < FEWEST_SAMPLES:
        raise DataError(
            f"lines of {', '.join(str(len(row)) for row in rows)} values; all must have the same "
            f"number, at least {FEWEST_SAMPLES}",
            where=str(path),
            do=remedy,
        )
    steps = np.diff(rows[2])
    if (steps < 0).any() or np.median(steps) <= 0:
        raise DataError(
            f"timestamps run backwards or stand still at value {int(np.argmin(steps)) + 1}",
            where=str(path),
            do=remedy,
        )
    return GroundTruth(*rows)


def subject_folders(root: Path) -> list[Path]:
    """Folders ``subject*`` in ``root``, in the order of their numbers; none if there is no root."""
    found = [folder for folder in root.glob("subject*") if folder.is_dir()]
    return sorted(found, key=lambda folder: (_number(folder.name), folder.name))


def _number(name: str) -> int:
    digits = re.search(r"\d+", name)
    return int(digits.group()) if digits else 0


def read_recording(folder: Path, cache: Path) -> Recording:
    """One subject's patches and heart rate. Frames and samples are paired in order.

    Patches and rates are kept in ``cache``, so that the next reading takes no time.
    Raises DataError if the numbers of frames and of samples differ by more than 5 %.
    """
    truth = read_ground_truth(folder / GROUND_TRUTH)
    patches = cached_patches(folder / VIDEO, cache)
    frames, samples = len(patches.row_of_frame), len(truth.ppg)
    if abs(frames - samples) > UNPAIRED_SHARE * samples:
        raise DataError(
            f"{frames} frames, but {samples} samples in {GROUND_TRUTH}",
            where=str(folder / VIDEO),
            do="the video may be truncated: copy the subject again",
        )
    both = min(frames, samples)
    return Recording(
        name=folder.name,
        patches=Patches(patches.pixels, patches.row_of_frame[:both]),
        bpm=cached_bpm(truth.ppg, truth.seconds, cache)[:both],
        synthetic=(folder / SYNTHETIC).exists(),
    )
