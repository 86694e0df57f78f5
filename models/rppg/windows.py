"""Recordings → windows of eight frames, gathered when they are asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int

from models.rppg.patches import Patches
from models.rppg.ubfc import Recording
from models.rppg.window_shape import CHANNELS, PATCH_PX, ROIS, WINDOW_FRAMES
from onnxq.errors import DataError
from onnxq.samples import Samples

__all__ = ["INPUT", "PatchWindows", "Windows", "choose_windows", "samples_of"]

INPUT = "input"
LABEL_FRAME = WINDOW_FRAMES // 2
BPM_RANGE = (40.0, 160.0)
WIDEST_STD_BPM = 15.0


@dataclass(frozen=True)
class Windows:
    """First frames and labels of the windows that can be used, and how many cannot."""

    starts: Int[np.ndarray, " kept"]
    bpm: Float[np.ndarray, " kept"]
    faceless: int  # touch a frame without a face
    implausible: int  # heart rate unknown, outside 40 to 160 BPM, or of std 15 BPM and more


def choose_windows(recording: Recording, stride: int, hop: int) -> Windows:
    """Windows of the frames ``k·hop + stride·(0 … 7)``, for every k that fits the recording.

    The label is the heart rate at the window's fifth frame, its middle. A window is left out, and
    counted, if it touches a frame without a face, or if the heart rate at one of its frames is
    unknown or outside 40 to 160 BPM, or varies with a standard deviation of 15 BPM or more.
    """
    if stride < 1 or hop < 1:
        raise DataError(
            f"stride {stride} and hop {hop} must be 1 or more", where=recording.name, do="change it"
        )
    last = len(recording.bpm) - (WINDOW_FRAMES - 1) * stride
    starts = np.arange(0, max(0, last), hop)
    frames = starts[:, np.newaxis] + stride * np.arange(WINDOW_FRAMES)
    faced = (recording.patches.row_of_frame[frames] >= 0).all(axis=1)
    bpm = recording.bpm[frames]
    inside = ((bpm >= BPM_RANGE[0]) & (bpm <= BPM_RANGE[1])).all(axis=1)
    plausible = inside & (bpm.std(axis=1) < WIDEST_STD_BPM)
    kept = faced & plausible
    return Windows(
        starts=starts[kept],
        bpm=bpm[kept, LABEL_FRAME],
        faceless=int((~faced).sum()),
        implausible=int((faced & ~plausible).sum()),
    )


@dataclass(frozen=True)
class PatchWindows:
    """A lazy column of windows: row i holds float32 RGB in [0, 1], shape (8, 3, 36, 36, 3)."""

    sources: tuple[Patches, ...]
    source: Int[np.ndarray, " n"]  # which of `sources` a window comes from
    starts: Int[np.ndarray, " n"]
    stride: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 8, 3, 36, 36, 3)."""
        return (len(self.starts), WINDOW_FRAMES, ROIS, PATCH_PX, PATCH_PX, CHANNELS)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int, /) -> Float32[np.ndarray, "8 3 36 36 3"]:
        patches = self.sources[int(self.source[index])]
        frames = int(self.starts[index]) + self.stride * np.arange(WINDOW_FRAMES)
        pixels = patches.pixels[patches.row_of_frame[frames]]
        return np.asarray(pixels.astype(np.float32) / np.float32(255))


def samples_of(name: str, recordings: Sequence[Recording], stride: int, hop: int) -> Samples:
    """Windows of several subjects; groups are the subjects' names, notes count what was left out.

    Raises DataError if no window is left.
    """
    chosen = [choose_windows(recording, stride, hop) for recording in recordings]
    counts = [len(windows.starts) for windows in chosen]
    if sum(counts) == 0:
        raise DataError(
            f"no usable window in {len(recordings)} subjects",
            where=name,
            do="look at the videos: no face is found, or the pulse wave has no plausible beats",
        )
    column = PatchWindows(
        sources=tuple(recording.patches for recording in recordings),
        source=np.repeat(np.arange(len(recordings)), counts),
        starts=np.concatenate([windows.starts for windows in chosen]),
        stride=stride,
    )
    return Samples(
        name=name,
        inputs={INPUT: column},
        labels=np.concatenate([windows.bpm for windows in chosen]),
        groups=np.repeat([recording.name for recording in recordings], counts),
        notes=_notes(recordings, chosen, stride, hop),
    )


def _notes(
    recordings: Sequence[Recording], chosen: Sequence[Windows], stride: int, hop: int
) -> tuple[str, ...]:
    frames = sum(len(recording.bpm) for recording in recordings)
    missing = sum(recording.patches.missing for recording in recordings)
    faceless = sum(windows.faceless for windows in chosen)
    implausible = sum(windows.implausible for windows in chosen)
    kept = sum(len(windows.starts) for windows in chosen)
    made = sum(recording.synthetic for recording in recordings)
    span_s = (WINDOW_FRAMES - 1) * stride / 30
    notes = [
        f"{kept} windows of {len(recordings)} subjects; a window takes every {stride}. frame "
        f"({span_s:.2f} s at 30 Hz), the next begins {hop} frames later",
        f"no face in {missing} of {frames} frames: {faceless} windows that touch them left out",
        f"{implausible} windows left out: heart rate unknown, outside 40 to 160 BPM, or of a "
        "standard deviation of 15 BPM or more",
    ]
    if made:
        notes.append(f"{made} of {len(recordings)} subjects are synthetic: no person was filmed")
    return tuple(notes)
