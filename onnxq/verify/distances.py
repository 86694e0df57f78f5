"""How far one tensor is from another: ST Edge AI's names and definitions, added up over samples."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

__all__ = ["Distance"]


@dataclass
class Distance:
    """Sums from which every distance follows; samples are added one at a time, in float64.

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

    def add(self, reference: Float[np.ndarray, "*shape"], got: Float[np.ndarray, "*shape"]) -> None:
        """Count one pair of equal shape."""
        ref = reference.astype(np.float64).ravel()
        new = got.astype(np.float64).ravel()
        error = ref - new
        self.count += ref.size
        self.reference += float(ref.sum())
        self.reference_squared += float(ref @ ref)
        self.got_squared += float(new @ new)
        self.product += float(ref @ new)
        self.error += float(error.sum())
        self.error_squared += float(error @ error)
        self.error_absolute += float(np.abs(error).sum())

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
