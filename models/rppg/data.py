"""What a recipe names as data: synthetic subjects, UBFC-rPPG itself, and its processed file."""

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from models.rppg.splits import SPLITS
from models.rppg.ubfc import Recording, read_recording, subject_folders
from models.rppg.windows import samples_of
from onnxq.errors import DataError, nearest
from onnxq.progress import Progress, silent
from onnxq.samples import Samples

__all__ = [
    "calibration_windows",
    "read_recordings",
    "split_subjects",
    "test_windows",
    "ubfc_windows",
]

log = logging.getLogger(__name__)

CACHE = ".patches"  # folder beside the subjects
SHARES = {"train": 0.6, "calibration": 0.15, "test": 0.25}


def calibration_windows(root: Path, stride: int, hop: int, progress: Progress = silent) -> Samples:
    """Windows of the 8 synthetic calibration subjects in ``root/calibration``.

    Raises DataError if they have not been generated.
    """
    return _synthetic_windows(Path(root), "calibration", stride, hop, progress)


def test_windows(
    root: Path,
    stride: int,
    hop: int,
    progress: Progress = silent,  # noqa: PT028  # no test, but windows to test on
) -> Samples:
    """Windows of the 12 synthetic test subjects in ``root/test``, seen by no other step.

    Raises DataError if they have not been generated.
    """
    return _synthetic_windows(Path(root), "test", stride, hop, progress)


def _synthetic_windows(
    root: Path, split: str, stride: int, hop: int, progress: Progress
) -> Samples:
    folders = subject_folders(root / split)
    if len(folders) < SPLITS[split].count:
        raise DataError(
            f"{len(folders)} of {SPLITS[split].count} synthetic subjects are there",
            where=str(root / split),
            do=f"run: python -m models.rppg.synthesize --out {root} --splits {split}",
        )
    recordings = read_recordings(folders, root / split / CACHE, progress)
    return samples_of(f"synthetic rPPG, {split}", recordings, stride, hop)


def ubfc_windows(
    root: Path,
    subjects: Sequence[str] | str,
    stride: int,
    hop: int,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Samples:
    """Windows of UBFC-rPPG DATASET_2 in ``root``, whose folders are ``subject*``.

    ``subjects`` lists folder names, or names a part of ``split_subjects``: ``"train"``,
    ``"calibration"`` or ``"test"``. Patches are kept in ``cache`` (default: ``root/.patches``).
    Raises DataError if there is no data, or a subject that is not there is asked for.
    """
    root = Path(root)
    folders = {folder.name: folder for folder in subject_folders(root)}
    if not folders:
        raise DataError(
            "holds no folder subject*/",
            where=str(root),
            do="ask the authors for UBFC-rPPG (sites.google.com/view/ybenezeth/ubfcrppg) and give "
            "the path of DATASET_2; or run without it on the synthetic subjects: "
            "python -m models.rppg.synthesize --out build/data/rppg",
        )
    if isinstance(subjects, str):
        parts = split_subjects(list(folders))
        if subjects not in parts:
            raise DataError(f"no part `{subjects}`; {nearest(subjects, parts)}", where=str(root))
        subjects = parts[subjects]
    for name in subjects:
        if name not in folders:
            raise DataError(f"no subject `{name}`; {nearest(name, folders)}", where=str(root))
    chosen = [folders[name] for name in subjects]
    recordings = read_recordings(chosen, cache or root / CACHE, progress)
    return samples_of("UBFC-rPPG", recordings, stride, hop)


def split_subjects(names: Sequence[str], seed: int = 0) -> dict[str, tuple[str, ...]]:
    """Split subjects at random into 60 % ``train``, 15 % ``calibration`` and 25 % ``test``.

    Every subject is in one part only, so that no part has seen a face of another.
    """
    order = np.random.default_rng(seed).permutation(np.array(sorted(names))).tolist()
    first = round(SHARES["train"] * len(order))
    second = first + round(SHARES["calibration"] * len(order))
    parts = {"train": order[:first], "calibration": order[first:second], "test": order[second:]}
    return {part: tuple(sorted(members)) for part, members in parts.items()}


def read_recordings(
    folders: Sequence[Path], cache: Path, progress: Progress = silent
) -> list[Recording]:
    """Read subjects side by side: OpenCV leaves Python free while it decodes and looks for faces.

    Raises DataError, naming the file, for the first subject that cannot be read.
    """
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        read = pool.map(lambda folder: read_recording(folder, cache), folders)
        recordings = list(progress(read, "finding faces, subjects", len(folders)))
    faceless = sum(recording.patches.missing for recording in recordings)
    log.info("%d subjects, %d frames without a face", len(recordings), faceless)
    return recordings
