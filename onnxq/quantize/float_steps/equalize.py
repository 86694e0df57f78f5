"""The float step ``equalize``: weights of two layers share out what their channels differ by.

Channel i between two layers is divided by s_i = √(r1_i / r2_i), where r1_i is the range of what
makes it and r2_i that of the weights that read it; both become √(r1_i · r2_i). Source: Nagel et al.
2019, arXiv 1906.04721, section 4.1 (equation 11). Three things differ. The range there is that of
the weights alone; ours holds the bias too, so that a channel with nothing but a bias is not blown
up. The median of the factors is taken out, so that a channel that must stay as it is (below) lies
level with the others. And links whose channels are even enough are left alone: weights with a scale
a channel need no equalizing, activations with one scale do. On EfficientNet-Lite0, where no range
is more than 16 times that of the median channel, equation 11 on every link cost 1.4 dB.

A clipped Relu (Clip at 6) keeps its one number only where no channel that is scaled can reach it:
where interval arithmetic over the graph proves so, the factor is bounded, elsewhere it is 1. The
other way, Relu and a Min with one number a channel, is exact too, but takes an operator of its own
in the quantized file. On EfficientNet-Lite0 there is nothing to gain by it either: scaled to twice
or 1.25 times what 64 pictures reach, the file is no nearer to FP32 (18.6 and 18.5 dB; 18.6 as is).
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from jaxtyping import Float64

from onnxq.artifacts import RescaledLink, SkippedLayer
from onnxq.graph import constant_input
from onnxq.quantize.float_steps.bounds import intervals
from onnxq.quantize.float_steps.links import Link, links_of
from onnxq.quantize.float_steps.scaling import magnitudes, rescaled, set_constant
from onnxq.quantize.float_steps.sources import divide, layer_sources, source_magnitudes
from onnxq.quantize.float_steps.types import Given, Stepped

__all__ = ["equalize"]

MOST_SWEEPS = 40
EVEN = 16.0  # times the median channel's range: leaves that one 16 of 256 steps, 4 bits
_STILL = 1e-3  # a sweep that changes no factor by more than this share is the last
_FURTHEST = 2.0**12  # a channel is not scaled by more than this, or by less than its inverse
Channels = Float64[np.ndarray, " channels"]
BySource = dict[str, Float64[np.ndarray, " _"]]


def equalize(graph: ir.Model, given: Given) -> Stepped:
    """The graph with even channels between its layers, where that may be and is worth it.

    Links follow one another (Conv → depthwise Conv → Conv), so sweeps along the graph are repeated
    until no factor moves. Looks at no sample.
    """
    copy = ir.from_proto(ir.to_proto(graph))
    links, skipped = links_of(layer_sources(copy.graph), given.kept)
    limits = _limits(copy.graph, links)
    able = []
    for link in links:
        reason = _reason_to_leave(link, limits[link.source.name])
        if reason:
            skipped.append(SkippedLayer(node=link.source.name, reason=reason))
        else:
            able.append(link)
    totals = {link.source.name: np.ones(link.source.channels) for link in able}
    for _ in range(MOST_SWEEPS):
        moved = [_even_out(copy, link, totals, limits[link.source.name]) for link in able]
        if max(moved, default=0.0) < _STILL:
            break
    rows = tuple(row_of(link, totals[link.source.name]) for link in able)
    return Stepped(copy, rows, tuple(skipped))


def _reason_to_leave(link: Link, limit: Channels) -> str:
    """Why a link is not worth scaling, or cannot be; empty if it is."""
    if (limit == 1).all():
        clips = [str(node.name) for node in link.through if node.op_type == "Clip"]
        return f"Clip `{clips[-1]}` could cut at {link.ceiling:g} in every channel"
    made = source_magnitudes(link.source)
    median = float(np.median(made[made > 0])) if made.any() else 0.0
    if made.max() <= EVEN * median:
        ratio = made.max() / median if median else 1.0
        return f"its channels are even: the largest is {ratio:.1f} times the median one"
    return ""


def _even_out(graph: ir.Model, link: Link, totals: BySource, limit: Channels) -> float:
    """Scale one link by its factors, kept track of in ``totals``; the largest |log| of them."""
    made, read = source_magnitudes(link.source), sink_magnitudes(link.sinks)
    known = (made > 0) & (read > 0)
    factors = np.sqrt(np.where(known, made, 1) / np.where(known, read, 1))
    if known.any():
        factors = np.where(known, factors / np.median(factors[known]), 1)
    before = totals[link.source.name]
    after = np.clip(before * factors, 1 / _FURTHEST, _FURTHEST)
    after = np.where(limit == 1, 1, np.maximum(after, limit))
    factors = after / before
    if (factors != 1).any():
        scale_link(graph, link, factors)
        totals[link.source.name] = after
    return float(np.abs(np.log(factors)).max(initial=0.0))


def _limits(graph: ir.Graph, links: Sequence[Link]) -> BySource:
    """By source, the least factor of each channel: 0 for any, 1 for none but 1.

    A channel that reaches at most u < c may be divided by u / c and more under a Clip at c.
    """
    found = {link.source.name: np.zeros(link.source.channels) for link in links}
    clipped = [link for link in links if np.isfinite(link.ceiling)]
    known = intervals(graph) if clipped else {}
    for link in clipped:
        _, high = known[str(link.source.value.name)]
        reached = np.maximum(np.broadcast_to(high, (link.source.channels,)), 0)
        found[link.source.name] = np.where(reached < link.ceiling, reached / link.ceiling, 1.0)
    return found


def sink_magnitudes(sinks: Sequence[ir.Node]) -> Channels:
    """The largest magnitude of the weights that read each channel, over all ``sinks``."""
    weights = [(node, constant_input(node, 1)) for node in sinks]
    found = [magnitudes(node, weight, "inputs") for node, weight in weights if weight is not None]
    return np.asarray(np.max(found, axis=0))


def scale_link(graph: ir.Model, link: Link, factors: Channels) -> None:
    """Divide the channels of a link at its source and multiply the weights that read them."""
    divide(graph, link.source, factors)
    for node in link.sinks:
        weight = constant_input(node, 1)
        if weight is not None:
            exact = weight.astype(np.float64)
            set_constant(graph, node, 1, rescaled(node, exact, "inputs", factors))


def row_of(link: Link, factors: Channels, neutral: float = 1.0) -> RescaledLink:
    """What is on record of a link; channels whose factor is ``neutral`` were left alone."""
    return RescaledLink(
        source=link.source.name,
        through=tuple(str(node.name) for node in link.through),
        sinks=tuple(str(node.name) for node in link.sinks),
        channels=link.source.channels,
        changed=int(np.count_nonzero(np.abs(factors - neutral) > _STILL)),
        smallest=float(factors.min(initial=np.inf)),
        largest=float(factors.max(initial=-np.inf)),
    )
