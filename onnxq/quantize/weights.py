"""The refine step ``weights-mse``: weight scales with the least squared error of the weights."""

from dataclasses import replace

import numpy as np

from onnxq.graph import WEIGHTED, constant_of
from onnxq.qtypes import IntType
from onnxq.quantize.draft import Draft, Evidence, cut_to_grid
from onnxq.quantize.least_error import least_error_scales, rows_of, squared_errors
from onnxq.quantize.narrow import narrowed_scales
from onnxq.quantize.plan import WeightParameters

__all__ = ["mse_weight_scales"]


def mse_weight_scales(draft: Draft, _: Evidence) -> tuple[Draft, str]:
    """Every 8-bit weight's scales by ``least_error_scales``, and what that took off the squared
    error. Those of 4 bits have such scales from the plan.

    Weights that come to lie outside the grid are cut to its ends in the graph, so that rounding
    gives −127…127. Where the draft is narrow, channels that could saturate are narrowed anew.
    """
    graph, found = draft.copy(), dict[str, WeightParameters]()
    before = after = 0.0
    for node in graph.graph:
        weight = constant_of(node.inputs[1]) if node.op_type in WEIGHTED else None
        name = str(node.inputs[1].name) if weight is not None and node.inputs[1] else ""
        planned = draft.plan.weights.get(name)
        if weight is None or planned is None or planned.type is IntType.INT4:
            continue
        rows, two = rows_of(weight, planned.axis), draft.target.power_of_two
        scales = least_error_scales(rows, planned.scales, power_of_two=two)
        if draft.narrow:
            scales = narrowed_scales(node, weight, scales, planned.axis, power_of_two=two)
        if name in found:  # it serves another node too
            scales = np.maximum(scales, found[name].scales)
        found[name] = replace(planned, scales=scales)
        before += float(squared_errors(rows, planned.scales, planned.type).sum())
        after += float(squared_errors(rows, scales, planned.type).sum())
    cut_to_grid(graph, found)
    plan = replace(draft.plan, weights={**draft.plan.weights, **found})
    share = after / before if before else 1.0
    what = f"squared error of {len(found)} weights × {share:.3f}"
    return replace(draft, graph=graph, plan=plan), what
