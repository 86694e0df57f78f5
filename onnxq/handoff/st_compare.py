"""What ST's compiler did against what was planned: rule ``compiler-report`` of the target.

The plan is a prediction and the report is right; a difference means that what was judged before the
compile (speed, memory, even numbers) does not hold for what was built.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.artifacts import (
    CompiledEpoch,
    CompiledPool,
    Finding,
    GenerateReport,
    InfoReport,
    MemoryEstimate,
    ValidateReport,
)
from onnxq.graph import load_model
from onnxq.handoff.memory import memory_of
from onnxq.handoff.prediction import predict
from onnxq.handoff.st_reports import StReport
from onnxq.target import MemoryPool, Target

__all__ = ["Plan", "departures", "plan_of"]

_ON_NPU = frozenset({"hardware", "folded"})
_EDGES = frozenset({"quantizelinear", "dequantizelinear"})
_GROSS = 2  # times more or less weights than the file has
_SLACK = 4096  # bytes that alignment and tables of the compiler may add
_NUMBER = re.compile(r"\d+(?:\.\d+)+")


@dataclass(frozen=True)
class Plan:
    """What was predicted of one model: the operator type of every node by name, those that run in
    software among them, whether an input or output stays float, the memory, and all
    multiply-accumulates."""

    target: Target
    operators: dict[str, str]
    software: frozenset[str]
    float_edges: bool
    memory: MemoryEstimate
    macs: int

    @property
    def version(self) -> str:
        """The number of the profile's tool; empty if the profile names none."""
        found = _NUMBER.search(self.target.tool_version)
        return found.group() if found else ""


def plan_of(model: Path, target: Target, *, float_edges: bool = False) -> Plan:
    """The plan for ``model``: what is predicted of its nodes and its memory.

    ``float_edges`` says that an input or output stays float on the device. Raises ModelError.
    """
    predicted = predict(load_model(model), target, file_name=model.name).nodes
    return Plan(
        target=target,
        operators={node.node: node.op_type for node in predicted},
        software=frozenset(node.node for node in predicted if node.runs not in _ON_NPU),
        float_edges=float_edges,
        memory=memory_of(model, target),
        macs=sum(node.macs for node in predicted),
    )


def departures(plan: Plan, report: StReport) -> tuple[Finding, ...]:
    """Every way in which ``report`` is not what was planned; empty if it is.

    A software epoch of a node planned for the NPU, bytes in external RAM that was not planned for,
    a pool that holds more than it can, fewer activations than the network needs, weights that are
    not the file's, another version of the tool.
    """
    found = list(_of_version(plan, report.tool_version, report.file))
    if not isinstance(report, ValidateReport):
        found += _of_epochs(plan, report.epochs)
        found += _of_pools(plan, report.pools)
        found += _of_totals(plan, report)
    return tuple(found)


# --- version ------------------------------------------------------------------------------------


def _of_version(plan: Plan, version: str, file: str) -> Iterator[Finding]:
    wanted = plan.version
    if not wanted or version == wanted or version.startswith((f"{wanted}-", f"{wanted}.")):
        return
    said = f"is of ST Edge AI Core {version}" if version else "names no version of the tool"
    name = plan.target.name.partition("@")[0]
    others = ", ".join(f"{name}@{entry.version}" for entry in plan.target.versions)
    yield Finding(
        where=file,
        what=f"{said}; the bundle was checked for {wanted}",
        do=f"compile with {wanted}, or hand off for the version you have ({others})",
    )


# --- epochs -------------------------------------------------------------------------------------


def _of_epochs(plan: Plan, epochs: Sequence[CompiledEpoch]) -> Iterator[Finding]:
    left = Counter(plan.operators[name].casefold() for name in plan.software)
    for epoch in epochs:
        if epoch.runs != "software":
            continue
        name = _node_named(plan, epoch.operation)
        kind = plan.operators[name] if name else _operator_in(epoch.operation)
        if kind.casefold() in _EDGES and (plan.software or plan.float_edges):
            continue
        if name is not None and name not in plan.software:
            yield _software(epoch, f"`{name}` ({kind}), planned for the NPU")
        elif left[kind.casefold()] > 0:
            left[kind.casefold()] -= 1
        else:
            yield _software(epoch, _unplanned(plan, kind))


def _node_named(plan: Plan, operation: str) -> str | None:
    """The node that the epoch's text names, the longest name that fits; None if none does."""
    fitting = [
        name
        for name in plan.operators
        if name and re.search(rf"(?<![\w/.]){re.escape(name)}(?![\w/.])", operation)
    ]
    return max(fitting, key=len) if fitting else None


