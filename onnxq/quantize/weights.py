"""The refine step ``weights-mse``: weight scales with the least squared error of the weights."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
from jaxtyping import Float

from onnxq.graph import WEIGHTED, constant_of
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.narrow import narrowed_scales
from onnxq.quantize.plan import WeightParameters

__all__ = ["least_error_scales", "mse_weight_scales"]

_SMALLEST = 0.5  # of the planned scale: the plan leaves biases a factor of two before int32 ends
_CANDIDATES, _FINER = 65, 16
_REFITS = 3


def mse_weight_scales(draft: Draft, _: Evidence) -> tuple[Draft, str]:
    """Every weight's scales by ``least_error_scales``, and what that took off the squared error.

    Weights that come to lie outside the grid are cut to its ends in the graph, so that rounding
    gives −127…127. Where the draft is narrow, channels that could saturate are narrowed anew.
    """
    graph, found = draft.copy(), dict[str, WeightParameters]()
    before = after = 0.0
    for node in graph.graph:
        weight = constant_of(node.inputs[1]) if node.op_type in WEIGHTED else None
        name = str(node.inputs[1].name) if weight is not None and node.inputs[1] else ""
        planned = draft.plan.weights.get(name)
        if weight is None or planned is None:
            continue
        rows, two = _rows(weight, planned.axis), draft.target.power_of_two
        scales = least_error_scales(rows, planned.scales, power_of_two=two)
        if draft.narrow:
            scales = narrowed_scales(node, weight, scales, planned.axis, power_of_two=two)
        if name in found:  # it serves another node too
            scales = np.maximum(scales, found[name].scales)
        found[name] = replace(planned, scales=scales)
        before += float(_errors(rows, planned.scales).sum())
        after += float(_errors(rows, scales).sum())
    for name, parameters in found.items():
        _cut(graph.graph.initializers.get(name), parameters)
    plan = replace(draft.plan, weights={**draft.plan.weights, **found})
    share = after / before if before else 1.0
    what = f"squared error of {len(found)} weights × {share:.3f}"
    return replace(draft, graph=graph, plan=plan), what


def least_error_scales(
    rows: Float[np.ndarray, "channels k"],
    scales: Float[np.ndarray, " channels"],
    *,
    power_of_two: bool = False,
) -> Float[np.ndarray, " channels"]:
    """For each channel the scale s with the least Σ (w − s·clip(round(w/s), −127, 127))².

    Of 65 scales from half of ``scales`` to ``scales`` the best; of 32 around it the best; then
    fitted to its own integers q = clip(round(w/s)) in closed form, s = Σ w·q / Σ q², as long as
    that helps. Never worse than ``scales``. With ``power_of_two`` it is ``scales`` or half of it.
    """
    shares = (1.0, _SMALLEST) if power_of_two else np.linspace(1.0, _SMALLEST, _CANDIDATES)
    best, least = scales.astype(np.float32), _errors(rows, scales)
    for share in shares:
        best, least = _better(rows, best, least, scales * np.float32(share))
    if power_of_two:
        return best
    first, step = best, (1 - _SMALLEST) / (_CANDIDATES - 1) / _FINER
    for offset in (*range(-_FINER, 0), *range(1, _FINER + 1)):
        tried = np.clip(first + scales * (offset * step), scales * _SMALLEST, scales)
        best, least = _better(rows, best, least, tried)
    for _ in range(_REFITS):
        steps = _steps(rows, best)
        squares = np.square(steps).sum(1)
        fitted = np.where(squares > 0, (rows * steps).sum(1) / np.maximum(squares, 1), best)
        best, least = _better(rows, best, least, np.clip(fitted, scales * _SMALLEST, scales))
    return best


def _better(
    rows: Float[np.ndarray, "channels k"],
    best: Float[np.ndarray, " channels"],
    least: Float[np.ndarray, " channels"],
    tried: Float[np.ndarray, " channels"],
) -> tuple[Float[np.ndarray, " channels"], Float[np.ndarray, " channels"]]:
    tried = tried.astype(np.float32)
    errors = _errors(rows, tried)
    wins = errors < least
    return np.where(wins, tried, best), np.where(wins, errors, least)


def _errors(
    rows: Float[np.ndarray, "channels k"], scales: Float[np.ndarray, " channels"]
) -> Float[np.ndarray, " channels"]:
    lost = _steps(rows, scales)
    lost *= scales[:, np.newaxis]
    lost -= rows
    return np.asarray(np.einsum("ck,ck->c", lost, lost, dtype=np.float64))


def _steps(
    rows: Float[np.ndarray, "channels k"], scales: Float[np.ndarray, " channels"]
) -> Float[np.ndarray, "channels k"]:
    steps = rows / scales.astype(np.float32)[:, np.newaxis]
    np.rint(steps, out=steps)
    return np.asarray(np.clip(steps, -127, 127, out=steps))


def _rows(weight: Float[np.ndarray, "..."], axis: int | None) -> Float[np.ndarray, "channels k"]:
    if axis is None:
        return weight.reshape(1, -1)
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)


def _cut(value: ir.Value | None, parameters: WeightParameters) -> None:
    """Bring what lies beyond ±127 steps to the end of the grid."""
    weight = constant_of(value)
    if value is None or weight is None:
        return
    ends = 127 * parameters.scales
    if parameters.axis is not None:
        shape = [1] * weight.ndim
        shape[parameters.axis] = -1
        ends = ends.reshape(shape)
    value.const_value = ir.tensor(np.clip(weight, -ends, ends).astype(np.float32), name=value.name)
