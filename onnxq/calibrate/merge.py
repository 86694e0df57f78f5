"""Statistics that were collected apart, as one."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.artifacts import DECLARED, CalibrationResult, SampleChoice
from onnxq.calibrate.facets import joined_bins
from onnxq.calibrate.stage import Evidence
from onnxq.calibrate.statistics import Statistics, joined
from onnxq.errors import LeakageError, UsageError

__all__ = ["Part", "merged_evidence"]


@dataclass(frozen=True)
class Part:
    """One of the collections; ``place`` is what a person calls it."""

    place: str
    result: CalibrationResult
    statistics: Statistics


def merged_evidence(parts: Sequence[Part]) -> Evidence:
    """The evidence of all ``parts``, the same whatever their order.

    They are put in order of their first sample's digest, which a moving average then follows.
    Raises UsageError if model, target, tensors, preprocessing or the way of running differ, and
    LeakageError if a sample is in two of them, as it would count twice.
    """
    ordered = sorted(parts, key=lambda part: part.result.choice.digests)
    first = ordered[0]
    for part in ordered[1:]:
        _refuse_different(first, part)
    _refuse_shared(ordered)
    return Evidence(
        choice=_joined_choice([part.result.choice for part in ordered]),
        statistics=joined([part.statistics for part in ordered]),
        optimization=first.result.collection.optimization,
        preprocessing=first.result.collection.preprocessing,
    )


def _refuse_different(one: Part, other: Part) -> None:
    pairs = {
        "model": (one.result.model_sha256, other.result.model_sha256),
        "target": (one.result.target, other.result.target),
        "preprocessing": tuple(p.result.collection.preprocessing for p in (one, other)),
        "tensor list": (one.statistics.tensors, other.statistics.tensors),
        "detail": tuple(p.result.collection.detail for p in (one, other)),
        "optimization": tuple(p.result.collection.optimization for p in (one, other)),
        "batch": tuple(p.result.collection.batch for p in (one, other)),
        "choice of --per-channel": tuple(sorted(p.statistics.channels) for p in (one, other)),
        "declared domains": tuple(_domains(p.result) for p in (one, other)),
        "versions of packages": tuple(p.result.provenance.packages for p in (one, other)),
    }
    for what, (left, right) in pairs.items():
        if left != right:
            shown = f": {left!r:.60} and {right!r:.60}" if isinstance(left, str) else ""
            raise UsageError(
                f"their {what} differs{shown}",
                where=f"{one.place} / {other.place}",
                do="merge only what was calibrated on the same file, for the same target, in the "
                "same way",
            )


def _domains(result: CalibrationResult) -> dict[str, tuple[float, float]]:
    return {
        name: (range_.low, range_.high)
        for name, range_ in result.ranges.items()
        if range_.pinned == DECLARED
    }


def _refuse_shared(parts: Sequence[Part]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        for index, digest in zip(
            part.result.choice.indices, part.result.choice.digests, strict=True
        ):
            if digest in seen:
                raise LeakageError(
                    f"sample {index} of {part.place} is {seen[digest]} too, byte for byte",
                    where="merge",
                    do="divide the samples so that each is in one part only: it would count twice",
                )
            seen[digest] = f"sample {index} of {part.place}"


def _joined_choice(choices: Sequence[SampleChoice]) -> SampleChoice:
    lows = [choice.label_low for choice in choices if choice.label_low is not None]
    highs = [choice.label_high for choice in choices if choice.label_high is not None]
    means = [
        (choice.label_mean, len(choice.indices))
        for choice in choices
        if choice.label_mean is not None
    ]
    bins, edges = joined_bins(choices)
    return SampleChoice(
        source=" + ".join(choice.source for choice in choices),
        plan=f"merged from {len(choices)} parts: "
        + "; ".join(f"{choice.plan}, seed {choice.seed}" for choice in choices),
        seed=choices[0].seed,
        asked=sum(choice.asked for choice in choices),
        indices=tuple(index for choice in choices for index in choice.indices),
        digests=tuple(digest for choice in choices for digest in choice.digests),
        groups=tuple(sorted({group for choice in choices for group in choice.groups})),
        bins=bins,
        edges=edges,
        label_low=min(lows, default=None),
        label_high=max(highs, default=None),
        label_mean=sum(m * n for m, n in means) / sum(n for _, n in means) if means else None,
        made_up=any(choice.made_up for choice in choices),
        notes=tuple(note for choice in choices for note in choice.notes),
    )
