"""A bundle and a dump of a device → which layer departs first, and what it looks like."""

from collections.abc import Sequence
from pathlib import Path

from onnxq.affine import dequantize
from onnxq.artifacts import DumpComparison, DumpLayer, LayerDistance
from onnxq.handoff.dump import KnownLayers, known_layers, read_dump
from onnxq.handoff.dump_compare import Departure, compare_layers
from onnxq.progress import Progress, silent
from onnxq.verify.distances import Distance

__all__ = ["compare_dump"]


def compare_dump(bundle: Path, dump: Path, progress: Progress = silent) -> DumpComparison:
    """Compare the layers in the file ``dump`` with those of the folder ``bundle``.

    Raises DataError if the dump cannot be read or fits no layer, StoreError, StaleRecordError or
    ModelError if the bundle is not whole.
    """
    known = known_layers(bundle)
    given = read_dump(dump, known)
    departures = tuple(
        progress(compare_layers(known, given), "comparing layers", len(given.integers))
    )
    layers = tuple(_row(departure, known) for departure in departures)
    departed = next((row for row in layers if row.verdict == "departs"), None)
    differing = next((row for row in layers if row.verdict != "equal"), None)
    first = departed or differing
    missing = tuple(x.name for x in known.layers if x.name not in given.integers)
    return DumpComparison(
        verdict="departs" if departed else "rounding" if differing else "equal",
        model=known.name,
        first=None if first is None else first.distance.tensor,
        statement=_statement(first, layers, missing),
        layers=layers,
        missing=missing,
        unknown=given.unknown,
        notes=(*given.notes, *_turned(departures)),
    )


def _turned(departures: Sequence[Departure]) -> Sequence[str]:
    return [
        f"`{one.layer.name}`: turned, as its numbers fit with the channels last; its shape "
        f"{list(one.integers.shape)} does not tell"
        for one in departures
        if one.turned
    ]


def _row(departure: Departure, known: KnownLayers) -> DumpLayer:
    layer = departure.layer
    reals = [
        dequantize(integers, layer.grid.scale, layer.grid.zero_point)
        for integers in (known.integers[layer.name], departure.integers)
    ]
    return DumpLayer(
        verdict=departure.verdict,
        steps=departure.steps,
        differing=departure.differing,
        own_steps=departure.own_steps,
        own_differing=departure.own_differing,
        says=departure.says,
        distance=LayerDistance(
            tensor=layer.name,
            node=layer.nodes[0] if layer.nodes else "graph input",
            op_type=layer.op_type,
            **Distance.between(*reals).figures,
        ),
    )


def _statement(first: DumpLayer | None, layers: Sequence[DumpLayer], missing: Sequence[str]) -> str:
    """The result in one sentence."""
    count = len(layers)
    seen = f"{count} of {count + len(missing)} layers" if missing else f"all {count} layers"
    if first is None:
        return f"{seen} are equal to the bundle's, integer by integer"
    where = f"`{first.distance.tensor}` ({first.distance.op_type} `{first.distance.node}`)"
    if first.verdict != "departs":
        most = max(layers, key=lambda row: row.steps)
        said = (
            f"{seen}: every difference is rounding or follows from it, from {where} on; the "
            f"largest is {_steps(most)}, in `{most.distance.tensor}`"
        )
        return "; ".join([said, *first.says])
    by = f"{_steps(first)} in {first.differing:.1%} of it"
    return "; ".join([f"{where} departs first, by up to {by}", *first.says])


def _steps(row: DumpLayer) -> str:
    return f"{row.steps} step{'' if row.steps == 1 else 's'}"
