"""One sentence of advice that follows from the figures of a comparison, and from nothing else."""

from collections.abc import Collection, Sequence

from onnxq.artifacts import CandidateFacts, PairedRow, SideBySide
from onnxq.verify.report.formatting import number

__all__ = ["advice", "is_faster", "unbeaten"]


def advice(found: SideBySide) -> str:
    """Which candidate to take, by the headline metric, or that none can be taken.

    With a limit only those whose whole 95 % interval keeps it are considered; without one, those
    that no other candidate beats significantly (``unbeaten``). Among them the fastest counts, where
    quartiles of latency do not overlap; then the smallest file.
    """
    candidates = found.models[1:]
    if found.limit is None:
        equals = unbeaten(found)
        taken = [each for each in candidates if each.name in equals]
        return _among_equals(found, taken)
    taken = [each for each in candidates if each.name in found.within]
    unit = next(row.unit for row in found.metrics if row.metric == found.headline)
    allowed = f"at most {number(found.limit, 3, trim=True)}{unit and ' '}{unit} worse than FP32"
    if taken:
        best = _cheapest(taken)
        others = len(taken) - 1
        why = "the only one" if not others else f"{_reason(best, taken)} of the {len(taken)}"
        return (
            f"Take {best.name}: it is {why} whose {found.headline} is surely (95 %) {allowed}"
            f"{_figures(best)}."
        )
    open_ones = [each.name for each in candidates if each.name not in found.beyond]
    if open_ones:
        return (
            f"Take none yet: {found.samples} samples do not settle whether the {found.headline} of "
            f"{' or '.join(open_ones)} is {allowed}; give more."
        )
    return f"Take none: of no candidate is the {found.headline} {allowed}, surely (95 %)."


def unbeaten(found: SideBySide) -> frozenset[str]:
    """The candidates than which no other is better in the headline metric with its whole paired
    95 % interval. A candidate without an interval is judged by the point."""
    rows = [row for row in found.pairs if row.metric == found.headline]
    beaten = {loser for row in rows if (loser := _loser(row)) is not None}
    names = {each.name for each in found.models[1:]}
    return frozenset(names - beaten or names)


def is_faster(one: CandidateFacts, other: CandidateFacts) -> bool:
    """Whether the upper quartile of one's times lies below the lower quartile of the other's."""
    if one.latency is None or other.latency is None:
        return False
    return one.latency.high_quartile_ms < other.latency.low_quartile_ms


def _loser(row: PairedRow) -> str | None:
    """The one of the pair that is significantly worse."""
    low, high = row.increase, row.increase
    if row.interval is not None:
        low, high = row.interval.low, row.interval.high
    if low > 0:
        return row.second
    return row.first if high < 0 else None


def _among_equals(found: SideBySide, taken: Sequence[CandidateFacts]) -> str:
    best = _cheapest(taken)
    if len(found.models) == 2:
        row = next(
            row for row in found.metrics if (row.model, row.metric) == (best.name, found.headline)
        )
        worse = "an unknown amount" if row.increase is None else number(row.increase, 3)
        seen = row.interval
        between = "" if seen is None else f" [{number(seen.low, 3)}, {number(seen.high, 3)}]"
        return (
            f"{best.name} is worse than FP32 by {worse}{between} of {_unit(found)}"
            f"{_figures(best)}; give a limit (--max-drop) to have it judged."
        )
    if len(taken) == 1:
        return (
            f"Take {best.name}: it alone is not significantly (95 %) worse in {found.headline} "
            f"than another candidate{_figures(best)}."
        )
    names = _listed([each.name for each in taken])
    return (
        f"Take {best.name}: in {found.headline} none of {names} is significantly (95 %) better "
        f"than another, and it is {_reason(best, taken)}{_figures(best)}."
    )


def _cheapest(taken: Sequence[CandidateFacts]) -> CandidateFacts:
    """The smallest of those that no other one is faster than."""
    fastest = [each for each in taken if not any(is_faster(other, each) for other in taken)]
    return min(fastest, key=lambda each: each.size_bytes)


def _reason(best: CandidateFacts, taken: Sequence[CandidateFacts]) -> str:
    others = [each for each in taken if each is not best]
    if all(is_faster(best, other) for other in others):
        return "the fastest"
    if any(is_faster(best, other) for other in others):
        return "as fast as any and the smallest of those"
    return "the smallest, and none is clearly faster"


def _figures(best: CandidateFacts) -> str:
    time = "" if best.latency is None else f", {number(best.latency.ratio, 2)}× its latency"
    return f" ({number(best.size_ratio, 2)}× FP32's bytes{time})"


def _unit(found: SideBySide) -> str:
    row = next(row for row in found.metrics if row.metric == found.headline)
    return f"{row.metric} ({row.unit})" if row.unit else row.metric


def _listed(names: Collection[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
