"""The canonical form of a graph: simplified, folded, tidied and named, one step at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import ExportError, UsageError, nearest
from onnxq.export.names import canonical_names
from onnxq.export.opset import convert_opset, opset_of
from onnxq.export.rewrites.batch import unroll_batch
from onnxq.export.rewrites.castlike import resolve_castlike
from onnxq.export.rewrites.conv1d import conv1d_to_conv2d
from onnxq.export.rewrites.defaults import drop_defaults
from onnxq.export.rewrites.dropout import drop_dropout
from onnxq.export.rewrites.einsum import einsum_to_matmul
from onnxq.export.rewrites.expand import drop_expand, expand_to_copies
from onnxq.export.rewrites.fold_batchnorm import fold_batchnorm
from onnxq.export.rewrites.fold_pad import fold_pad
from onnxq.export.rewrites.fold_scale import divide_by_product, fold_scales, merge_scales
from onnxq.export.rewrites.gemm import matmul_add_to_gemm
from onnxq.export.rewrites.global_pool import mean_to_global_pool, whole_pool_to_global_pool
from onnxq.export.rewrites.hard_gate import (
    hard_sigmoid_to_clip,
    hard_swish_to_one,
    hard_swish_to_product,
)
from onnxq.export.rewrites.high_rank import lower_ranks
from onnxq.export.rewrites.identity import drop_identities
from onnxq.export.rewrites.l2_norm import lower_lp_normalization, lower_sums_of_squares
from onnxq.export.rewrites.lone_norm import norm_to_conv
from onnxq.export.rewrites.pad import negative_pad_to_slice
from onnxq.export.rewrites.reshape import drop_allowzero, merge_reshapes
from onnxq.export.rewrites.split_concat import split_concats
from onnxq.export.rewrites.transpose import merge_transposes
from onnxq.export.rewrites.unroll_loop import unroll_loops
from onnxq.export.rewrites.views import sink_views

__all__ = ["MOST_STEPS", "REWRITES", "TARGET_REWRITES", "CleanStep", "clean", "cleaning"]

Rewrite = Callable[[ir.Model], int]
REWRITES: dict[str, Rewrite] = {
    "dropped {} Dropout": drop_dropout,
    "made MatMul of {} Einsum": einsum_to_matmul,
    "made Slice of {} negative Pad": negative_pad_to_slice,
    "made Div by a norm of {} LpNormalization": lower_lp_normalization,
    "dropped {} Expand that broadcasting does": drop_expand,
    "made Gemm of {} MatMul + Add": matmul_add_to_gemm,
    "folded {} BatchNormalization": fold_batchnorm,
    "folded {} Pad": fold_pad,
    "made Mul of {} Div by a constant": divide_by_product,
    "merged {} sums or products with constants": merge_scales,
    "made Clip of {} HardSigmoid behind a layer": hard_sigmoid_to_clip,
    "folded {} sums or products with constants": fold_scales,
    "made GlobalAveragePool of {} ReduceMean": mean_to_global_pool,
    "made GlobalAveragePool of {} AveragePool": whole_pool_to_global_pool,
    "merged {} Transposes": merge_transposes,
    "merged {} views": merge_reshapes,
    "dropped `allowzero` of {} Reshape": drop_allowzero,
    "dropped {} attributes at their default": drop_defaults,
}
TARGET_REWRITES: dict[str, tuple[str, Rewrite]] = {
    "norm to conv": ("made a depthwise Conv of {} BatchNormalization", norm_to_conv),
    "conv1d to conv2d": ("made layers over two axes of {} over one", conv1d_to_conv2d),
    "lower ranks": ("wrote {} operators of high rank in four dimensions", lower_ranks),
    "unroll batch": ("unrolled the batch of {} layers", unroll_batch),
    "sink views": ("moved {} views behind the activation", sink_views),
    "sums of squares": ("wrote {} norms and squares as products", lower_sums_of_squares),
    "hard swish to one": ("made HardSwish of {} products with their gate", hard_swish_to_one),
    "hard swish to product": (
        "made products with their gate of {} HardSwish",
        hard_swish_to_product,
    ),
    "expand to copies": ("made copies of {} Expand", expand_to_copies),
}
_NEEDS_OPSET = {"hard swish to one": 14}
_OPPOSITES = ("hard swish to one", "hard swish to product")
_MOST_ROUNDS = 8  # what one rewrite leaves another may take up; five are the most that was seen
MOST_STEPS = len(REWRITES) + len(TARGET_REWRITES) + 6  # those of `cleaning`


@dataclass(frozen=True)
class CleanStep:
    """The graph after one step that changed it, and what the step did."""

    what: str
    model: onnx.ModelProto


def clean(
    model: onnx.ModelProto, opset: int | None = None, rewrites: Sequence[str] = ()
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The canonical form of ``model`` (at ``opset``, if given), and what was done to it.

    ``rewrites`` name those of TARGET_REWRITES that are wanted too. The same graph gives the same
    bytes. Raises ExportError if the graph cannot be simplified or cannot be brought to ``opset``,
    and UsageError for a rewrite that there is not.
    """
    steps = tuple(cleaning(model, opset, rewrites))
    return steps[-1].model, tuple(step.what for step in steps)


