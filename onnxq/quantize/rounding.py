"""The refine step ``rounding``: up or down, as the layer's output asks and not the weight alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Float, Float64, Int64

from onnxq.graph import constant_of, output_channel_axis
from onnxq.pads import pads_of
from onnxq.pair_sums import has_pair_sums, reduction_rows
from onnxq.quantize.descent import least_error_rounding, plain_rounding
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.measuring import measuring_session
from onnxq.quantize.plan import WeightParameters
from onnxq.runtime import in_parallel, with_outputs

__all__ = ["round_weights"]

_ABLE = frozenset({"Conv", "Gemm", "MatMul"})
_DAMPING = 0.05  # of the mean square of an input, added to each: few samples say little of each
_HELD_BYTES = 512_000_000  # of second moments at once; beyond, the samples pass again
_LEAST, _LEAST_NARROW, _CANDIDATES = 0.7, 0.5, 16  # shares of a scale that are tried


@dataclass(frozen=True)
class _Layer:
    """A node whose weight is rounded, and the tensor of the Q/DQ form that it is multiplied with.

    ``rows`` is the weight as (groups, channels of a group, K), ``shares`` those of the planned
    scales that are tried; for ``partners`` see ``least_error_rounding``.
    """

    node: ir.Node
    data: str
    rows: Float[np.ndarray, "groups channels k"]
    scales: Float[np.ndarray, "groups channels"]
    most: int
    has_bias: bool
    shares: tuple[float, ...] = (1.0,)
    partners: Int64[np.ndarray, " k"] | None = None
    factors: Float[np.ndarray, "groups channels k"] | None = None  # multipliers of blocks

    def steps(
        self, group: int, scales: Float64[np.ndarray, " channels"]
    ) -> Float64[np.ndarray, "channels #k"]:
        """The step of each weight of a group's rows."""
        wide = scales[:, np.newaxis]
        return wide if self.factors is None else wide * self.factors[group]

    @property
    def bytes(self) -> int:
        """Of its second moments."""
        groups, _, length = self.rows.shape
        return int(8 * groups * length**2)


@dataclass
class _Moments:
    """Sums over positions: how many, of the inputs, of the products of each two of them."""

    count: int
    first: Float64[np.ndarray, "groups k"]
    second: Float64[np.ndarray, "groups k k"]

    def add(self, other: "_Moments") -> None:
        """Take the sums of more positions in."""
        self.count += other.count
        self.first += other.first
        self.second += other.second

    def weighing(self, *, centred: bool) -> Float64[np.ndarray, "groups k k"]:
        """What an error e of a row costs is eᵀ · this · e: the mean square of what it adds to the
        output, about its mean where a bias takes that off, without what is there by chance."""
        mean = self.first / self.count
        matrix = self.second / self.count
        if centred:
            matrix = matrix - mean[:, :, np.newaxis] * mean[:, np.newaxis, :]
        eye = np.eye(matrix.shape[1])
        diagonal = np.einsum("gkk->gk", matrix)
        damping = _DAMPING * diagonal.mean(1) + np.finfo(np.float64).tiny
        kept = 1.0 - np.array([_chance(each, self.count) for each in matrix])
        matrix = matrix * np.where(eye > 0, 1.0, kept[:, np.newaxis, np.newaxis])
        return np.asarray(matrix + damping[:, np.newaxis, np.newaxis] * eye)


