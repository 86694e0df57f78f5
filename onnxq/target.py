"""Target files: what a device or runtime accepts, each fact with its source.

A file may extend another one and then holds what differs. The vendor's tool has versions; what one
of them does otherwise is laid over the profile in the same way: ``stm32n6@2.2``.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from onnxq.errors import UsageError, nearest
from onnxq.qtypes import IntType

__all__ = [
    "Fact",
    "InputsOutputs",
    "MacRate",
    "MemoryPool",
    "Operator",
    "Price",
    "Processor",
    "Sourced",
    "Target",
    "TargetRule",
    "Tier",
    "ToolVersion",
    "load_target",
    "target_names",
]

Tier = Literal[
    "hardware",
    "software integer",
    "software float",
    "software",  # integer or float, as nobody says
    "importer only",  # taken by the front end; where it runs is not documented
    "refused",
    "folded",
    "unknown",
]
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same, in C where it is built
_SUFFIXES = (".yaml", ".yml")
_KEYS = ("id", "op", "name", "version")  # by which entries of a list are told apart
_UNSOURCED = ("changes", "sources")  # what a version changes is laid over before sources are read


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Sourced(_Facts):
    """Something that is known. ``source`` says from where, ``evidence`` how well: ``documented`` by
    the vendor, ``reported`` by somebody who ran the tool or the board, ``measured`` for onnxq."""

    source: str
    evidence: Literal["documented", "reported", "measured"]


class Fact(Sourced):
    """Something known of a target, in a sentence."""

    says: str


class TargetRule(Sourced):
    """A rule that a file must keep.

    ``check`` names a function of ``handoff/rules_*.py``; ``limit`` and ``values`` are its numbers
    and words; in a file, ``limit`` may name a field of the profile. ``says`` is the rule in one
    sentence, ``do`` the way out, ``rewrite`` the step of onnxq that mends it (``input_rewrite``
    where the fault is a graph input), empty if there is none. ``then`` is where a node runs that
    breaks it, and where it ``spreads`` all others too; empty if that moves no node. ``phase`` says
    when it is applied: to ``any`` graph, FP32 or Q/DQ; to a ``quantized`` one; or to what was
    ``compiled``, by the vendor's own report.
    """

    id: str
    check: str
    phase: Literal["any", "quantized", "compiled"] = "any"
    severity: Literal["error", "warning"] = "error"
    limit: int | None = None
    values: tuple[str, ...] = ()
    says: str
    do: str
    rewrite: str = ""
    input_rewrite: str = ""
    then: Tier | Literal[""] = ""
    spreads: bool = False


class Operator(Sourced):
    """Where an operator ``runs``, ``when`` what holds; ``limits`` are the numbers of it, and
    ``rewrite`` the step of onnxq that replaces it by a better one."""

    op: str
    runs: Tier
    when: str = ""
    limits: dict[str, int | tuple[int, ...]] = {}
    rewrite: str = ""


class MemoryPool(Sourced):
    """A memory of the device. ``relative_cost`` is the time of a network that lies there, as a
    multiple (lowest, highest) of one that lies on chip."""

    name: str
    bank: str
    address: int
    size_bytes: int
    use: Literal["application", "activations", "weights", "spill"]
    byte_width: int
    relative_cost: tuple[float, float]


class MacRate(Sourced):
    """Multiply-accumulates that the device is said to do in a second at most. It bounds a time from
    below and predicts none."""

    per_second: float


class Price(Sourced):
    """What an operator costs ``on_integers``, between Q and DQ that fuse with it, and ``in_float``:
    picoseconds an element, of Conv a multiply-accumulate. Only ratios mean something; None where
    there is no such kernel."""

    op: str
    on_integers: float | None = None
    in_float: float | None = None


class InputsOutputs(Sourced):
    """Inputs and outputs of the graph: types in the file and on the device, and layouts."""

    file_types: tuple[str, ...]
    device_types: tuple[str, ...]
    layouts: tuple[str, ...]
    says: str


class Processor(Sourced):
    """The processors a runtime is meant for; None where they differ among themselves.

    ``saturates``: sums of two uint8 × int8 products are kept in 16 bits. ``emulated_as`` is the
    processor by which ``qemu-user`` stands in for them.
    """

    family: Literal["arm64", "x86-64"]
    cores: str
    dot_product: bool | None = None
    saturates: bool | None = None
    emulated_as: str = ""
    says: str


class ToolVersion(Sourced):
    """A version of the vendor's tool; ``changes`` is laid over the profile for it."""

    version: str
    says: str
    changes: dict[str, Any] = {}


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
    ``weight_types`` are those in which a file may store weights, ``weight_type`` the one that is
    written unless another is asked for; ``wide_activations`` says where an operator runs whose
    activations have 16 bits.
    ``in_place_ops`` leave their input's bytes where they are if its parameters do not change.
    ``rewrites`` are wanted at export beside those that every target gets.
    ``operators`` is the table of where each runs, ``other_operators`` where those run that it does
    not name. ``prices`` tell which operators are not worth their rounding; without any, all that
    can be integer is. ``input_rank``, ``value_rank`` and ``largest_dimension`` are limits, None
    where there is none. ``facts`` holds the source of every
    plain field, by its name; ``sources`` the works that are cited, by the key that a file cites.
    ``session_options`` are ONNX Runtime's configuration entries under which a file is verified and
    handed off. In ``commands``, ``{model}`` and ``{answers}`` stand for file names of the bundle.
    """

    name: str
    title: str
    source: str
    extends: str = ""
    tool_version: str = ""
    sources: dict[str, str] = {}
    activation_type: IntType
    weight_type: IntType
    weight_types: tuple[IntType, ...] = (IntType.INT8,)
    wide_activations: Literal["float", "refused"] = "refused"
    per_channel: bool
    activation_symmetric: bool = False
    power_of_two: bool = False
    batch: Literal["one", "free"]
    dynamic_shapes: Literal["refused", "accepted"] = "accepted"
    input_rank: int | None = None
    value_rank: int | None = None
    largest_dimension: int | None = None
    opset: tuple[int, int]
    ir_version: int
    judged_as: Literal["runtime", "graph"]
    integer_ops: tuple[str, ...]
    data_ops: tuple[str, ...]
    folded_ops: tuple[str, ...] = ()
    in_place_ops: tuple[str, ...] = ()
    rewrites: tuple[str, ...] = ()
    operators: tuple[Operator, ...] = ()
    other_operators: Tier = "unknown"
    prices: tuple[Price, ...] = ()
    alignment_bytes: int = 1
    on_chip_bytes: int | None = None
    memory: tuple[MemoryPool, ...] = ()
    mac_rate: MacRate | None = None
    io: InputsOutputs | None = None
    processor: Processor | None = None
    versions: tuple[ToolVersion, ...] = ()
    facts: dict[str, Fact] = {}
    session_options: dict[str, str] = {}
    commands: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    rules: tuple[TargetRule, ...] = ()

    @property
    def slug(self) -> str:
        """The name as part of a file's or folder's: of a target file's path, that of the file."""
        return Path(self.name).stem if self.name.endswith(_SUFFIXES) else self.name

    @property
    def fuses_int8(self) -> bool:
        """Whether ONNX Runtime's kernels take int8 activations there, as those for ARM64 do."""
        return self.processor is not None and self.processor.family == "arm64"

    @property
    def judged_level(self) -> Literal["full", "none"]:
        """ONNX Runtime's optimization under which a file for this target is judged: as the runtime
        executes, or as the graph says."""
        return "full" if self.judged_as == "runtime" else "none"

    def operator(self, op_type: str) -> Operator | None:
        """The entry of the table for an operator of the default domain; None if it has none."""
        return next((entry for entry in self.operators if entry.op == op_type), None)


