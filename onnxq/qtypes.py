"""The nouns of quantization: integer types, ranges, and the parameters of one tensor."""

import math
from dataclasses import dataclass
from enum import StrEnum

__all__ = ["AffineParameters", "IntType", "Range"]


class IntType(StrEnum):
    """An integer type that Q/DQ nodes can carry."""

    INT4 = "int4"
    INT8 = "int8"
    UINT8 = "uint8"
    INT16 = "int16"
    UINT16 = "uint16"
    INT32 = "int32"

    @property
    def bits(self) -> int:
        """Width in bits."""
        return int(self.value.removeprefix("u").removeprefix("int"))

    @property
    def is_signed(self) -> bool:
        """Whether it holds negative integers."""
        return not self.value.startswith("u")

    @property
    def qmin(self) -> int:
        """Smallest integer of the type."""
        return -(2 ** (self.bits - 1)) if self.is_signed else 0

    @property
    def qmax(self) -> int:
        """Largest integer of the type."""
        return int(2 ** (self.bits - self.is_signed)) - 1

    @property
    def middle(self) -> int:
        """Where a symmetric zero point lies: 0 of a signed type, 128 of uint8, 32768 of uint16."""
        return 0 if self.is_signed else 2 ** (self.bits - 1)

    @property
    def holder(self) -> str:
        """The numpy type that holds its integers: its own, or int8 for int4, of which numpy has
        none."""
        return "int8" if self is IntType.INT4 else self.value


@dataclass(frozen=True)
class Range:
    """Closed interval of real values that a tensor is quantized over; it always holds zero."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"a range must be finite, not [{self.low}, {self.high}]")
        if not self.low <= 0 <= self.high:
            raise ValueError(f"a range must hold zero, not [{self.low}, {self.high}]")

    @classmethod
    def including_zero(cls, low: float, high: float) -> "Range":
        """The smallest range that holds ``low``, ``high`` and zero."""
        return cls(min(float(low), 0.0), max(float(high), 0.0))

    @property
    def width(self) -> float:
        """``high - low``."""
        return self.high - self.low

    def union(self, other: "Range") -> "Range":
        """The smallest range that holds both."""
        return Range(min(self.low, other.low), max(self.high, other.high))

    def clamped(self, low: float, high: float) -> "Range":
        """The part inside ``[low, high]``, still holding zero."""
        return Range(min(max(self.low, low), 0.0), max(min(self.high, high), 0.0))


@dataclass(frozen=True)
class AffineParameters:
    """How real values become integers: ``q = saturate(round(x / scale) + zero_point)``."""

    scale: float
    zero_point: int
    type: IntType

    @property
    def range(self) -> tuple[float, float]:
        """The real values of the smallest and the largest integer."""
        return (
            (self.type.qmin - self.zero_point) * self.scale,
            (self.type.qmax - self.zero_point) * self.scale,
        )
