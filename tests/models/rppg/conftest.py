"""One tiny synthetic subject, and readings that cost no face detection."""

from pathlib import Path

import numpy as np
import pytest

from models.rppg.patches import Patches
from models.rppg.synthesize import Job, write_subject
from models.rppg.ubfc import Recording, read_recording


@pytest.fixture(scope="session")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one synthetic subject of 8 seconds at about 75 BPM."""
    folder = tmp_path_factory.mktemp("ubfc") / "subject1"
    write_subject(Job(folder, seed=5, mean_bpm=75.0, seconds=8.0))
    return folder


@pytest.fixture(scope="session")
def reading(subject: Path, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """The subject as the reader sees it; the faces are looked for once."""
    return read_recording(subject, tmp_path_factory.mktemp("cache"))


def recording(
    frames: int = 120, name: str = "subject1", seed: int = 0, faceless: tuple[int, ...] = ()
) -> Recording:
    """Random patches at a slowly rising heart rate of 60 to 90 BPM."""
    rng = np.random.default_rng(seed)
    faced = np.ones(frames, bool)
    faced[list(faceless)] = False
    row_of_frame = np.where(faced, np.cumsum(faced) - 1, -1)
    pixels = rng.integers(1, 256, (int(faced.sum()), 3, 36, 36, 3), dtype=np.uint8)
    return Recording(name, Patches(pixels, row_of_frame), np.linspace(60, 90, frames), True)
