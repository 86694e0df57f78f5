"""How far one tensor is from another: ST Edge AI's names and definitions, added up over samples."""

import math
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float

from onnxq.artifacts import ST_METRICS

__all__ = ["Distance"]

_FIGURES = ("sqnr_db", *ST_METRICS)


@dataclass(frozen=True)
class Distance:
    """Sums, in float64, from which every distance follows; two add up to that of both.

    Source: ST Edge AI Core documentation, "Evaluation report and metrics" (rmse, mae, l2r, mean,
    std, nse, cos are of the flattened tensors; the error is reference − got).
    """

    count: int = 0
    reference: float = 0.0
    reference_squared: float = 0.0
    got_squared: float = 0.0
    product: float = 0.0
    error: float = 0.0
    error_squared: float = 0.0
    error_absolute: float = 0.0

    @classmethod
    def between(
        cls, reference: Float[np.ndarray, "*shape"], got: Float[np.ndarray, "*shape"]
    ) -> "Distance":
        """The sums of one pair of arrays."""
        ref = reference.astype(np.float64).ravel()
        new = got.astype(np.float64).ravel()
        error = ref - new
        return cls(
            count=ref.size,
            reference=float(ref.sum()),
            reference_squared=float(ref @ ref),
            got_squared=float(new @ new),
            product=float(ref @ new),
            error=float(error.sum()),
            error_squared=float(error @ error),
            error_absolute=float(np.abs(error).sum()),
        )

    def __add__(self, other: "Distance") -> "Distance":
        sums = (getattr(self, part.name) + getattr(other, part.name) for part in fields(self))
        return Distance(*sums)

    @property
    def figures(self) -> dict[str, float]:
        """Every distance, by the name that it has here and in the records."""
        return {name: getattr(self, name) for name in _FIGURES}

    @property
    def sqnr_db(self) -> float:
        """``10·log10(Σ ref² / Σ error²)``; infinite where nothing differs."""
        if self.error_squared == 0:
            return math.inf
        if self.reference_squared == 0:
            return -math.inf
        return 10 * math.log10(self.reference_squared / self.error_squared)

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return math.sqrt(self.error_squared / self.count)

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return self.error_absolute / self.count

    @property
    def l2r(self) -> float:
        """``‖error‖₂ / ‖ref‖₂``; infinite for a reference of zeros that is not met."""
        if self.reference_squared == 0:
            return 0.0 if self.error_squared == 0 else math.inf
        return math.sqrt(self.error_squared / self.reference_squared)

    @property
    def mean(self) -> float:
        """Mean of the error."""
        return self.error / self.count

    @property
    def std(self) -> float:
        """Standard deviation of the error."""
        return math.sqrt(max(self.error_squared / self.count - self.mean**2, 0.0))

    @property
    def nse(self) -> float:
        """Nash–Sutcliffe efficiency ``1 − Σ error² / Σ (ref − mean ref)²``; best 1."""
        spread = self.reference_squared - self.reference**2 / self.count
        if spread <= 0:
            return 1.0 if self.error_squared == 0 else -math.inf
        return 1 - self.error_squared / spread

    @property
    def cos(self) -> float:
        """Cosine of the angle between the two; 1 where both are zero."""
        norms = math.sqrt(self.reference_squared * self.got_squared)
        if norms == 0:
            return 1.0 if self.reference_squared == self.got_squared else 0.0
        return self.product / norms
