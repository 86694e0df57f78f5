"""Statistics → the range of every tensor: by the method, or pinned by what is known beforehand."""

from collections.abc import Iterable, Mapping, Sequence

import onnx

from onnxq.artifacts import DECLARED, Finding, TensorRange, ValueFacts
from onnxq.calibrate.estimators import EstimatorOptions, estimate
from onnxq.calibrate.statistics import Channels, Statistics, TensorStatistics
from onnxq.recipe import CalibrateSection
from onnxq.target import Target

__all__ = ["findings", "options_of", "ranges_of", "unbalanced"]

_FIXED_RANGES = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
_ENOUGH_OF_DOMAIN = 0.95
_MOST_IMBALANCE = 32  # leaves the median channel 8 of 256 steps, 3 bits
Pin = tuple[tuple[float, float], str]


def options_of(section: CalibrateSection, target: Target) -> EstimatorOptions:
    """The method's options, with the grid that the target puts activations on."""
    return EstimatorOptions(
        coverage=section.coverage,
        momentum=section.momentum,
        power=section.power,
        sigmas=section.sigmas,
        symmetric=target.activation_symmetric,
    )


def ranges_of(
    graph: onnx.GraphProto,
    statistics: Statistics,
    values: Sequence[ValueFacts],
    section: CalibrateSection,
    target: Target,
) -> dict[str, TensorRange]:
    """The range of every tensor that ``statistics`` hold, by the section's method.

    A declared domain of an input or output (``values``) pins its range, and operators with a
    mathematical range theirs. A tensor that had no element in any sample gets the range [0, 0].
    """
    pins = _pins(graph.node, values)
    options = options_of(section, target)
    return {
        name: _range_of(statistics.of(name), section, options, pins.get(name))
        for name in statistics.tensors
    }


def _pins(nodes: Iterable[onnx.NodeProto], values: Sequence[ValueFacts]) -> dict[str, Pin]:
    pins: dict[str, Pin] = {
        output: (_FIXED_RANGES[node.op_type], f"{node.op_type}'s mathematical range")
        for node in nodes
        if node.op_type in _FIXED_RANGES
        for output in node.output
    }
    return pins | {v.name: (v.domain, DECLARED) for v in values if v.domain is not None}


def _range_of(
    seen: TensorStatistics, section: CalibrateSection, options: EstimatorOptions, pin: Pin | None
) -> TensorRange:
    pinned = pin[1] if pin else None
    if seen.is_empty:
        low, high = pin[0] if pin else (0.0, 0.0)
        return TensorRange(
            low=low, high=high, observed_low=0, observed_high=0, values=0, zeros=0, pinned=pinned
        )
    if pin is None:
        estimated = estimate(seen, section.method, options)
        low, high = estimated.low, estimated.high
    else:
        low, high = pin[0]
    summary = seen.summary
    outside = None
    if summary is not None:
        outside = (summary.values_below(low) + summary.values_above(high)) / summary.count
    return TensorRange(
        low=low,
        high=high,
        observed_low=seen.low,
        observed_high=seen.high,
        values=seen.values,
        zeros=None if summary is None else summary.zeros,
        outside_fraction=outside,
        pinned=pinned,
    )


def unbalanced(channels: Mapping[str, Channels]) -> tuple[Finding, ...]:
    """Tensors of which one scale serves the median channel badly."""
    return tuple(
        Finding(
            where=name,
            what=f"its range is {seen.imbalance:.0f} times that of its median channel: half of the "
            f"channels have fewer than {256 / seen.imbalance:.0f} of 256 steps",
            do="equalize the layers around it, or keep the next node float (--exclude)",
        )
        for name, seen in channels.items()
        if seen.imbalance > _MOST_IMBALANCE
    )


def findings(
    ranges: Mapping[str, TensorRange], inputs: Sequence[ValueFacts]
) -> tuple[Finding, ...]:
    """What a person should know: dead tensors, and domains that the samples do not fill."""
    found = [
        Finding(
            where=name,
            what="is zero in every calibration sample" if seen.values else "has no element at all",
            do="check that the samples reach this part of the network",
        )
        for name, seen in ranges.items()
        if seen.observed_low == seen.observed_high == 0
    ]
    for value in inputs:
        seen = ranges.get(value.name)
        if value.domain is None or seen is None:
            continue
        share = (seen.observed_high - seen.observed_low) / (value.domain[1] - value.domain[0])
        if share < _ENOUGH_OF_DOMAIN:
            found.append(
                Finding(
                    where=value.name,
                    what=f"calibration samples cover {share:.0%} of the declared domain "
                    f"{list(value.domain)}",
                    do="calibrate on more varied samples; the scale itself is pinned by the domain",
                )
            )
    return tuple(found)
