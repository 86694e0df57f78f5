"""Samples on their way into a graph, one run at a time; and the record of which they are."""

import numpy as np
from jaxtyping import Shaped
from onnxruntime.quantization import CalibrationDataReader

from onnxq.artifacts import SampleChoice
from onnxq.calibrate.plans import Draw
from onnxq.errors import LeakageError
from onnxq.samples import Samples

__all__ = [
    "SampleReader",
    "describe",
    "refuse_overlap",
]

Array = Shaped[np.ndarray, "..."]


class SampleReader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Samples as ``onnxruntime.quantization`` reads them, one run a call, None at the end; and as
    ``Runs``, by number. ``batch`` samples make a run; those that fill no batch are left out."""

    def __init__(self, samples: Samples, batch: int = 1) -> None:
        self._samples, self._batch = samples, batch
        self.rewind()

    def rewind(self) -> None:
        """Start over."""
        self._rest = iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._samples) // self._batch

    def run(self, index: int) -> dict[str, Array]:
        """Inputs of run ``index``, with a batch axis in front."""
        if self._batch == 1:
            return self._samples.row(index)
        return self._samples.batch(index * self._batch, self._batch)

    def name(self, index: int) -> str:
        """What a person calls run ``index``: the places of its samples in their source."""
        first, last = index * self._batch, (index + 1) * self._batch - 1
        if first == last:
            return f"{self._samples.name}, sample {self._samples.number(first)}"
        numbers = [str(self._samples.number(place)) for place in range(first, last + 1)]
        return f"{self._samples.name}, one of samples {', '.join(numbers)}"

    def get_next(self) -> dict[str, Array] | None:
        """Inputs of the next run."""
        index = next(self._rest, None)
        return None if index is None else self.run(index)


def describe(samples: Samples, chosen: Samples, draw: Draw) -> SampleChoice:
    """The record of a draw: ``chosen`` are the samples that it took of ``samples``."""
    labels = chosen.labels
    numbers = None
    if labels is not None and np.issubdtype(labels.dtype, np.number):
        numbers = labels.astype(np.float64)
    return SampleChoice(
        source=samples.name,
        plan=draw.plan,
        seed=draw.seed,
        asked=len(draw.indices),
        indices=tuple(int(index) for index in draw.indices),
        digests=chosen.row_digests,
        groups=() if chosen.groups is None else tuple(map(str, np.unique(chosen.groups))),
        bins=draw.bins,
        edges=draw.edges,
        label_low=None if numbers is None else float(numbers.min()),
        label_high=None if numbers is None else float(numbers.max()),
        label_mean=None if numbers is None else float(numbers.mean()),
        made_up=samples.made_up,
        notes=(*samples.notes, *draw.notes),
    )


def refuse_overlap(chosen: SampleChoice, evaluation: Samples) -> None:
    """Raise LeakageError if calibration and evaluation share a group or a sample's content, unless
    that is waived."""
    if chosen.overlap_waived:
        return
    groups = () if evaluation.groups is None else map(str, np.unique(evaluation.groups))
    shared = sorted(set(chosen.groups) & set(groups))
    if shared:
        raise LeakageError(
            f"calibration and evaluation share {len(shared)} group(s): {', '.join(shared[:5])}",
            where=f"{chosen.source} / {evaluation.name}",
            do="split by group, so that the result is judged on people or files never seen",
        )
    places = {digest: index for index, digest in enumerate(evaluation.row_digests)}
    for index, digest in zip(chosen.indices, chosen.digests, strict=True):
        if digest in places:
            raise LeakageError(
                f"calibration sample {index} is evaluation sample {places[digest]}, byte for byte",
                where=f"{chosen.source} / {evaluation.name}",
                do="take the samples for calibration out of the evaluation set",
            )
