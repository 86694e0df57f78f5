"""What a task is judged by: metrics with units, and the baseline that a model must beat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped

__all__ = ["Metric", "Task"]

Predictions = Float[np.ndarray, "n *output"]
Labels = Shaped[np.ndarray, " n"]


@dataclass(frozen=True)
class Metric:
    """One figure of merit.

    ``compute(predictions, labels)`` gives the figure for a whole set. ``per_sample``, where it is
    given, returns ``(n,)`` contributions whose mean is that figure, so that two models can be
    compared sample by sample; a metric without it (RMSE, R²) is reported but cannot be gated.
    """

    name: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    compute: Callable[[Predictions, Labels], float]
    per_sample: Callable[[Predictions, Labels], Float[np.ndarray, " n"]] | None = None


@runtime_checkable
class Task(Protocol):
    """What a system does with its network's output, and how that is judged."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The figures shown in the report; the first is the headline."""
        ...

    def predictions(self, outputs: dict[str, Float[np.ndarray, "n ..."]]) -> Predictions:
        """Turn the network's raw outputs into predictions that the metrics take."""
        ...

    def as_labels(self, predictions: Predictions) -> Labels:
        """Predictions as if they were the truth, to measure another model's distance to them."""
        ...

    def baseline(self, labels: Labels) -> Predictions:
        """What a model that looks at no input predicts, knowing how ``labels`` are distributed: the
        mean, the majority class. It is the best of its kind, so that beating it means something."""
        ...