def round_weights(draft: Draft, evidence: Evidence) -> tuple[Draft, str]:
    """The draft with weights rounded for the least squared error of each layer's output.

    Per layer and output channel Σ (Σ_k (ŵ_k − w_k) x_k)² over samples and positions is made small
    by ``least_error_rounding``, x being the quantized graph's own inputs; where the layer has a
    constant bias, about the mean, which goes into the bias. The weights lie on their grids then.
    ConvTranspose and a MatMul with several matrices keep plain rounding. The samples pass once for
    every 512 MB of second moments; memory is those and one sample's activations.
    Source of the objective: Nagel et al. 2020, arXiv 2004.10568, equation 13.
    """
    graph = draft.copy()
    model = draft.quantized()
    layers, left = _layers(graph, model, draft)
    if not layers:
        return draft, f"no layer can be rounded so: {left}"
    shares: list[float] = []
    plan = dict(draft.plan.weights)
    groups = list(_held_together(layers))
    for number, together in enumerate(groups, 1):
        what = f"inputs of layers, {number} of {len(groups)}"
        moments = _moments(model, together, evidence, what)
        for layer in evidence.progress(together, "rounding weights", len(together)):
            found = moments[str(layer.node.name)]
            steps, scales, share = _rounded(layer, found)
            shares.append(share)
            _write(layer, steps, scales, found.first / found.count)
            name = str(layer.node.inputs[1].name) if layer.node.inputs[1] else ""
            if plan[name].axis is not None:
                plan[name] = replace(plan[name], scales=scales.reshape(-1).astype(np.float32))
    what = f"squared error of {len(shares)} layers' outputs × {np.mean(shares):.3f}, mean of layers"
    draft = replace(draft, graph=graph, plan=replace(draft.plan, weights=plan))
    return draft, what + (f"; plainly rounded: {left}" if left else "")


def _layers(graph: ir.Model, model: onnx.ModelProto, draft: Draft) -> tuple[list[_Layer], str]:
    """Those that can be rounded so, and the names of the others."""
    rewritten = {node.name: node for node in model.graph.node}
    found, left, seen = [], [], set[str]()
    for node in graph.graph:
        value = node.inputs[1] if len(node.inputs) > 1 else None
        planned = draft.plan.weights.get(str(value.name)) if value is not None else None
        if planned is None or value is None or str(node.name) not in draft.plan.nodes:
            continue
        weight = constant_of(value)
        is_plain = node.attributes.get_int("transA", 0) == 0
        is_matrix = node.op_type != "MatMul" or (weight is not None and weight.ndim == 2)
        is_able = node.op_type in _ABLE and is_plain and is_matrix
        if weight is None or not is_able:
            left.append(str(node.name))
            continue
        if str(value.name) in seen:  # rounded for the first node that it serves
            continue
        seen.add(str(value.name))
        rows = _rows(node, weight)
        scales = np.broadcast_to(planned.scales.astype(np.float64), (rows[..., 0].size,))
        found.append(
            _Layer(
                node=node,
                data=rewritten[str(node.name)].input[0],
                rows=rows.astype(np.float64),
                scales=scales.reshape(rows.shape[:2]),
                most=planned.type.qmax,
                has_bias=_has_bias(node),
                shares=_shares(planned, draft),
                partners=_partners(node, weight) if draft.narrow else None,
                factors=_factors(node, planned, weight.shape),
            )
        )
    return found, ", ".join(left)


def _factors(
    node: ir.Node, planned: WeightParameters, shape: tuple[int, ...]
) -> Float[np.ndarray, "groups channels k"] | None:
    """The multipliers of a weight's blocks, laid out as its rows."""
    if planned.blocks is None:
        return None
    return _rows(node, planned.blocks.spread(shape).astype(np.float64))


def _shares(planned: WeightParameters, draft: Draft) -> tuple[float, ...]:
    """Of a planned scale; where narrowing has widened it, back to what it would have been."""
    if planned.axis is None or draft.target.power_of_two:
        return (1.0,)
    return tuple(np.linspace(1.0, _LEAST_NARROW if draft.narrow else _LEAST, _CANDIDATES).tolist())


def _has_bias(node: ir.Node) -> bool:
    """Whether it has a constant bias, with one number for each output, that serves nothing else."""
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array, weight = constant_of(bias), constant_of(node.inputs[1])
    if bias is None or array is None or weight is None or len(bias.uses()) != 1:
        return False
    is_plain = node.attributes.get_float("beta", 1.0) == 1.0
    return is_plain and array.shape == (weight.shape[output_channel_axis(node)],)


