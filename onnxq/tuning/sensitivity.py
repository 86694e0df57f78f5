"""One layer on, one off, weights alone, activations alone; and the budget of the whole error."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.artifacts import LayerSensitivity, Sensitivity, TrialKind
from onnxq.graph import WEIGHTED, constant_of
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.quantize.sensitivity import Layer, TrialGraphs
from onnxq.store import facts_of_file, save_record
from onnxq.tuning.subject import Subject
from onnxq.tuning.trials import Meter, TrialBook

__all__ = ["MODES", "RECORD", "sensitivity"]

RECORD = "sensitivity.json"
TRIALS = "trials"
MODES = ("only", "without", "parts", "budget", "fisher")


@dataclass(frozen=True)
class _Wanted:
    """A trial: which layers' constants and tensors are quantized."""

    kind: TrialKind
    layer: str
    weights: frozenset[str]
    activations: frozenset[str]


def sensitivity(
    subject: Subject,
    folder: Path,
    *,
    samples: int,
    modes: Collection[str] = MODES,
    progress: Progress = silent,
) -> Sensitivity:
    """Measure every layer of ``subject`` on at most ``samples`` samples; the record is written to
    ``folder``, and beside it each trial at once, so that an interrupted run goes on.

    ``fisher`` is left out without a word where labels or a loss are missing, as the record's
    ``loss`` says; raises ModelError where torch cannot compute the graph exactly.
    """
    graphs = TrialGraphs(subject.planned.draft, subject.planned.graph)
    meter = Meter(subject.original, subject.samples, subject.batch, samples)
    book = TrialBook(folder / TRIALS, meter, subject.model)
    wanted = list(_wanted(graphs.layers, modes))
    errors: dict[tuple[TrialKind, str], float] = {}
    for each in progress(wanted, "measuring layers", len(wanted)):
        model = graphs.graph(each.weights, each.activations)
        errors[each.kind, each.layer] = book.measure(each.kind, each.layer, model).error
    fisher, loss = dict[str, float](), ""
    if "fisher" in modes:
        fisher, loss = _fisher(subject, meter, progress)
    found = Sensitivity(
        name=subject.name,
        model=facts_of_file(subject.model),
        target=subject.target.name,
        data=subject.samples.name,
        data_sha256=meter.samples.digest,
        samples=len(meter.samples),
        error=errors["all", ""],
        weights_error=errors["weights", ""],
        activations_error=errors["activations", ""],
        layers=_rows(graphs.layers, errors, fisher),
        loss=loss,
        trials=len(wanted),
        provenance=provenance({"modes": sorted(modes), "samples": samples}),
    )
    save_record(found, folder / RECORD)
    return found


def _wanted(layers: Collection[Layer], modes: Collection[str]) -> Iterator[_Wanted]:
    every = frozenset(layer.name for layer in layers)
    none = frozenset[str]()
    yield _Wanted("all", "", every, every)
    yield _Wanted("weights", "", every, none)
    yield _Wanted("activations", "", none, every)
    for layer in layers:
        one = frozenset({layer.name})
        if "only" in modes:
            yield _Wanted("only", layer.name, one, one)
        if "without" in modes:
            yield _Wanted("all but", layer.name, every - one, every - one)
        if "parts" in modes and layer.has_weights:
            yield _Wanted("only weights", layer.name, one, none)
        if "parts" in modes and layer.has_activations:
            yield _Wanted("only activations", layer.name, none, one)
    if "budget" in modes:
        yield from _budget(layers)


def _budget(layers: Collection[Layer]) -> Iterator[_Wanted]:
    """Q/DQ switched on along the graph; in each layer weights first. ``layer`` is what was last."""
    weights, activations = frozenset[str](), frozenset[str]()
    for layer in layers:
        one = frozenset({layer.name})
        if layer.has_weights:
            weights |= one
            yield _Wanted("budget", f"weights of {layer.name}", weights, activations)
        if layer.has_activations:
            activations |= one
            yield _Wanted("budget", f"activations of {layer.name}", weights, activations)


def _rows(
    layers: Collection[Layer],
    errors: dict[tuple[TrialKind, str], float],
    fisher: dict[str, float],
) -> tuple[LayerSensitivity, ...]:
    reached, added = 0.0, dict[str, float]()
    for (kind, step), error in errors.items():  # in the order that they were switched on
        if kind == "budget":
            added[step], reached = error - reached, error
    return tuple(
        LayerSensitivity(
            layer=layer.name,
            op_type=layer.op_type,
            weights=layer.weights,
            macs=layer.macs,
            only=errors.get(("only", layer.name)),
            without=errors.get(("all but", layer.name)),
            only_weights=errors.get(("only weights", layer.name)),
            only_activations=errors.get(("only activations", layer.name)),
            budget_weights=added.get(f"weights of {layer.name}"),
            budget_activations=added.get(f"activations of {layer.name}"),
            fisher=fisher.get(layer.name),
        )
        for layer in layers
    )


def _fisher(subject: Subject, meter: Meter, progress: Progress) -> tuple[dict[str, float], str]:
    """½ Σ E[g²]·Δw² of each layer's weights, and the loss; or nothing, and why."""
    from onnxq.quantize.torch_graph.fisher import loss_for, mean_squared_gradients

    samples = meter.samples
    if samples.labels is None:
        return {}, "no loss: the samples have no labels"
    if subject.batch != 1:
        return {}, f"no loss: the graph takes {subject.batch} samples at once"
    model = ir.to_proto(subject.planned.graph)
    first = list(meter.exact(0).values())
    loss = loss_for(first[0], samples.labels[0]) if len(first) == 1 else None
    if loss is None:
        return {}, "no loss is known for this output and these labels"
    runs = (
        (samples.row(index), float(samples.labels[index]))
        for index in progress(range(len(samples)), "squared gradients", len(samples))
    )
    squares = mean_squared_gradients(model, runs, loss)
    return dict(_weight_costs(subject, squares)), loss


def _weight_costs(subject: Subject, squares: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    plan = subject.planned.draft.plan
    for node in subject.planned.graph.graph:
        weight = constant_of(node.inputs[1]) if node.op_type in WEIGHTED else None
        name = str(node.inputs[1].name) if weight is not None and node.inputs[1] else ""
        if weight is None or name not in plan.weights or name not in squares:
            continue
        planned = plan.weights[name]
        scales, end = planned.spread(weight.ndim), planned.type.qmax
        moved = np.clip(np.rint(weight / scales), -end, end) * scales - weight
        yield str(node.name), float(0.5 * np.sum(squares[name] * np.square(moved, dtype=float)))