def target_names() -> tuple[str, ...]:
    """Names of the targets that onnxq ships, sorted."""
    return tuple(name for name in _shipped_files() if not name.startswith("_"))


def _shipped_files() -> tuple[str, ...]:
    """Targets, and what several of them extend: those names begin with an underscore."""
    folder = resources.files("onnxq") / "targets"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_target(name: str) -> Target:
    """The profile called ``name``: one of ``target_names()``, or the path of a ``.yaml`` file.

    ``NAME@VERSION`` asks for another version of the vendor's tool. Raises UsageError with the
    nearest name if there is none, and for a file that is no target file.
    """
    return _from_file(name) if name.endswith(_SUFFIXES) else _shipped(name)


@cache
def _shipped(name: str) -> Target:
    return _from_file(name)


def _from_file(name: str) -> Target:
    try:
        data = _profile(name, ())
        _resolve_limits(data)
        _resolve_sources(data)
        return Target.model_validate(data | {"name": name})
    except ValidationError as fault:
        raise UsageError(
            "the target file is faulty\n" + "\n".join(_told(error) for error in fault.errors()),
            where=name,
            do="the files that onnxq ships are examples: `onnxq targets stm32n6 --json`",
        ) from fault
    except (AttributeError, KeyError, TypeError, ValueError) as fault:  # a list for a mapping, …
        raise UsageError(f"the target file is faulty: {fault}", where=name) from fault


