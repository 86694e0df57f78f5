"""The first layer of a device that departs from the bundle's, and whether that is rounding."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Int64, Shaped

from onnxq.errors import ModelError
from onnxq.handoff.dump import Dump, KnownLayers, channels_last
from onnxq.handoff.dump_causes import ONE_STEP, causes, off_exact, roundings
from onnxq.handoff.reference.evaluate import Reference
from onnxq.handoff.reference.network import Layer
from onnxq.handoff.reference.rounding import ROUNDINGS

__all__ = ["Departure", "compare_layers"]

Array = Shaped[np.ndarray, "..."]
LayerVerdict = Literal["equal", "follows", "rounding", "departs"]
SUSPICIOUS = 0.02  # share of elements beyond which one step is looked at as a fault would be


@dataclass(frozen=True)
class Departure:
    """One layer of a dump.

    ``steps`` and ``differing`` (a share) are against the bundle's integers; ``own_steps`` and
    ``own_differing`` against the integer reference given the device's own integers before this
    layer, None where there is no reference. ``turned`` says that the layer's numbers lie with the
    channels last, which its shape did not tell. Verdicts: ``equal`` to the bundle's; ``follows``
    exactly from the device's own integers before it; ``rounding``: each integer is one of the two
    around the exact value, or, behind layers that the dump does not hold, no further off than
    roundings alone are; ``departs``.
    """

    layer: Layer
    verdict: LayerVerdict
    steps: int
    differing: float
    own_steps: int | None
    own_differing: float | None
    says: tuple[str, ...]
    integers: Int64[np.ndarray, "..."]
    turned: bool = False


def compare_layers(known: KnownLayers, dump: Dump) -> Iterator[Departure]:
    """Every layer of the dump, in the graph's order; causes are sought up to the first departing.

    A layer that the dump does not hold is the bundle's own, as long as nothing before it differs;
    behind a difference it is computed by the reference of what the dump holds.
    """
    try:
        reference, refusal = Reference(known.model), ""
    except ModelError as fault:
        reference, refusal = None, str(fault)
    given: dict[str, Array] = {}
    touched: set[str] = set()
    searching, last = True, dump.turned
    for layer in known.layers:
        if layer.name not in dump.integers:
            if touched.intersection(layer.sources):
                touched.add(layer.name)
            else:
                given[layer.name] = np.asarray(known.integers[layer.name])
            continue
        got = dump.integers[layer.name]
        seen = {name: given[name] for name in dump.integers if name in given}
        tried = []
        for integers in _readings(got, ambiguous=layer.name in dump.ambiguous, last=last):
            found = _judged(known, reference or refusal, layer, given, integers, searching)
            if found.verdict == "departs":
                found = _in_sight(found, known, seen, judged=reference is not None)
            tried.append(replace(found, turned=integers is not got))
            if found.verdict != "departs":
                break
        found = tried[-1] if tried[-1].verdict != "departs" else tried[0]
        last = last or found.turned
        if found.verdict != "equal":
            touched.add(layer.name)
        searching = searching and found.verdict != "departs"
        given[layer.name] = found.integers
        yield found


def _readings(
    got: Int64[np.ndarray, "..."], *, ambiguous: bool, last: bool
) -> tuple[Int64[np.ndarray, "..."], ...]:
    """A layer's integers as they may lie, the likelier first: ``last`` if others of the dump have
    their channels last."""
    if not ambiguous:
        return (got,)
    turned = np.moveaxis(got.reshape(channels_last(got.shape)), -1, 1)
    if np.array_equal(turned, got):
        return (got,)
    return (turned, got) if last else (got, turned)


def _in_sight(
    found: Departure, known: KnownLayers, seen: Mapping[str, Array], *, judged: bool
) -> Departure:
    """The departure, judged anew or with a warning where layers before it are not in the dump."""
    unseen = [f"`{name}`" for name in found.layer.sources if name not in seen]
    if not unseen:
        return found
    if judged and not found.says:
        found = _spread_over(found, known, seen)
    if found.verdict != "departs":
        return found
    warning = f"it may have begun before, in {', '.join(unseen)}: not in the dump"
    return replace(found, says=(*found.says, warning))


def _spread_over(found: Departure, known: KnownLayers, seen: Mapping[str, Array]) -> Departure:
    """The departure as rounding, if roundings alone differ as far over the layers that are missing.

    How far is measured: the reference computes all that lies between the layers of the dump and
    this one under every rounding it has, and ONNX Runtime's integers are one more.
    """
    layer = found.layer
    results = [
        Reference(known.model, rounding).layer(layer.name, known.inputs, seen).integers
        for rounding in ROUNDINGS
    ]
    ways = np.stack([*results, np.asarray(known.integers[layer.name])]).astype(np.int64)
    between = int((ways.max(0) - ways.min(0)).max())
    nearest = int(np.abs(ways - found.integers).max(tuple(range(1, ways.ndim))).min())
    if nearest > between:
        return found
    says = (
        f"within {between} step{'' if between == 1 else 's'}, by which roundings alone differ over "
        "the layers that are not in the dump"
    )
    return replace(found, verdict="rounding", says=(says,))


def _unjudged(layer: Layer, got: Array, same: Array, refusal: str) -> Departure:
    away = np.abs(got - same.astype(np.int64))
    says = (f"rounding cannot be told from a fault: {refusal}",)
    return Departure(
        layer, "departs", int(away.max()), float((away > 0).mean()), None, None, says, got
    )


def _judged(
    known: KnownLayers,
    reference: Reference | str,
    layer: Layer,
    given: Mapping[str, Array],
    got: Int64[np.ndarray, "..."],
    searching: bool,
) -> Departure:
    """A layer, judged by the reference of the integers before it if it is not the bundle's.

    A text in place of the reference says why there is none.
    """
    same = np.asarray(known.integers[layer.name])
    if np.array_equal(got, same):
        return Departure(layer, "equal", 0, 0.0, None, None, (), got)
    if isinstance(reference, str):
        return _unjudged(layer, got, same, reference)
    away = np.abs(got - same.astype(np.int64))
    right = reference.layer(layer.name, known.inputs, given)
    own = np.abs(got - right.integers)
    share = float((own > 0).mean())
    off = off_exact(layer, got, right)
    verdict: LayerVerdict = "rounding" if off <= ONE_STEP else "departs"
    says: list[str] = []
    if not own.any():
        verdict = "follows"
    elif searching and (verdict == "departs" or share > SUSPICIOUS):
        says += [f"exactly {name}" for name in roundings(known, layer, given, got)]
        if says:
            verdict = "rounding"
        else:
            found = causes(known, layer, given, got, right)
            exact = any(cause.equal == 1 for cause in found)
            verdict = "departs" if verdict == "departs" or exact else verdict
            if verdict == "departs":
                says += [f"looks like {cause.says} ({cause.equal:.1%} exactly)" for cause in found]
    return Departure(
        layer, verdict, int(away.max()), float((away > 0).mean()), int(own.max()), share,
        tuple(says), got,
    )  # fmt: skip
