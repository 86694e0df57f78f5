"""The lowest and highest value of every channel, on samples."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from jaxtyping import Float

from onnxq.graph import cut_to, save_model
from onnxq.progress import Progress, silent
from onnxq.runtime import Session, in_parallel, with_outputs
from onnxq.samples import Samples

__all__ = ["SampleExtremes"]

_MOST_RUNS = 64
Channels = Float[np.ndarray, " _"]  # as many as the tensor has


class SampleExtremes:
    """Extremes by channel on at most 64 runs, spread over ``samples``, ``batch`` of them each.

    Memory: the tensors that are looked at, of four runs or so; they are never kept.
    """

    def __init__(self, samples: Samples, batch: int = 1, progress: Progress = silent) -> None:
        count = len(samples) // batch
        spread = np.linspace(0, max(count - 1, 0), min(count, _MOST_RUNS)).round()
        self._places = spread.astype(np.int64)
        self._samples, self._batch, self._progress = samples, batch, progress
        self.samples = len(self._places) * batch

    def __call__(
        self, graph: ir.Model, axes: Mapping[str, int]
    ) -> dict[str, tuple[Channels, Channels]]:
        """For each tensor (name → axis of its channels) the lowest and highest by channel.

        Raises RuntimeFailureError if the runtime refuses the graph.
        """
        probe = cut_to(with_outputs(ir.to_proto(graph), list(axes)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "channels.onnx"
            save_model(probe, path)
            session = Session(path, optimization="none")

        def extremes(index: int) -> dict[str, tuple[Channels, Channels]]:
            place = int(self._places[index])
            found = session.run(self._samples.batch(place * self._batch, self._batch))
            return {name: _extremes(found[name], axis) for name, axis in axes.items()}

        seen: dict[str, tuple[Channels, Channels]] = {}
        count = len(self._places)
        runs = self._progress(in_parallel(extremes, count), "extremes of channels", count)
        for one in runs:
            for name, (low, high) in one.items():
                least, most = seen.get(name, (low, high))
                seen[name] = (np.minimum(least, low), np.maximum(most, high))
        return seen


def _extremes(array: Float[np.ndarray, "..."], axis: int) -> tuple[Channels, Channels]:
    others = tuple(i for i in range(array.ndim) if i != axis % array.ndim)
    return array.min(others), array.max(others)
