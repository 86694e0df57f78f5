"""Target files: what a device or runtime accepts, each fact with its source."""

from functools import cache
from importlib import resources
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from onnxq.errors import UsageError, nearest
from onnxq.qtypes import IntType

__all__ = ["MacRate", "Pool", "Target", "TargetRule", "load_target", "target_names"]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TargetRule(_Facts):
    """A rule that a file must keep.

    ``check`` names a function of ``handoff/rules_*.py``; ``limit`` and ``values`` are its numbers
    and words. ``says`` is the rule in one sentence, ``do`` the way out, ``evidence`` how one knows.
    """

    id: str
    check: str
    severity: Literal["error", "warning"] = "error"
    limit: int | None = None
    values: tuple[str, ...] = ()
    says: str
    do: str
    source: str
    evidence: Literal["documented", "reported", "measured"]


class Pool(_Facts):
    """A memory of the target that its compiler places tensors in.

    ``cost`` is the time that one access takes, relative to memory on the chip; ``bank`` and the
    words from ``throughput`` on are those of ST's ``.mpool`` files (``freq_ratio`` is the NPU's
    clock over the memory's).
    """

    name: str
    use: Literal["activations", "weights", "application", "spill"]
    bytes: int
    cost: float = 1.0
    address: int = 0
    bank: str = ""
    throughput: Literal["LOW", "MID", "HIGH"] = "MID"
    latency: Literal["LOW", "MID", "HIGH"] = "MID"
    byte_width: int = 1
    freq_ratio: float = 1.0
    source: str
    evidence: Literal["documented", "reported", "measured"]


class MacRate(_Facts):
    """Multiply-accumulates that the target can do in a second at most, as somebody states it."""

    per_second: float
    source: str
    evidence: Literal["documented", "reported", "measured"]


class Target(_Facts):
    """One target's profile.

    ``judged_as`` says under which semantics a file for this target is verified: ``runtime`` is
    ONNX Runtime with full optimization, ``graph`` the Q/DQ graph as written.
    ``integer_ops`` compute on integers, ``data_ops`` only move values and share their input's
    parameters, ``folded_ops`` vanish into the Q that follows where its zero point is the smallest
    integer; every other operator stays float. With ``activation_symmetric`` the zero of every
    activation is the middle of its type (0 of int8, 128 of uint8), so that behind a Relu half of
    the integers go unused. With ``power_of_two`` every scale, of activations and of weights, is a
    power of two, for hardware that shifts where others multiply. With either no operator is folded
    away, as its bounds are not those of the integers.
    ``in_place_ops`` hand their input's bytes on where parameters do not change; a tensor takes up
    whole multiples of ``alignment`` bytes in one of ``pools``. ``session_options`` are ONNX Runtime's configuration entries under which a file is verified and
    handed off. In ``commands``, ``{model}`` and ``{answers}`` stand for file names of the bundle.
    """

    name: str
    title: str
    source: str
    tool_version: str = ""
    activation_type: IntType
    weight_type: IntType
    per_channel: bool
    activation_symmetric: bool = False
    power_of_two: bool = False
    batch: Literal["one", "free"]
    opset: tuple[int, int]
    ir_version: int
    judged_as: Literal["runtime", "graph"]
    integer_ops: tuple[str, ...]
    data_ops: tuple[str, ...]
    folded_ops: tuple[str, ...] = ()
    in_place_ops: tuple[str, ...] = ()
    alignment: int = 1
    pools: tuple[Pool, ...] = ()
    mac_rate: MacRate | None = None
    session_options: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rules: tuple[TargetRule, ...] = ()


def target_names() -> tuple[str, ...]:
    """Names of the targets that onnxq ships, sorted."""
    folder = resources.files("onnxq") / "targets"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


@cache
def load_target(name: str) -> Target:
    """The profile called ``name``. Raises UsageError with the nearest name if there is none."""
    if name not in target_names():
        raise UsageError(
            f"unknown target `{name}`; {nearest(name, target_names())}", where="target"
        )
    text = (resources.files("onnxq") / "targets" / f"{name}.yaml").read_text(encoding="utf-8")
    try:
        return Target.model_validate(yaml.safe_load(text) | {"name": name})
    except ValidationError as fault:
        raise UsageError(f"the target file is faulty: {fault}", where=f"{name}.yaml") from fault
