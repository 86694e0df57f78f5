"""Whether sums of pairs leave int16 on x86 without VNNI: told from the file, counted on real data.

No such processor is needed: the bound is exact arithmetic on the file's integers, and the count
repeats what the kernels of ONNX Runtime add up (``onnxq.pair_sums``).
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Int32, Int64, Integer, UInt8

from onnxq.artifacts import Finding, SaturationRow
from onnxq.graph import load_model
from onnxq.pair_sums import INT16_MAX, INT16_MIN, extreme_sums, pairs_of
from onnxq.runtime import Session, with_outputs
from onnxq.samples import Samples
from onnxq.verify.integer_products import Product, products_of

__all__ = ["Effect", "effect", "saturation", "saturation_findings"]

POSITIONS = 1024  # of one node's output, over all samples
_SUMS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Effect:
    """What saturation does to one product at some of its output positions.

    ``exact`` and ``saturated`` are the output integers without and with it; ``count`` pair sums
    left int16. ``ruled_out``: the extremes of the activations allow it at no position at all.
    """

    exact: Int64[np.ndarray, "positions channels"]
    saturated: Int64[np.ndarray, "positions channels"]
    count: int
    ruled_out: bool


def saturation(
    model_path: Path, samples: Samples | None = None, *, positions: int = POSITIONS
) -> tuple[SaturationRow, ...]:
    """One row for every product of the Q/DQ file that sums in pairs (``products_of``).

    The static bound holds for every input. With ``samples`` the file is run as its graph says, and
    of each product ``positions`` output positions are recomputed, drawn evenly over samples. The
    verdict is ``cannot`` (for no input), ``can`` (no data were looked at), ``not on the data``, or
    ``does``. Raises ModelError, RuntimeFailureError.
    """
    model = load_model(model_path)
    products = products_of(ir.from_proto(model))
    risks = [_static(product) for product in products]
    open_ones = [
        product
        for product, row in zip(products, risks, strict=True)
        if row.channels and _is_countable(product)
    ]
    if samples is None or not open_ones:
        return tuple(risks)
    inputs = {value.name for value in model.graph.input}
    wanted = list(dict.fromkeys(p.tensor for p in open_ones if p.tensor not in inputs))
    whole = with_outputs(model, wanted).SerializeToString() if wanted else None
    session = Session(whole, optimization="none") if whole is not None else None
    counts = {product.node: _Count() for product in open_ones}
    random = np.random.default_rng(0)
    for row in samples.rows():
        tensors = {**row, **session.run(row)} if session is not None else row
        for product in open_ones:
            activations = product.unsigned(tensors[product.tensor])
            share = math.ceil(positions / len(samples))
            chosen = _drawn(random, product.count(activations), share)
            counts[product.node].add(effect(product, activations, chosen), product)
    return tuple(counts[row.node].completed(row) if row.node in counts else row for row in risks)


def saturation_findings(rows: Sequence[SaturationRow]) -> tuple[Finding, ...]:
    """What to know and do of every product that can saturate, the worst first."""
    found = []
    for row in sorted(rows, key=lambda row: -(row.changed or 0)):
        if row.verdict == "cannot":
            continue
        where = f"{row.op_type} `{row.node}`, {row.channels} of {row.of_channels} output channels"
        found.append(
            Finding(
                where=where,
                what=_said(row),
                do="quantize with `onnxq quantize --saturation narrow --step rounding --step bias`"
                ", in a recipe `saturation: narrow` and `steps: [rounding, bias]` (7-bit weights "
                "in these channels, rounded for the outputs' sake), or set the session option "
                "session.x64quantprecision=1",
            )
        )
    return tuple(found)


def _said(row: SaturationRow) -> str:
    bound = f"pair sums reach {abs(row.worst_sum):,} where int16 ends at {INT16_MAX:,}"
    match row.verdict:
        case "does":
            return (
                f"on x86 without VNNI {row.saturated:,} of {row.pair_sums:,} pair sums saturate on "
                f"the data and change {row.changed:.2%} of the outputs, by up to "
                f"{row.largest_change} steps; {bound}"
            )
        case "not on the data":
            return f"on x86 without VNNI it can saturate, and did not on the data; {bound}"
    return f"on x86 without VNNI it can saturate; {bound}"


# --- one product --------------------------------------------------------------------------------


def effect(
    product: Product,
    activations: UInt8[np.ndarray, "..."],
    chosen: Int64[np.ndarray, " positions"],
) -> Effect:
    """Saturation of ``product`` at the ``chosen`` output positions, for these activations."""
    pairs = pairs_of(product.rows)
    low, high = (pairs_of(ends) for ends in product.extremes(activations))
    possible = _leaving(product, pairs, low, high)
    windows = product.windows(activations, chosen)
    exact = product.sums(windows)
    excess = np.zeros_like(exact)
    count = 0
    per_group = len(product.rows) // product.groups
    for group in range(product.groups if possible.any() else 0):
        mine = slice(group * per_group, (group + 1) * per_group)
        count += _add_excess(
            excess[:, mine], pairs_of(windows[:, group]), pairs[mine], possible[mine]
        )
    return Effect(
        exact=product.requantized(exact),
        saturated=product.requantized(exact - excess),
        count=count,
        ruled_out=not possible.any(),
    )


def _leaving(
    product: Product,
    pairs: Int32[np.ndarray, "channels pairs 2"],
    low: Int32[np.ndarray, "groups pairs 2"],
    high: Int32[np.ndarray, "groups pairs 2"],
) -> Bool[np.ndarray, "channels pairs"]:
    """Pairs of weights whose sum of products can leave int16 between ``low`` and ``high``."""
    each = len(product.rows) // product.groups
    smallest, largest = extreme_sums(pairs, np.repeat(low, each, 0), np.repeat(high, each, 0))
    return (smallest < INT16_MIN) | (largest > INT16_MAX)


def _add_excess(
    excess: Int64[np.ndarray, "positions channels"],
    activations: Int32[np.ndarray, "positions pairs 2"],
    weights: Int32[np.ndarray, "channels pairs 2"],
    possible: Bool[np.ndarray, "channels pairs"],
) -> int:
    """Add to ``excess`` what saturation takes from each sum; how many pair sums it hits."""
    count = 0
    for channels, pairs in _pieces(possible, len(activations)):
        products = activations[:, pairs] * weights[channels, pairs]
        sums = products.sum(-1, dtype=np.int32)
        beyond = sums - np.clip(sums, INT16_MIN, INT16_MAX)
        count += int(np.count_nonzero(beyond))
        own, starts = np.unique(channels, return_index=True)
        excess[:, own] += np.add.reduceat(beyond, starts, axis=1)
    return count


def _pieces(
    possible: Bool[np.ndarray, "channels pairs"], positions: int
) -> Iterator[tuple[Integer[np.ndarray, " n"], Integer[np.ndarray, " n"]]]:
    """Indices (channel, pair) of what is possible, so few at a time that memory stays small."""
    channels, pairs = np.nonzero(possible)
    step = max(_SUMS_AT_ONCE // max(positions, 1), 1)
    for start in range(0, len(channels), step):
        yield channels[start : start + step], pairs[start : start + step]


# --- rows ---------------------------------------------------------------------------------------


def _static(product: Product) -> SaturationRow:
    pairs = pairs_of(product.rows)
    bounds = (np.full((1, 1), bound, np.int32) for bound in (product.low, product.high))
    smallest, largest = extreme_sums(pairs, *bounds)
    channels = np.asarray(((smallest < INT16_MIN) | (largest > INT16_MAX)).any(-1))
    ends = (int(smallest.min(initial=0)), int(largest.max(initial=0)))
    return SaturationRow(
        node=product.node,
        op_type=product.op_type,
        low=product.low,
        high=product.high,
        channels=int(channels.sum()),
        of_channels=len(channels),
        worst_sum=max(ends, key=abs),
        verdict="can" if channels.any() else "cannot",
    )


def _is_countable(product: Product) -> bool:
    """Not of a MatMul by several constant matrices: only its bound is known."""
    return product.window is not None or product.groups == 1


def _drawn(random: np.random.Generator, count: int, share: int) -> Int64[np.ndarray, " n"]:
    if share >= count:
        return np.arange(count, dtype=np.int64)
    return np.sort(random.choice(count, share, replace=False)).astype(np.int64)


class _Count:
    """Effects of one product, added up over samples."""

    def __init__(self) -> None:
        self.positions = self.pair_sums = self.saturated = 0
        self.outputs = self.changed = self.largest_change = 0
        self.ruled_out = True

    def add(self, found: Effect, product: Product) -> None:
        """Add what one sample showed."""
        change = np.abs(found.saturated - found.exact)
        self.positions += len(change)
        self.pair_sums += change.size * math.ceil(product.rows.shape[1] / 2)
        self.saturated += found.count
        self.outputs += change.size
        self.changed += int(np.count_nonzero(change))
        self.largest_change = max(self.largest_change, int(change.max(initial=0)))
        self.ruled_out &= found.ruled_out

    def completed(self, row: SaturationRow) -> SaturationRow:
        """The row with what the data showed."""
        counted: Mapping[str, object] = {
            "positions": self.positions,
            "pair_sums": self.pair_sums,
            "saturated": self.saturated,
            "changed": self.changed / max(self.outputs, 1),
            "largest_change": self.largest_change,
            "ruled_out": self.ruled_out,
            "verdict": "does" if self.saturated else "not on the data",
        }
        return row.model_copy(update=counted)
