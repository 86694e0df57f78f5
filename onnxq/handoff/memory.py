"""What memory a model will need on its target: an estimate before any compile, and called one."""

import math
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from onnxq.artifacts import MemoryEstimate, PlacedTensor, PoolUse
from onnxq.graph import load_model, with_batch_of_one
from onnxq.handoff.arena import height_of, place
from onnxq.handoff.ledger import constants_of_node, operators_of, parameters_bytes, stored_bytes
from onnxq.handoff.liveness import Buffer, fused_lives, lives_in_float, most_at_once
from onnxq.store import sha256_of_file
from onnxq.target import MemoryPool, Target

__all__ = ["MEMORY_FILE", "memory_lines", "memory_of"]

MEMORY_FILE = "memory.json"
_LABEL = (
    "ESTIMATE from the graph, a lower bound; nothing was compiled or measured, and what the "
    "vendor's compiler reports overrules it"
)
_OFF_BY = (-0.29, 0.14)  # of ST's figure, on three CNNs: LarocheC, budget-calibration.md
_TIMES_TOO_LOW = 12  # once, for a graph with float islands: the same source
_LISTED = 6


def memory_of(model: Path, target: Target) -> MemoryEstimate:
    """Estimate the memory of ``model``, operators run in the order of its file, batch 1 if free.

    Raises ModelError for a file that is no model, StoreError.
    """
    graph = ir.from_proto(with_batch_of_one(load_model(model))).graph
    fused, floats = fused_lives(graph, target), lives_in_float(graph, target)
    step, peak = most_at_once(fused)
    whole = place(fused.buffers)
    arena = height_of(fused.buffers, whole)
    inside, outside = _placed(fused.buffers, whole, target)
    weights = stored_bytes(c for node in operators_of(graph) for c in constants_of_node(node))
    has_pools = bool(_pools(target, "activations"))
    is_known = has_pools and not fused.float_nodes and not fused.unknown
    internal, external = height_of(fused.buffers, inside), height_of(fused.buffers, outside)
    return MemoryEstimate(
        label=_LABEL,
        model=model.name,
        sha256=sha256_of_file(model),
        target=target.name,
        weights_bytes=weights,
        parameters_bytes=parameters_bytes(graph),
        peak_bytes=peak,
        float_peak_bytes=most_at_once(floats)[1],
        peak_node=fused.steps[step] if fused.steps else "",
        alive=tuple(b.tensor for b in _alive_at(fused.buffers, step)),
        arena_bytes=arena,
        optimal=arena == peak,
        internal_bytes=internal if has_pools else None,
        external_bytes=external if has_pools else None,
        flash_bytes=weights if _pools(target, "weights") else None,
        pools=_pool_uses(target, internal, external, weights),
        band=_band(peak) if is_known else None,
        float_nodes=fused.float_nodes,
        unknown=fused.unknown,
        overflow=_overflow(fused.buffers, inside, outside, weights, target),
        assumptions=_assumptions(target),
        tensors=tuple(
            PlacedTensor(
                tensor=buffer.tensor,
                bytes=buffer.bytes,
                born=buffer.born,
                dies=buffer.dies,
                pool="internal" if near is not None else "external" if far is not None else None,
                offset=near if near is not None else far,
            )
            for buffer, near, far in zip(fused.buffers, inside, outside, strict=True)
        ),
    )


# --- placement ----------------------------------------------------------------------------------


def _pools(target: Target, use: str) -> list[MemoryPool]:
    return [pool for pool in target.memory if pool.use == use]


def _capacity(target: Target, use: str) -> int | None:
    """Bytes of all pools of one use; None if the target names none."""
    sizes = [pool.size_bytes for pool in _pools(target, use)]
    if not sizes:
        return None
    usable = target.on_chip_bytes if use == "activations" else None
    return min(sum(sizes), usable) if usable else sum(sizes)


def _placed(
    buffers: Sequence[Buffer], whole: tuple[int | None, ...], target: Target
) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """Offsets on the chip, as in the ``whole`` arena if that fits, and in external memory for what
    finds no room there."""
    room = _capacity(target, "activations")
    fits = room is None or height_of(buffers, whole) <= room
    inside = whole if fits else place(buffers, room)
    left = [index for index, offset in enumerate(inside) if offset is None]
    spilled = place([buffers[index] for index in left], _capacity(target, "spill") or 0)
    at = dict(zip(left, spilled, strict=True))
    return inside, tuple(at.get(index) for index in range(len(buffers)))


