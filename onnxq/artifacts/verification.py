"""Records of the verification."""

from typing import Literal

from onnxq.artifacts.base import FileFacts, Finding, Interval, Provenance, Record, Verdict
from onnxq.artifacts.calibration import Passport, SampleChoice, TensorRange
from onnxq.artifacts.device import DeviceResults
from onnxq.artifacts.distances import LayerDistance, OutputDistance
from onnxq.artifacts.execution import NodeExecution
from onnxq.artifacts.export import ParityCheck
from onnxq.artifacts.memory import SizeLine
from onnxq.artifacts.quantization import FloatNode

__all__ = [
    "AuditRow",
    "Comparison",
    "Coverage",
    "CoverageLine",
    "FusionLine",
    "GateResult",
    "GroupRow",
    "MetricRow",
    "PartsCheck",
    "SaturationRow",
    "VerificationReport",
]


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


class VerificationReport(Record):
    """Everything that was measured on the file that ships.

    ``device`` is what was found after the hand-off, in the report that is then written anew.
    """

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
    device: DeviceResults | None = None
    provenance: Provenance