def _told(error: Any) -> str:
    """One fault of a file in a line: the key, and what is wrong with it."""
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        hint = nearest(str(error["loc"][-1]), Target.model_fields) if len(error["loc"]) == 1 else ""
        return f"  unknown key `{key}`" + (f"; {hint}" if hint else "")
    if error["type"] == "missing":
        return f"  the key `{key}` is missing"
    return f"  `{key}`: {error['msg'].removeprefix('Value error, ')} (found {error['input']!r:.60})"


def _profile(name: str, above: tuple[str, ...]) -> dict[str, Any]:
    """What the file holds, laid over what it extends, with the changes of the version asked for."""
    file, _, version = (name, "", "") if name.endswith(_SUFFIXES) else name.partition("@")
    data = _read(file, above)
    if data.get("extends"):
        base, above = _beside(str(data["extends"]), file), (*above, file)
        if base in above:
            raise UsageError(f"`{base}` extends itself", where=file, do="break the circle")
        data = _laid_over(_profile(base, above), data)
    return _at_version(data, version, name) if version else data


def _read(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    if name.endswith(_SUFFIXES):
        file: Any = Path(name)
    elif name in _shipped_files():
        file = resources.files("onnxq") / "targets" / f"{name}.yaml"
    else:
        what = f"unknown target `{name}`; {nearest(name, target_names())}"
        where = f"{above[-1]}, extends" if above else "target"
        raise UsageError(what, where=where, do="or give the path of a target file (.yaml)")
    try:
        data = yaml.load(file.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        do = "check the path, and that it is YAML"
        raise UsageError(f"cannot be read: {fault}", where=name, do=do) from fault
    if not isinstance(data, dict):
        do = "begin it with `extends: NAME` and what differs"
        raise UsageError("is no target file: it holds no keys", where=name, do=do)
    return data


def _beside(base: str, file: str) -> str:
    """A path is meant from the folder of the file that names it."""
    return str((Path(file).parent / base).resolve()) if base.endswith(_SUFFIXES) else base


def _at_version(data: dict[str, Any], version: str, name: str) -> dict[str, Any]:
    known = {str(entry["version"]): entry.get("changes", {}) for entry in data.get("versions", ())}
    if version not in known:
        do = nearest(version, known) if known else "leave the version out"
        raise UsageError(f"knows no version {version}; {do}", where=name)
    return _laid_over(data, known[version])


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Key by key; lists of entries with an id, an op, a name or a version entry by entry."""
    merged = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = _laid_over(old, value)
        elif isinstance(old, list) and isinstance(value, list) and _key_of(value):
            merged[key] = _joined(old, value, _key_of(value))
        else:
            merged[key] = value
    return merged


def _key_of(entries: list[Any]) -> str:
    shared = [
        key
        for key in _KEYS
        if entries and all(isinstance(entry, dict) and key in entry for entry in entries)
    ]
    return shared[0] if shared else ""


def _joined(below: list[Any], above: list[Any], key: str) -> list[Any]:
    merged = {entry[key]: entry for entry in below}
    for entry in above:
        merged[entry[key]] = _laid_over(merged.get(entry[key], {}), entry)
    return list(merged.values())


def _resolve_limits(data: dict[str, Any]) -> None:
    """Put the number of the field in the place of its name."""
    data["rules"] = [dict(rule) for rule in data.get("rules", ())]
    for rule in data["rules"]:
        field = rule.get("limit")
        if isinstance(field, str):
            if not isinstance(data.get(field), int):
                raise ValueError(f"rule {rule.get('id')}: the profile has no number `{field}`")
            rule["limit"] = data[field]


def _resolve_sources(data: dict[str, Any]) -> None:
    """Put the works in the place of the keys that cite them."""
    works = data.get("sources", {})
    for entry in list(_sourced(data)):
        cited = entry["source"]
        keys = cited if isinstance(cited, list) else [cited]
        for key in keys:
            if key not in works:
                raise ValueError(f"cites `{key}`, no key of its sources; {nearest(key, works)}")
        entry["source"] = "; ".join(works[key] for key in keys)


def _sourced(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every entry below the profile itself that cites a source."""
    for key, value in data.items():
        if key in _UNSOURCED:
            continue
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, dict):
                if "source" in entry:
                    yield entry
                yield from _sourced(entry)
