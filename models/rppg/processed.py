"""The file ``ubfc_processed.pt``: all windows of UBFC-rPPG in one torch dictionary, 28 GiB."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from models.rppg.window_shape import CHANNELS, PATCH_PX, ROIS, WINDOW_FRAMES
from models.rppg.windows import INPUT
from onnxq.errors import DataError
from onnxq.samples import Samples

__all__ = ["TensorColumn", "processed_windows"]

SAMPLE = (WINDOW_FRAMES, ROIS, PATCH_PX, PATCH_PX, CHANNELS)


@dataclass(frozen=True)
class TensorColumn:
    """A lazy column over a tensor that lies in a file: only the rows that are read are loaded."""

    tensor: Float32[Tensor, "n *sample"]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, 8, 3, 36, 36, 3)."""
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """float32."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int, /) -> Float32[np.ndarray, " *sample"]:
        return self.tensor[index].clone().numpy()


def processed_windows(path: Path) -> Samples:
    """The windows and labels of ``ubfc_processed.pt``, read a row at a time from the disk.

    Keys ``samples`` float32 (N, 8, 3, 36, 36, 3) RGB in [0, 1] and ``labels`` (N,) BPM. Groups are
    None, as the file does not say which subject a window is of. Raises DataError if it cannot be
    read, holds anything but tensors and plain values, or has other shapes.
    """
    if not path.exists():
        raise DataError("no such file", where=str(path), do="check the path given as data source")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as fault:  # torch and pickle raise many kinds for a damaged file
        raise DataError(
            f"cannot be read: {type(fault).__name__}: {fault}",
            where=str(path),
            do="make the file again with torch.save and its zip format",
        ) from fault
    samples, labels = _checked(content, path)
    return Samples(
        name=path.name,
        inputs={INPUT: TensorColumn(samples)},
        labels=labels.numpy().astype(np.float64),
        notes=(
            "the file does not name the subjects: windows of one subject cannot be kept together, "
            "and neighbouring windows share seven of their eight frames",
        ),
    )


def _checked(content: object, path: Path) -> tuple[Tensor, Tensor]:
    if not isinstance(content, dict):
        raise DataError(
            f"holds a {type(content).__name__} instead of a dictionary",
            where=str(path),
            do="give the file with the keys `samples` and `labels`",
        )
    samples, labels = content.get("samples"), content.get("labels")
    if not isinstance(samples, Tensor) or not isinstance(labels, Tensor):
        raise DataError(
            f"has the keys {', '.join(map(str, content))}",
            where=str(path),
            do="give the file with the tensors `samples` and `labels`",
        )
    if samples.dtype != torch.float32 or tuple(samples.shape[1:]) != SAMPLE:
        raise DataError(
            f"samples are {samples.dtype} of shape {tuple(samples.shape)} instead of float32 of "
            f"shape (n, {', '.join(map(str, SAMPLE))})",
            where=str(path),
            do="make the file again with windows of 8 frames, 3 regions, 36 x 36 pixels, RGB",
        )
    if labels.shape != samples.shape[:1] or not bool(torch.isfinite(labels).all()):
        raise DataError(
            f"labels of shape {tuple(labels.shape)} for {len(samples)} samples, or not finite",
            where=str(path),
            do="make the file again with one heart rate a window",
        )
    return samples, labels
