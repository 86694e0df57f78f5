"""Training windows: every frame once in memory, windows gathered from them a batch at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from models.rppg.ubfc import Recording
from models.rppg.window_shape import CHANNELS, PATCH_PX, ROIS, WINDOW_FRAMES
from models.rppg.windows import BPM_RANGE, choose_windows
from onnxq.errors import DataError

__all__ = ["Bank", "augmented", "bank_of", "gathered", "magnified", "shrunk"]

TEMPO = (0.5, 2.0)
BIN_BPM = 10.0


@dataclass(frozen=True)
class Bank:
    """Frames of several subjects, and the windows that can be drawn from them.

    ``rows[i]`` are the eight frames of window i, ``bpm[i]`` its label, ``weights[i]`` the
    probability to draw it, by which every 10 BPM of labels are equally frequent.
    """

    pixels: UInt8[Tensor, "frames 3 36 36 3"]
    rows: Int[np.ndarray, "n 8"]
    bpm: Float[np.ndarray, " n"]
    weights: Float[np.ndarray, " n"]


def bank_of(recordings: Sequence[Recording], stride: int) -> Bank:
    """Windows at ``stride`` and, relabelled, at every other stride of half to twice its tempo.

    Frames taken ``s`` apart and played ``stride`` apart show the heart at s / stride of its rate.
    One subject so gives many heart rates, and his looks no longer tell his.
    Raises DataError if no window is left.
    """
    rows, bpm, offset = [], [], 0
    steps = [s for s in range(1, 2 * stride + 1) if TEMPO[0] <= s / stride <= TEMPO[1]]
    for recording in recordings:
        for step in steps:
            windows = choose_windows(recording, step, hop=1)
            frames = windows.starts[:, np.newaxis] + step * np.arange(WINDOW_FRAMES)
            rows.append(recording.patches.row_of_frame[frames] + offset)
            bpm.append(windows.bpm * step / stride)
        offset += len(recording.patches.pixels)
    all_bpm = np.concatenate(bpm) if bpm else np.empty(0)
    kept = (all_bpm >= BPM_RANGE[0]) & (all_bpm <= BPM_RANGE[1])
    if not kept.any():
        raise DataError("no window to train on", where=f"{len(recordings)} subjects")
    bins = ((all_bpm[kept] - BPM_RANGE[0]) / BIN_BPM).astype(int)
    weights = 1 / np.bincount(bins)[bins]
    return Bank(
        pixels=torch.from_numpy(np.concatenate([r.patches.pixels for r in recordings])),
        rows=np.concatenate(rows)[kept],
        bpm=all_bpm[kept],
        weights=weights / weights.sum(),
    )


def shrunk(pixels: Shaped[Tensor, "n 3 36 36 3"], px: int) -> Tensor:
    """Patches of ``px`` x ``px`` by averaging, as float32 grey levels; untouched at 36.

    The network takes either. At 12 px a step costs a twentieth, and the mean colour is the same.
    """
    if px == PATCH_PX:
        return pixels
    if PATCH_PX % px:
        raise DataError(f"{PATCH_PX} px cannot be averaged to {px}", do="use 4, 6, 9, 12 or 18")
    parts = []
    for part in torch.split(pixels, 512):
        planes = part.float().permute(0, 1, 4, 2, 3).flatten(0, 1)
        small = avg_pool2d(planes, PATCH_PX // px)
        regions = small.reshape(-1, ROIS, CHANNELS, px, px)
        parts.append(regions.permute(0, 1, 3, 4, 2).contiguous())
    return torch.cat(parts)


def gathered(pixels: Tensor, rows: Int[np.ndarray, "b 8"]) -> Float32[Tensor, "b 8 3 h w 3"]:
    """Windows of the given frames, RGB in [0, 1]."""
    return pixels[torch.from_numpy(rows)].float().div_(255)


def augmented(windows: Float32[Tensor, "b 8 3 h w 3"]) -> Float32[Tensor, "b 8 3 h w 3"]:
    """Another light and another face: gain per window and colour, mirrored half of the time.

    The same for all frames of a window, so that the pulse stays what it is. Uses torch's generator.
    """
    count = len(windows)
    level = torch.empty(count, 1).uniform_(0.75, 1.2)
    colour = torch.empty(count, CHANNELS).uniform_(0.95, 1.05)
    lit = (windows * (level * colour)[:, None, None, None, None]).clamp_(0, 1)
    mirrored = lit[:, :, [0, 2, 1]].flip(4)
    flags = (torch.rand(count) < 0.5)[:, None, None, None, None, None]
    return torch.where(flags, mirrored, lit)


def magnified(
    windows: Float32[Tensor, "b 8 3 h w 3"], gain: float
) -> Float32[Tensor, "b 8 3 h w 3"]:
    """Windows whose regions depart ``gain`` times as far from their mean colour over time.

    The colour of a whole region is changed, not its texture: training begins with a pulse that
    cannot be overlooked. After Wu et al. 2012, Eulerian video magnification, doi
    10.1145/2185520.2185561.
    """
    if gain == 1:
        return windows
    colour = windows.mean(dim=(3, 4), keepdim=True)
    departure = colour - colour.mean(dim=1, keepdim=True)
    return (windows + (gain - 1) * departure).clamp_(0, 1)
