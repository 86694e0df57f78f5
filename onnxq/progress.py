"""The seam by which long work shows how far it is; the library itself prints nothing."""

from collections.abc import Iterable
from typing import Protocol, TypeVar, runtime_checkable

__all__ = ["Progress", "silent"]

T = TypeVar("T")


@runtime_checkable
class Progress(Protocol):
    """Hands on ``items`` one by one, showing ``what`` and the share of ``total`` that is done."""

    def __call__(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        """Iterate over ``items`` unchanged."""
        ...


def silent(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """Show nothing."""
    return items