def _operator_in(operation: str) -> str:
    found = re.search(r"[A-Za-z]+", operation)
    return found.group() if found else operation


def _unplanned(plan: Plan, kind: str) -> str:
    alike = [
        name for name, op_type in plan.operators.items() if op_type.casefold() == kind.casefold()
    ]
    if not alike:
        return f"`{kind}`, which the graph does not hold"
    planned = sum(name in plan.software for name in alike)
    nodes = ", ".join(f"`{name}`" for name in alike[:4]) + (", …" if len(alike) > 4 else "")
    return f"a `{kind}` ({nodes}); the plan has {planned} of these {len(alike)} in software"


def _software(epoch: CompiledEpoch, what: str) -> Finding:
    return Finding(
        where=f"epoch {epoch.number}",
        what=f"runs in software: {what}",
        do="see what the target's profile says of it (`onnxq targets`), rewrite or quantize it, "
        "and hand off again; what was predicted of speed does not hold",
    )


# --- memory -------------------------------------------------------------------------------------


def _of_pools(plan: Plan, pools: Sequence[CompiledPool]) -> Iterator[Finding]:
    known = {pool.name.casefold(): pool for pool in plan.target.memory}
    known |= {pool.bank.casefold(): pool for pool in plan.target.memory}
    for pool in pools:
        profile = known.get(pool.pool.casefold())
        size = pool.size_bytes if pool.size_bytes else profile.size_bytes if profile else None
        if size is not None and pool.used_bytes > size:
            yield Finding(
                where=pool.pool,
                what=f"holds {pool.used_bytes:,} bytes and has {size:,}",
                do="make the activations smaller, or give the network another pool",
            )
        if pool.used_bytes:
            yield from _of_use(plan, pool, profile)


def _of_use(plan: Plan, pool: CompiledPool, profile: MemoryPool | None) -> Iterator[Finding]:
    if profile is None:
        yield Finding(
            where=pool.pool,
            what=f"{pool.used_bytes:,} bytes lie in a memory that the profile does not know",
            do="compile with the .mpool of the bundle, or add the pool to the target's file",
        )
    elif profile.use == "application":
        yield Finding(
            where=pool.pool,
            what=f"{pool.used_bytes:,} bytes of the network lie in the application's memory",
            do="compile with the .mpool of the bundle, or see that the linker script agrees",
        )
    elif profile.use == "spill" and not plan.memory.external_bytes:
        low, high = profile.relative_cost
        yield Finding(
            where=pool.pool,
            what=f"{pool.used_bytes:,} bytes lie in external RAM, none were planned there: "
            f"{low:g} to {high:g} times slower, and no cycle count shows it",
            do="make the largest activations smaller (memory.json lists what is alive at the peak)",
        )


def _of_totals(plan: Plan, report: GenerateReport | InfoReport) -> Iterator[Finding]:
    """Totals that this network cannot have: the report's own, else the sums over its pools."""
    activations, weights = _sums(plan, report)
    if isinstance(report, GenerateReport) and report.weights_bytes is not None:
        activations, weights = report.activations_bytes, report.weights_bytes
    memory = plan.memory
    least = memory.band[0] if memory.band else memory.peak_bytes // _GROSS
    do = f"see that the report is of {memory.model} as it lies in the bundle; compile that file"
    if activations is not None and activations < least:
        yield Finding(
            where="activations",
            what=f"{activations:,} bytes are used and the network needs {least:,} at least "
            f"(estimated: {memory.peak_bytes:,})",
            do=do,
        )
    own = memory.weights_bytes
    if weights is not None and not own / _GROSS <= weights <= own * _GROSS + _SLACK:
        yield Finding(
            where="weights",
            what=f"{weights:,} bytes are stored and the file has {own:,}",
            do=do,
        )


def _sums(plan: Plan, report: GenerateReport | InfoReport) -> tuple[int | None, int | None]:
    """Activations and weights by what each pool is for; None where no pool of that kind is used."""
    flash = {
        name.casefold()
        for pool in plan.target.memory
        if pool.use == "weights"
        for name in (pool.name, pool.bank)
    }
    stored = sum(pool.used_bytes for pool in report.pools if pool.pool.casefold() in flash)
    rest = sum(pool.used_bytes for pool in report.pools) - stored
    return rest, stored or None
