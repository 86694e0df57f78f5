"""Records of memory and cost: what a model will take up, what it costs to run it once, and what
the vendor's compiler reports of both."""

from typing import Literal

from onnxq.artifacts.base import Record

__all__ = [
    "CompiledEpoch",
    "CompiledPool",
    "CostTotal",
    "GenerateReport",
    "InfoReport",
    "LayerCost",
    "Ledger",
    "MemoryEstimate",
    "OutputMetrics",
    "PlacedTensor",
    "PoolUse",
    "ReportedValue",
    "SizeLine",
    "TimeBound",
    "ValidateReport",
]


class PlacedTensor(Record):
    """A tensor of activations: its bytes, when it is alive, and where it would lie.

    It is written by step ``born`` and read last by step ``dies`` (inclusive; steps count the
    operators that run). ``pool`` is None where it fits nowhere, and then ``offset`` is None too;
    an offset counts from the start of the arena that the pools of one use make. For a target
    without pools everything lies in one ``internal`` arena.
    """

    tensor: str
    bytes: int
    born: int
    dies: int
    pool: Literal["internal", "external"] | None
    offset: int | None


class PoolUse(Record):
    """What of one memory pool the placement uses."""

    pool: str
    use: Literal["activations", "weights", "application", "spill"]
    bytes: int
    used_bytes: int
    relative_cost: tuple[float, float]
    source: str


class MemoryEstimate(Record):
    """An ESTIMATE of the memory that one model takes on a target; nothing here was measured.

    ``peak_bytes`` is the largest sum of tensors alive at one step, one byte an element between Q
    and DQ ("fused"): no placement needs less. ``float_peak_bytes`` is the same with every tensor
    in its float type. ``arena_bytes`` is what the placement takes in one piece, ``optimal`` whether
    that equals the peak. The triple that ST states of its models is ``internal_bytes``,
    ``external_bytes`` and ``flash_bytes`` (None where the target has no such pools); the flash is
    that of the weights alone. ``band`` is where ST's figure may lie, None where no source says.
    """

    label: str
    model: str
    sha256: str
    target: str
    weights_bytes: int
    parameters_bytes: int
    peak_bytes: int
    float_peak_bytes: int
    peak_node: str
    alive: tuple[str, ...]
    arena_bytes: int
    optimal: bool
    internal_bytes: int | None
    external_bytes: int | None
    flash_bytes: int | None
    pools: tuple[PoolUse, ...]
    band: tuple[int, int] | None
    float_nodes: tuple[str, ...]
    unknown: tuple[str, ...]
    overflow: tuple[str, ...]
    assumptions: tuple[str, ...]
    tensors: tuple[PlacedTensor, ...]


class SizeLine(Record):
    """One row of the size ledger."""

    what: str
    fp32_bytes: int
    int8_bytes: int | None


class LayerCost(Record):
    """One operator with weights: multiply-accumulates of one call, and bytes of its constants.

    ``fp32_bytes`` are those of the node of the same name in the FP32 file; None without one.
    """

    node: str
    op_type: str
    macs: int
    weight_bytes: int
    fp32_bytes: int | None


class TimeBound(Record):
    """A time below which nobody will see the model run, from a stated rate. No measurement."""

    at_least_ms: float
    how: str
    source: str


class Ledger(Record):
    """What one model weighs and what it costs, of files and graph alone.

    ``macs`` and ``weight_bytes`` are of one call; a sample takes ``calls`` of them. ``ratio`` is
    FP32 over INT8 for the constants as counted, ``predicted_ratio`` by formula (a quarter for what
    is integer, a scale and a zero point for each channel); both None without an FP32 file.
    """

    model: str
    calls: int
    sizes: tuple[SizeLine, ...]
    layers: tuple[LayerCost, ...]
    macs: int
    weight_bytes: int
    ratio: float | None
    predicted_ratio: float | None
    bound: TimeBound | None
    warnings: tuple[str, ...] = ()


class CostTotal(Record):
    """What one sample costs over all models of a system, each as often as it is called."""

    macs_per_sample: int
    weight_bytes_per_sample: int
    calls: dict[str, int]
    bound: TimeBound | None


class CompiledEpoch(Record):
    """An epoch of ST's compiler; ``operation`` is what it says runs there, empty for hardware."""

    number: int
    runs: Literal["hardware", "software"]
    operation: str = ""
    cycles: int | None = None


class CompiledPool(Record):
    """Bytes of one memory pool that the compiled network uses; ``size_bytes`` None if not said."""

    pool: str
    used_bytes: int
    size_bytes: int | None = None


class ReportedValue(Record):
    """An input or output as a report of ST's tool names it, ``dtype`` and ``shape`` in its words
    (``int8``, ``(1, 3, 8, 8)``)."""

    side: Literal["input", "output"]
    name: str
    dtype: str
    shape: tuple[int, ...]


class GenerateReport(Record):
    """``network_generate_report.txt`` of ``stedgeai generate``. ``profile`` is the one it was run
    with, as ``profile@file``; empty if the report does not repeat its command line.

    ``models`` are the names of files that it says it is about, ``values`` the inputs and outputs;
    ``weights_bytes`` and ``activations_bytes`` its own totals, ``macc`` the multiply-accumulates
    that it counts. Empty or None: it says nothing."""

    file: str
    tool_version: str
    profile: str
    model_format: str
    epochs: tuple[CompiledEpoch, ...]
    pools: tuple[CompiledPool, ...]
    models: tuple[str, ...] = ()
    values: tuple[ReportedValue, ...] = ()
    weights_bytes: int | None = None
    activations_bytes: int | None = None
    macc: int | None = None


class InfoReport(Record):
    """``network_c_info.json`` of ``stedgeai generate``: buffers summed by pool, epochs, cycles."""

    file: str
    schema_version: str
    tool_version: str
    epochs: tuple[CompiledEpoch, ...]
    pools: tuple[CompiledPool, ...]
    buffers: int
    models: tuple[str, ...] = ()


class OutputMetrics(Record):
    """One output in ``network_validate_report.txt``; None where the tool gives no number.

    Names and definitions are those of ``LayerDistance``.
    """

    output: str
    acc: float | None = None
    rmse: float | None = None
    mae: float | None = None
    l2r: float | None = None
    mean: float | None = None
    std: float | None = None
    nse: float | None = None
    cos: float | None = None


class ValidateReport(Record):
    """``network_validate_report.txt`` of ``stedgeai validate``."""

    file: str
    tool_version: str
    outputs: tuple[OutputMetrics, ...]
    models: tuple[str, ...] = ()
    values: tuple[ReportedValue, ...] = ()
