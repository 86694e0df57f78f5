"""Which runs are trained on, which choose the epoch, and which judge the result."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from onnxq.errors import DataError, QuantizationError
from onnxq.quantize.draft import Evidence
from onnxq.samples import Samples

__all__ = ["Lessons", "Runs", "lessons_of", "spooled"]

_EVERY = 4  # of the runs that no step has measured on, one is held back
_MOST_CHOOSING, _MOST_JUDGING = 64, 256  # runs
_LEAST = 16  # runs of the calibration: two to choose by, two to judge by


@dataclass(frozen=True)
class Runs:
    """Some runs of a graph: ``places`` are their numbers, ``batch`` the samples of each."""

    samples: Samples
    batch: int
    places: Int64[np.ndarray, " runs"]

    def __len__(self) -> int:
        return len(self.places)

    def inputs(self, index: int) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Inputs of run ``index``, with a batch axis in front."""
        return self.samples.batch(int(self.places[index]) * self.batch, self.batch)

    def labels(self, index: int) -> Shaped[Tensor, " batch"] | None:
        """Labels of run ``index``."""
        if self.samples.labels is None:
            return None
        return torch.from_numpy(np.array(self.samples.labels[self._span(index)]))

    @property
    def groups(self) -> Shaped[np.ndarray, " runs"] | None:
        """What each run belongs to; None where that is not known, or runs are of several."""
        groups = self.samples.groups
        if groups is None or self.batch > 1:
            return None
        return np.asarray(groups[self.places])

    def without(self, digests: frozenset[str]) -> "Runs":
        """Those that hold no sample of these digests."""
        rows = self.samples.row_digests
        kept = [not digests & set(rows[self._span(index)]) for index in range(len(self))]
        return replace(self, places=self.places[np.array(kept, bool)])

    @property
    def digests(self) -> frozenset[str]:
        """Of the samples."""
        rows = self.samples.row_digests
        return frozenset(d for index in range(len(self)) for d in rows[self._span(index)])

    def _span(self, index: int) -> slice:
        start = int(self.places[index]) * self.batch
        return slice(start, start + self.batch)


@dataclass(frozen=True)
class Lessons:
    """The runs to train on, to choose the epoch by, and to judge by."""

    training: Runs
    choosing: Runs
    judging: Runs


def lessons_of(evidence: Evidence, training: Samples | None = None) -> Lessons:
    """Runs of the calibration, or of ``training``, to learn from, and others to judge by.

    Held back are the runs that refine steps hold back, and every fourth of those that none of them
    has looked at; one after the other they choose the epoch and judge the result. Samples of
    ``training`` that are among those held back are left out.
    Raises QuantizationError if there are fewer than 16 runs, or nothing is left to train on.
    """
    samples, batch = evidence.samples, evidence.batch
    count = len(samples) // batch
    if count < _LEAST:
        raise QuantizationError(
            f"{len(samples)} samples make {count} runs, and finetune needs {_LEAST} at least",
            where="quantize: steps",
            do="calibrate on more samples, or leave finetune out",
        )
    unseen = np.setdiff1d(np.arange(count), evidence.places)
    held = np.sort(
        np.concatenate([evidence.places[evidence.is_held_back], unseen[_EVERY - 1 :: _EVERY]])
    )
    choosing, judging = (
        Runs(samples, batch, _thinned(places, most))
        for places, most in ((held[::2], _MOST_CHOOSING), (held[1::2], _MOST_JUDGING))
    )
    rest = np.setdiff1d(np.arange(count), held)
    learnt = Runs(samples, batch, rest)
    if training is not None:
        every = Runs(training, batch, np.arange(len(training) // batch))
        learnt = every.without(choosing.digests | judging.digests)
    if not len(learnt):
        raise QuantizationError(
            "no sample is left to train on beside those held back",
            where=learnt.samples.name,
            do="give other samples under `data: training`",
        )
    return Lessons(learnt, choosing, judging)


def refuse_missing_labels(runs: Runs) -> None:
    """Raise DataError if samples have no labels that are numbers."""
    labels = runs.samples.labels
    if labels is None or not np.issubdtype(labels.dtype, np.number):
        raise DataError(
            "has no labels" if labels is None else "has labels that are no numbers",
            where=f"{runs.samples.name}, for the task_loss of finetune",
            do="give samples with labels under `data: training` (and `calibration`, whose "
            "held-back samples judge), or learn from FP32 alone: leave task_loss out",
        )
    bad = np.flatnonzero(~np.isfinite(labels.astype(np.float64)))
    if len(bad):
        raise DataError(
            f"the label is {labels[bad[0]]} ({len(bad)} of {len(labels)} are not finite)",
            where=f"{runs.samples.name}, sample {runs.samples.number(int(bad[0]))}",
            do="leave out the samples without a known label",
        )


def _thinned(places: Int64[np.ndarray, " runs"], most: int) -> Int64[np.ndarray, " some"]:
    chosen = np.linspace(0, len(places) - 1, min(len(places), most)).round().astype(np.int64)
    return np.asarray(places[chosen])


@dataclass(frozen=True)
class _OnDisk:
    """A column in a file, which every process opens for itself."""

    path: Path

    @cached_property
    def _array(self) -> np.ndarray:
        return np.asarray(np.load(self.path, mmap_mode="r"))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype:
        return self._array.dtype

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int, /) -> np.ndarray:
        return np.array(self._array[index])

    def __getstate__(self) -> Mapping[str, object]:
        return {"path": self.path}


def spooled(runs: Runs, folder: Path) -> Runs:
    """The same runs with their samples in ``folder``, for other processes to read."""
    taken = (runs.places[:, np.newaxis] * runs.batch + np.arange(runs.batch)).reshape(-1)
    samples, columns = runs.samples.take(taken), {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, (name, column) in enumerate(samples.inputs.items()):
        path = folder / f"{number}.npy"
        array = np.lib.format.open_memmap(path, "w+", column.dtype, tuple(column.shape))
        for index in range(len(column)):
            array[index] = column[index]
        array.flush()
        columns[name] = _OnDisk(path)
    return Runs(replace(samples, inputs=columns), runs.batch, np.arange(len(runs)))