def _partners(node: ir.Node, weight: Float[np.ndarray, "..."]) -> Int64[np.ndarray, " k"] | None:
    """For each place of a row the other of its pair, −1 for none; None for a node that does not sum
    in pairs."""
    if not has_pair_sums(node):
        return None
    places = np.arange(_rows(node, weight).shape[2])
    is_turned = node.op_type != "Conv" and node.attributes.get_int("transB", 0) == 0
    shape = (len(places), 1) if is_turned else (1, *weight.shape[1:])
    order = reduction_rows(node, places.reshape(shape))[0]
    partners = np.full(len(places), -1)
    even, odd = order[: len(order) // 2 * 2 : 2], order[1::2]
    partners[even], partners[odd] = odd, even
    return partners


def _rows(
    node: ir.Node, weight: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "groups channels k"]:
    if node.op_type == "Conv":
        groups = node.attributes.get_int("group", 1)
        return weight.reshape(groups, len(weight) // groups, -1)
    is_transposed = node.attributes.get_int("transB", 0) == 1
    return (weight if is_transposed else weight.T)[np.newaxis]


def _write(
    layer: _Layer,
    steps: Float64[np.ndarray, "groups channels k"],
    scales: Float64[np.ndarray, "groups channels"],
    mean: Float64[np.ndarray, "groups k"],
) -> None:
    """Give the node the rounded weight, and its bias what that takes off the mean output."""
    value, bias = layer.node.inputs[1], layer.node.inputs[2] if layer.has_bias else None
    old = constant_of(value)
    if value is None or old is None:
        return
    rows = np.stack([steps[g] * layer.steps(g, scales[g]) for g in range(len(steps))])
    old_bias = constant_of(bias)
    if bias is not None and old_bias is not None:
        lost = np.einsum("gck,gk->gc", layer.rows - rows, mean).reshape(-1)
        bias.const_value = ir.tensor((old_bias + lost).astype(np.float32), name=bias.name)
    is_turned = layer.node.op_type != "Conv" and layer.node.attributes.get_int("transB", 0) == 0
    array = rows[0].T if is_turned else rows.reshape(old.shape)
    value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=value.name)


def _chance(matrix: Float64[np.ndarray, "k k"], count: int) -> float:
    """The share to take off the inputs' correlations, as chance shows them: 1 for few positions of
    many inputs, next to nothing for many of few.

    Source: Chen et al. 2010, doi 10.1109/TSP.2010.2053029, the estimator OAS, on correlations.
    """
    spread = np.sqrt(np.maximum(np.diag(matrix), 0))
    alive = spread > 0
    seen = matrix[np.ix_(alive, alive)] / np.outer(spread[alive], spread[alive])
    length = len(seen)
    squares = float(np.square(seen).sum()) - length  # of the correlations alone
    if squares <= 0:
        return 0.0
    signal = (1 - 2 / length) * (squares + length) + length**2
    return float(min(1.0, signal / ((count + 1 - 2 / length) * squares)))


def _rounded(
    layer: _Layer, moments: _Moments
) -> tuple[Float64[np.ndarray, "groups channels k"], Float64[np.ndarray, "groups channels"], float]:
    """The integers and their scales, and their squared error as a share of plain rounding's."""
    found, scales, losses = np.empty_like(layer.rows), layer.scales.copy(), [0.0, 0.0]
    for group, weighing in enumerate(moments.weighing(centred=layer.has_bias)):
        rows = layer.rows[group]
        wide = layer.steps(group, scales[group])
        plain = plain_rounding(rows, wide, layer.most, layer.partners)
        losses[0] += _losses(plain, rows, wide, weighing).sum()
        scales[group] = _best_scales(layer, group, scales[group], weighing)
        wide = layer.steps(group, scales[group])
        found[group] = least_error_rounding(rows, wide, weighing, layer.most, layer.partners)
        losses[1] += _losses(found[group], rows, wide, weighing).sum()
    return found, scales, losses[1] / losses[0] if losses[0] else 1.0


def _best_scales(
    layer: _Layer,
    group: int,
    scales: Float64[np.ndarray, " channels"],
    weighing: Float64[np.ndarray, "k k"],
) -> Float64[np.ndarray, " channels"]:
    """For each channel that share of ``scales`` with which plain rounding has the least error."""
    rows = layer.rows[group]
    best, least = scales.copy(), np.full(len(rows), np.inf)
    for share in layer.shares:
        tried = (scales * share).astype(np.float32).astype(np.float64)
        wide = layer.steps(group, tried)
        losses = _losses(
            plain_rounding(rows, wide, layer.most, layer.partners), rows, wide, weighing
        )
        better = losses < least
        best[better], least[better] = tried[better], losses[better]
    return best


def _losses(
    steps: Float64[np.ndarray, "channels k"],
    rows: Float64[np.ndarray, "channels k"],
    scales: Float64[np.ndarray, "channels #k"],
    weighing: Float64[np.ndarray, "k k"],
) -> Float64[np.ndarray, " channels"]:
    errors = steps * scales - rows
    return np.asarray(((errors @ weighing) * errors).sum(1))


def _held_together(layers: Sequence[_Layer]) -> Iterator[list[_Layer]]:
    """Layers in order, as many at a time as memory allows."""
    together: list[_Layer] = []
    for layer in layers:
        if together and sum(held.bytes for held in (*together, layer)) > _HELD_BYTES:
            yield together
            together = []
        together.append(layer)
    if together:
        yield together


def _moments(
    model: onnx.ModelProto, layers: Sequence[_Layer], evidence: Evidence, what: str
) -> Mapping[str, _Moments]:
    """By node, over the runs to measure on. Only what the tensors need is run."""
    session = measuring_session(with_outputs(model, sorted({layer.data for layer in layers})))
    runs = [int(run) for run in np.flatnonzero(~evidence.is_held_back)]

    def of_run(index: int) -> list[_Moments]:
        tensors = session.run(evidence.run(runs[index]))
        return [_of_columns(_columns(layer, tensors[layer.data])) for layer in layers]

    sums: list[_Moments] = []
    for found in evidence.progress(in_parallel(of_run, len(runs)), what, len(runs)):
        if not sums:
            sums = found
            continue
        for total, more in zip(sums, found, strict=True):
            total.add(more)
    return {str(layer.node.name): total for layer, total in zip(layers, sums, strict=True)}


def _of_columns(columns: Float[np.ndarray, "groups k positions"]) -> _Moments:
    return _Moments(
        count=columns.shape[2],
        first=columns.sum(2, dtype=np.float64),
        second=np.matmul(columns, columns.swapaxes(1, 2)).astype(np.float64),
    )


def _columns(
    layer: _Layer, data: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "groups k positions"]:
    """What each row of the weight is multiplied with, a column for every position and sample."""
    if layer.node.op_type != "Conv":
        return np.ascontiguousarray(data.reshape(1, -1, data.shape[-1]).swapaxes(1, 2))
    weight, attributes = layer.node.inputs[1], layer.node.attributes
    kernel = tuple(weight.shape.numpy()[2:]) if weight is not None and weight.shape else ()
    rank = len(kernel)
    strides = tuple(attributes.get_ints("strides", (1,) * rank))
    dilations = tuple(attributes.get_ints("dilations", (1,) * rank))
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    auto, given = attributes.get_string("auto_pad", "NOTSET"), attributes.get_ints("pads", ())
    before, behind = pads_of(auto, given, data.shape[2:], reach, strides)
    padded = np.pad(data, ((0, 0), (0, 0), *zip(before, behind, strict=True)))
    outputs = [(n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, strides, strict=True)]
    taps = [
        padded[
            (
                slice(None),
                slice(None),
                *(
                    slice(tap * dilation, tap * dilation + (count - 1) * stride + 1, stride)
                    for tap, dilation, count, stride in zip(
                        place, dilations, outputs, strides, strict=True
                    )
                ),
            )
        ]
        for place in product(*map(range, kernel))
    ]
    stacked = np.stack(taps, axis=2)  # samples, channels, taps, positions
    stacked = np.moveaxis(stacked.reshape(*stacked.shape[:3], -1), 0, 2)
    groups = layer.rows.shape[0]
    return np.ascontiguousarray(stacked).reshape(groups, layer.rows.shape[2], -1)
