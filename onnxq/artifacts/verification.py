"""Records of the verification."""

from typing import Literal

from onnxq.artifacts.base import FileFacts, Finding, Provenance, Record, Verdict
from onnxq.artifacts.calibration import Passport, SampleChoice, TensorRange
from onnxq.artifacts.execution import NodeExecution, OutputDistance
from onnxq.artifacts.export import ParityCheck
from onnxq.artifacts.quantization import FloatNode

__all__ = [
    "ST_METRICS",
    "AuditRow",
    "Comparison",
    "Coverage",
    "CoverageLine",
    "FusionLine",
    "GateResult",
    "GroupRow",
    "Interval",
    "LayerDistance",
    "MetricRow",
    "PartsCheck",
    "ProcessorCheck",
    "ProcessorRow",
    "SaturationRow",
    "SizeLine",
    "VerificationReport",
]

ST_METRICS = ("rmse", "mae", "l2r", "mean", "std", "nse", "cos")  # as ST Edge AI names them


class AuditRow(Record):
    """One operator of the file that was to be integer: what weight and inputs really are."""

    node: str
    op_type: str
    weight_type: str | None
    weight_levels: int | None
    weight_channels: int | None
    faults: tuple[str, ...] = ()


class CoverageLine(Record):
    """Integer share of one quantity; both numbers are sums over the same list of nodes."""

    integer: int
    total: int

    @property
    def fraction(self) -> float:
        """``integer / total``; 0 where there is nothing to count."""
        return self.integer / self.total if self.total else 0.0


class Coverage(Record):
    """How much of the file is integer."""

    operators: CoverageLine
    parameters: CoverageLine
    macs: CoverageLine


class FusionLine(Record):
    """What ONNX Runtime makes of one operator type of the file on this machine."""

    op_type: str
    integer: int
    total: int


class Interval(Record):
    """A 95 % confidence interval; ``method`` says how, over ``count`` ``units`` of what."""

    low: float
    high: float
    method: str
    units: str
    count: int


class MetricRow(Record):
    """One metric under every variant of the model.

    ``increase`` is how much worse INT8 is than FP32 in the metric's own unit, sign turned so that
    positive is worse; ``interval`` is that increase's.
    """

    metric: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    fp32: float
    rewritten: float
    int8: float
    int8_other: float
    increase: float | None
    interval: Interval | None
    baseline: float | None

    @property
    def rewriting_adds(self) -> float | None:
        """How much worse rewritten FP32 is than FP32 as exported; None without a better side."""
        return self._worse(self.fp32, self.rewritten)

    @property
    def quantizing_adds(self) -> float | None:
        """How much worse INT8 is than rewritten FP32; None without a better side."""
        return self._worse(self.rewritten, self.int8)

    def _worse(self, before: float, after: float) -> float | None:
        if self.better == "neither":
            return None
        return after - before if self.better == "lower" else before - after


class GroupRow(Record):
    """The gated metric for one group (subject, file)."""

    group: str
    samples: int
    fp32: float
    int8: float
    increase: float


class Comparison(Record):
    """FP32, rewritten FP32 and INT8 on the same held-out samples.

    ``judged_as`` is the semantics of the target: ``"runtime"`` (full optimization) or ``"graph"``
    (as the Q/DQ graph says); ``other`` is the one printed beside it.
    """

    source: str
    samples: int
    groups: int
    judged_as: Literal["runtime", "graph"]
    metrics: tuple[MetricRow, ...]
    by_group: tuple[GroupRow, ...]
    worst_group: str | None
    label_low: float | None = None
    label_high: float | None = None


class LayerDistance(Record):
    """Distance of one tensor between FP32 and INT8, in ST Edge AI's terms.

    ``sqnr_db`` = 10·log10(Σ ref² / Σ (ref − got)²); ``l2r`` = ‖ref − got‖₂ / ‖ref‖₂; ``nse`` =
    Nash–Sutcliffe efficiency; ``mean`` and ``std`` are those of the error.
    """

    tensor: str
    node: str
    op_type: str
    sqnr_db: float
    rmse: float
    mae: float
    l2r: float
    mean: float
    std: float
    nse: float
    cos: float


