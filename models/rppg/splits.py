"""The synthetic subjects: how many there are in each split, and how long they are filmed."""

from dataclasses import dataclass

__all__ = ["SPLITS", "Split"]


@dataclass(frozen=True)
class Split:
    """Subjects ``first`` to ``first + count − 1``; their numbers and seeds occur in no other."""

    first: int
    count: int
    seconds: float


# Finding faces costs most of the time, so what every user generates is short.
SPLITS = {
    "train": Split(1, 16, seconds=20.0),
    "calibration": Split(17, 8, seconds=14.0),
    "test": Split(25, 12, seconds=14.0),
}
