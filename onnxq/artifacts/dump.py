"""Records of a device's dump laid beside a bundle's layers."""

from typing import Literal

from onnxq.artifacts.base import Record
from onnxq.artifacts.distances import LayerDistance

__all__ = ["DumpComparison", "DumpLayer"]


class DumpLayer(Record):
    """One layer of a dump.

    ``steps`` and ``differing`` (a share of the elements) are against the bundle's integers,
    ``own_steps`` and ``own_differing`` against the integer reference of the device's own integers
    before this layer; None where those were not asked for. ``distance`` is between the real values,
    the bundle's being the reference. Verdicts: ``equal`` to the bundle's integers; ``follows``
    exactly from the device's own before it; ``rounding``: each integer is one of the two around the
    exact value, or, behind layers that the dump does not hold, no further off than roundings alone
    are; ``departs``.
    """

    verdict: Literal["equal", "follows", "rounding", "departs"]
    steps: int
    differing: float
    own_steps: int | None
    own_differing: float | None
    says: tuple[str, ...]
    distance: LayerDistance


class DumpComparison(Record):
    """A dump beside a bundle. ``first`` is the first layer that departs, or else the first that
    differs; None if none does. ``missing`` are layers that the dump does not hold, ``unknown`` its
    arrays that are no layer, ``notes`` how numbers were read where that is not plain."""

    verdict: Literal["equal", "rounding", "departs"]
    model: str
    first: str | None
    statement: str
    layers: tuple[DumpLayer, ...]
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
