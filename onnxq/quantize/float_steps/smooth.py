"""The float step ``smooth``: activations behind a normalization hand their outliers to the weights.

Channel i is divided by s_i = max|x_i|^α / max|w_i|^(1 − α), α = 1/2, where x_i are its values on
samples and w_i the weights that read it; the norm's own scale and bias are divided, so that nothing
is computed more. Source: Xiao et al. 2022, arXiv 2211.10438, equation 4.
"""

import numpy as np
import onnx_ir as ir

from onnxq.errors import QuantizationError
from onnxq.quantize.float_steps.equalize import row_of, scale_link, sink_magnitudes
from onnxq.quantize.float_steps.links import links_of
from onnxq.quantize.float_steps.sources import affine_sources
from onnxq.quantize.float_steps.types import Given, Stepped

__all__ = ["smooth"]

ALPHA = 0.5  # the share of an outlier that goes into the weights


def smooth(graph: ir.Model, given: Given) -> Stepped:
    """The graph with outliers of norms moved into the weights behind them.

    Behind a LayerNormalization, or the Mul and Add that a decomposed one ends with, all readers
    must be layers of constant weight. The factors come from samples, the function does not: it is
    the same on any. Raises QuantizationError without samples.
    """
    if given.extremes is None:
        raise QuantizationError(
            "looks at activations on samples, and none are given",
            where="float step `smooth`",
            do="give the samples of the calibration, or leave the step out",
        )
    copy = ir.from_proto(ir.to_proto(graph))
    links, skipped = links_of(affine_sources(copy.graph), given.kept)
    axes = {str(link.source.value.name): link.source.axis for link in links}
    seen = given.extremes(graph, axes) if links else {}
    rows = []
    for link in links:
        low, high = seen[str(link.source.value.name)]
        made, read = np.maximum(np.abs(low), np.abs(high)), sink_magnitudes(link.sinks)
        known = (made > 0) & (read > 0)
        factors = np.where(known, made, 1) ** ALPHA / np.where(known, read, 1) ** (1 - ALPHA)
        scale_link(copy, link, factors)
        rows.append(row_of(link, factors))
    return Stepped(copy, tuple(rows), tuple(skipped), given.extremes.samples)
