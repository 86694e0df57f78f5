"""What every float step takes and gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from jaxtyping import Float

from onnxq.artifacts import RescaledLink, SkippedLayer

__all__ = ["Extremes", "FloatStep", "Given", "Stepped"]

Channels = Float[np.ndarray, " _"]  # as many as the tensor has


@runtime_checkable
class Extremes(Protocol):
    """Looks at samples: for each tensor (name → axis of its channels) the lowest and the highest
    value that every channel of it takes in ``graph``."""

    samples: int

    def __call__(
        self, graph: ir.Model, axes: Mapping[str, int]
    ) -> dict[str, tuple[Channels, Channels]]:
        """Lowest and highest by channel, shape (channels,) each."""
        ...


@dataclass(frozen=True)
class Given:
    """What a step may look at beside the graph: samples, if there are any.

    ``kept`` names tensors whose numbers must stay what they are.
    """

    extremes: Extremes | None = None
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stepped:
    """The graph after a step, and what was done and left alone. ``samples`` were looked at."""

    graph: ir.Model
    links: tuple[RescaledLink, ...]
    skipped: tuple[SkippedLayer, ...]
    samples: int = 0


FloatStep = Callable[[ir.Model, Given], Stepped]  # leaves the graph that it is given