def cleaning(
    model: onnx.ModelProto,
    opset: int | None = None,
    rewrites: Sequence[str] = (),
    concats: Sequence[str] = (),
) -> Iterator[CleanStep]:
    """Every step of ``clean`` with the graph it leaves, so that each can be judged by itself.

    ``concats`` are split last: their names are those of the canonical graph.
    """
    wanted = [name for name in rewrites if opset is None or opset >= _NEEDS_OPSET.get(name, 0)]
    table = _table(wanted)
    count, current = _rewritten(_tidied(_without_constant_inputs(model)), resolve_castlike)
    if count:
        yield CleanStep(f"resolved {count} CastLike", current)
    count, current = _rewritten(current, unroll_loops)  # onnxsim would, however long they are
    if count:
        yield CleanStep(f"unrolled {count} loops", current)
    before, current = len(current.graph.node), _tidied(_simplified(current))
    dropped = before - len(current.graph.node)
    yield CleanStep(f"simplified: {dropped} of {before} nodes dropped", current)
    for step in _rounds(current, table):
        yield step
        current = step.model
    if opset is not None and opset != opset_of(current):
        what = f"opset {opset_of(current)} → {opset}"
        current = _tidied(convert_opset(current, opset))
        yield CleanStep(what, current)
    current = _canonical(current)
    yield CleanStep(f"named {len(current.graph.node)} nodes", current)
    if concats:
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(current, data_prop=True))
        count = split_concats(graph, concats)
        current = _canonical(_tidied(ir.to_proto(graph)))
        yield CleanStep(f"split {count} layers behind {', '.join(concats)} by channels", current)


def _table(names: Sequence[str]) -> dict[str, Rewrite]:
    """Every rewrite that is wanted, under what it says of itself."""
    for name in names:
        if name not in TARGET_REWRITES:
            what = f"there is no rewrite `{name}`; {nearest(name, TARGET_REWRITES)}"
            raise UsageError(what, where="rewrites of the recipe or target")
    if set(_OPPOSITES) <= set(names):
        what = "`{}` and `{}` undo each other".format(*_OPPOSITES)
        raise UsageError(what, where="rewrites of the recipe or target", do="leave one out")
    wanted = (entry for name, entry in TARGET_REWRITES.items() if name in names)
    return REWRITES | dict(wanted)


def _rounds(model: onnx.ModelProto, table: dict[str, Rewrite]) -> Iterator[CleanStep]:
    """One rewrite after the other, until none of them finds anything.

    Raises ExportError if that never happens: two of them then undo each other.
    """
    for _ in range(_MOST_ROUNDS):
        before = model
        for what, rewrite in table.items():
            count, model = _rewritten(model, rewrite)
            if count:
                yield CleanStep(what.format(count), model)
        if model is before:
            return
    raise ExportError(
        f"the rewrites find something in every one of {_MOST_ROUNDS} rounds",
        do="report the model, or take a rewrite out of the target's list",
    )


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants folded, shapes inferred, identities and duplicates dropped, by onnxsim."""
    from onnxsim import simplify  # loads torch where it is installed

    try:
        simple, _ = simplify(
            model,
            skip_fuse_bn=True,
            inline_functions=True,
            certify=False,
        )
    except Exception as fault:  # onnxsim raises whatever its C++ core says
        raise ExportError(
            f"onnxsim cannot simplify the graph: {fault}", do="check it with `onnxq inspect`"
        ) from fault
    return _inferred(simple)


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the shapes that follow. Raises ExportError where two of them contradict each other."""
    try:
        return onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as fault:
        raise ExportError(
            f"shapes of the graph contradict each other: {str(fault).strip().splitlines()[0]}",
            do="export the model again; the file may be damaged",
        ) from fault


def _without_constant_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which no graph input has a default: an initializer is a constant, nothing else."""
    constants = {tensor.name for tensor in model.graph.initializer}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [value for value in copy.graph.input if value.name not in constants]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    return copy


def _rewritten(model: onnx.ModelProto, rewrite: Rewrite) -> tuple[int, onnx.ModelProto]:
    """Apply a rewrite until it finds nothing more. The model itself is left alone."""
    graph = ir.from_proto(model)
    total = 0
    while count := rewrite(graph):
        total += count
        graph = ir.from_proto(_tidied(ir.to_proto(graph)))
    return total, ir.to_proto(graph) if total else model


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants as initializers; identities, dead nodes, unread constants and notes dropped."""
    lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    graph = lift(ir.from_proto(model)).model
    drop_identities(graph)
    for tidy in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
    ):
        graph = tidy(graph).model
    for name, value in tuple(graph.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.graph.initializers[name]
    proto = ir.to_proto(graph)
    del proto.graph.value_info[:]
    return _inferred(proto)


def _canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Named; equal constants once; without shapes inside, which every reader infers; of the oldest
    format that fits."""
    joined = common.DeduplicateHashedInitializersPass()(ir.from_proto(model)).model
    named = canonical_names(ir.to_proto(joined))
    graph = named.graph
    _name_batch(graph)
    del graph.value_info[:], named.metadata_props[:]
    graph.name, graph.doc_string, named.doc_string = "onnxq", "", ""
    named.producer_name = named.producer_version = named.domain = ""
    named.model_version = 0
    named.ir_version = onnx.helper.find_min_ir_version_for(list(named.opset_import))
    return named


def _name_batch(graph: onnx.GraphProto) -> None:
    """Call the free first dimension of the inputs ``batch``, wherever it stands."""
    shapes = [value.type.tensor_type.shape.dim for value in graph.input]
    firsts = {shape[0].dim_param for shape in shapes if shape}
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in firsts:
                dim.dim_param = "batch"