def _pool_uses(target: Target, internal: int, external: int, weights: int) -> tuple[PoolUse, ...]:
    """Pools of one use fill up in the order of the profile."""
    left = {"activations": internal, "spill": external, "weights": weights, "application": 0}
    uses = []
    for pool in target.memory:
        used = min(left[pool.use], pool.size_bytes)
        left[pool.use] -= used
        uses.append(
            PoolUse(
                pool=pool.name,
                use=pool.use,
                bytes=pool.size_bytes,
                used_bytes=used,
                relative_cost=pool.relative_cost,
                source=pool.source,
            )
        )
    return tuple(uses)


def _overflow(
    buffers: Sequence[Buffer],
    inside: Sequence[int | None],
    outside: Sequence[int | None],
    weights: int,
    target: Target,
) -> tuple[str, ...]:
    found = [
        f"`{buffer.tensor}` ({_kib(buffer.bytes)}) fits into no memory for activations"
        for buffer, near, far in zip(buffers, inside, outside, strict=True)
        if near is None and far is None
    ]
    room = _capacity(target, "weights")
    if room is not None and weights > room:
        found.append(f"weights of {_kib(weights)} are more than the {_kib(room)} for them")
    return tuple(found)


def _alive_at(buffers: Sequence[Buffer], step: int) -> list[Buffer]:
    alive = [buffer for buffer in buffers if buffer.born <= step <= buffer.dies]
    return sorted(alive, key=lambda buffer: -buffer.bytes)


def _band(peak: int) -> tuple[int, int]:
    """Where ST's own figure lies if the estimate is off by as much as others' were."""
    low, high = _OFF_BY
    return math.floor(peak / (1 + high)), math.ceil(peak / (1 + low))


def _assumptions(target: Target) -> tuple[str, ...]:
    stays = ", ".join(target.in_place_ops)
    said = [
        "operators run in the order of the file; a compiler may choose another",
        "between DQ and Q a tensor takes one byte an element, inputs and outputs of the graph too",
        f"every tensor takes whole multiples of {target.alignment_bytes} bytes",
        f"in place where parameters do not change: {stays}"
        if stays
        else "no operator works in place",
        "a Relu or Clip overwrites a float tensor that nobody else reads",
        "no scratch memory of operators, no copies for another layout",
        "flash holds the weights alone; the share of code, and what the compiler makes of scales "
        "and zero points, is unknown (ST states 1.2 times the weights' bytes for MobileNetV2)",
    ]
    if target.memory:
        said.append("pools of one use are taken as one piece")
    return tuple(said)


# --- what the README says -----------------------------------------------------------------------


def memory_lines(estimate: MemoryEstimate) -> list[str]:
    """Lines of Markdown for README.md: the triple, the peak and what is alive there, the doubts."""
    lines = [f"{estimate.label}.", ""]
    if estimate.internal_bytes is not None and estimate.external_bytes is not None:
        flash = "unknown" if estimate.flash_bytes is None else _kib(estimate.flash_bytes)
        lines.append(
            f"- internal RAM {_kib(estimate.internal_bytes)}, external RAM "
            f"{_kib(estimate.external_bytes)}, weights in flash {flash} (+ code, unknown)"
        )
    lines += [
        f"- activations at their peak: {_kib(estimate.peak_bytes)} fused (1 byte inside Q/DQ), "
        f"{_kib(estimate.float_peak_bytes)} if every tensor were float; weights "
        f"{_kib(estimate.weights_bytes)}",
        f"- the peak is at {estimate.peak_node}, where {_first(estimate.alive)} are alive",
        f"- placed in one piece: {_kib(estimate.arena_bytes)}"
        + (", which no placement betters" if estimate.optimal else ""),
    ]
    if estimate.band is not None:
        low, high = estimate.band
        lines.append(
            f"- ST's figure is likely between {_kib(low)} and {_kib(high)}: such estimates were "
            "between 29 % below and 14 % above it on three CNNs"
        )
    if estimate.float_nodes:
        lines.append(
            f"- {len(estimate.float_nodes)} operators compute in float "
            f"({_first(estimate.float_nodes)}): such an estimate was once {_TIMES_TOO_LOW} times "
            "too low"
        )
    lines += [f"- NOT COUNTED: {what}" for what in estimate.unknown]
    lines += [f"- OVERFLOW: {what}" for what in estimate.overflow]
    lines += [f"- taken for granted: {what}" for what in estimate.assumptions]
    return lines


def _first(names: Sequence[str]) -> str:
    told = ", ".join(name if "`" in name else f"`{name}`" for name in names[:_LISTED])
    more = len(names) - _LISTED
    return told + (f" and {more} more" if more > 0 else "")


def _kib(count: int) -> str:
    return f"{count / 1024:,.1f} KiB"