class GateResult(Record):
    """One gate and what it saw."""

    metric: str
    statement: str
    allowed: float
    point: float
    bound: float | None
    judge: Literal["point", "bound"]
    verdict: Verdict
    needs: str = ""


class SizeLine(Record):
    """One row of the size ledger."""

    what: str
    fp32_bytes: int
    int8_bytes: int | None


class PartsCheck(Record):
    """The parts that ship against the whole graph they were cut from, on the same samples.

    ``max_absolute`` is the largest difference of an output under the semantics of the target,
    ``max_as_written`` without graph optimization, where both must compute the same integers.
    """

    parts: tuple[FileFacts, ...]
    samples: int
    max_absolute: float
    max_as_written: float


class SaturationRow(Record):
    """Whether one operator's sums of pairs leave int16 on x86 processors without VNNI.

    ``channels`` of its ``of_channels`` output channels hold a pair of weights that can, for some
    activations between ``low`` and ``high`` (as uint8); ``worst_sum`` is the pair sum of largest
    magnitude. What follows is None where no data were looked at: ``positions`` output positions
    were, ``saturated`` of their ``pair_sums`` left int16, and with them ``changed`` of the
    positions' output integers (a fraction), by up to ``largest_change`` steps of the output (of the
    product itself where the output is float). ``ruled_out``: the extremes of the data allow it
    nowhere, at whatever position.
    """

    node: str
    op_type: str
    low: int
    high: int
    channels: int
    of_channels: int
    worst_sum: int
    positions: int | None = None
    pair_sums: int | None = None
    saturated: int | None = None
    changed: float | None = None
    largest_change: int | None = None
    ruled_out: bool = False
    verdict: Literal["cannot", "can", "not on the data", "does"]


class ProcessorRow(Record):
    """Known answers of a bundle replayed on one processor, at one level of optimization.

    ``part`` is empty for the whole model; ``decides`` at the level that the model was judged at.
    ``differing`` of the ``elements`` of ``vectors`` answers are not the same to the last bit, by
    ``most_steps`` output steps at most.
    """

    cpu: str
    part: str
    level: str
    decides: bool
    vectors: int
    elements: int
    differing: int
    most_steps: float


class ProcessorCheck(Record):
    """A bundle's own self-test under emulation of other processors.

    ``sums_sha256`` is that of the bundle's SHA256SUMS, ``exit_codes`` the self-test's, by
    processor; an answer may be off by ``tolerance_steps``. ``sources`` are the SHA-256 of every
    package that was fetched.
    """

    bundle: str
    sums_sha256: str
    emulator: str
    packages: dict[str, str]
    sources: dict[str, str]
    tolerance_steps: float
    exit_codes: dict[str, int]
    rows: tuple[ProcessorRow, ...]


class VerificationReport(Record):
    """Everything that was measured on the file that ships."""

    verdict: Verdict
    reasons: tuple[str, ...]
    name: str
    target: str
    fp32: FileFacts
    int8: FileFacts
    gates: tuple[GateResult, ...]
    comparison: Comparison
    audit: tuple[AuditRow, ...]
    coverage: Coverage
    fusion: tuple[FusionLine, ...]
    layers: tuple[LayerDistance, ...]
    ranges: dict[str, TensorRange] = {}
    float_nodes: tuple[FloatNode, ...] = ()
    sizes: tuple[SizeLine, ...] = ()
    parts: PartsCheck | None = None
    saturation: tuple[SaturationRow, ...] = ()
    macs: int = 0
    executions: tuple[NodeExecution, ...] = ()
    fused_against_unfused: OutputDistance | None = None
    calibration: SampleChoice | None = None
    passport: Passport | None = None
    parity: tuple[ParityCheck, ...] = ()
    findings: tuple[Finding, ...] = ()
    waived: tuple[str, ...] = ()
    provenance: Provenance
