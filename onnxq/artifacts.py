"""The records: what each stage made, from what, as frozen models without arrays.

A record lies as JSON beside what it describes and names the SHA-256 of what it was made from, so
that a file and a record that do not belong together are found out, never used.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from onnxq.qtypes import AffineParameters, IntType, Range

__all__ = [
    "DECLARED",
    "AnswerCheck",
    "AuditRow",
    "Bundle",
    "CalibrationResult",
    "CellCount",
    "CellCoverage",
    "CheckpointFacts",
    "Collection",
    "Comparison",
    "Coverage",
    "CoverageLine",
    "ExportedModel",
    "FileFacts",
    "Finding",
    "FloatNode",
    "FusionLine",
    "GateResult",
    "InputRow",
    "Interval",
    "LayerDistance",
    "MetricRow",
    "OutsideRow",
    "ParityCheck",
    "Passport",
    "Provenance",
    "QuantizedModel",
    "RuleResult",
    "SampleChoice",
    "SizeLine",
    "StabilityRow",
    "Sufficiency",
    "TensorParameters",
    "TensorRange",
    "ValueFacts",
    "VerificationReport",
    "WaivedKey",
]

DECLARED = "declared domain"  # what a range is pinned by that a person has declared
Verdict = Literal["passed", "failed", "inconclusive", "unverified"]


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileFacts(Record):
    """A file, by name and content."""

    name: str
    sha256: str
    size_bytes: int


class Provenance(Record):
    """What made a record: versions, machine, and the options in force."""

    onnxq: str
    packages: dict[str, str]
    machine: str
    cpu_flags: tuple[str, ...] = ()
    options: dict[str, object] = {}


class ValueFacts(Record):
    """A graph input or output. ``shape`` holds a name where a dimension is free; ``domain`` is the
    interval its values are declared to lie in, in its own unit."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    domain: tuple[float, float] | None = None


class Finding(Record):
    """Something a person should know, about one place."""

    where: str
    what: str
    do: str = ""


# --- export -------------------------------------------------------------------------------------


class WaivedKey(Record):
    """A checkpoint key that did not fit and was allowed not to, by name."""

    key: str
    reason: str


class CheckpointFacts(Record):
    """The checkpoint a network was filled from."""

    file: FileFacts
    nested_under: str | None
    tensors: int
    waived: tuple[WaivedKey, ...] = ()


class ParityCheck(Record):
    """One hop of the chain torch → ONNX → cleaned ONNX on one set of inputs.

    ``max_relative`` is the largest difference over the largest magnitude of the reference.
    """

    hop: str
    inputs: str
    samples: int
    max_absolute: float
    max_relative: float
    cosine: float
    passed: bool


class ExportedModel(Record):
    """A canonical FP32 graph."""

    model: FileFacts
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    opset: int
    parameters: int
    checkpoint: CheckpointFacts | None = None
    parity: tuple[ParityCheck, ...] = ()
    steps: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    provenance: Provenance


# --- calibrate ----------------------------------------------------------------------------------


class SampleChoice(Record):
    """Which samples were taken from a source, and how. ``overlap_waived`` is the reason for which
    they may be among those of evaluation.

    ``digests`` are the SHA-256 of each one's content. ``bins`` is how many were drawn from each
    label bin or class, timestep and group that is known: the kind (``label``, ``timestep``,
    ``group``), a space, and the cell's name. ``edges`` are those of the bins, by kind; a kind
    without edges has a cell for every value.
    """

    source: str
    plan: str
    seed: int
    asked: int
    indices: tuple[int, ...]
    digests: tuple[str, ...]
    groups: tuple[str, ...] = ()
    bins: dict[str, int] = {}
    edges: dict[str, tuple[float, ...]] = {}
    label_low: float | None = None
    label_high: float | None = None
    label_mean: float | None = None
    made_up: bool = False
    overlap_waived: str = ""
    notes: tuple[str, ...] = ()


class TensorRange(Record):
    """The range of one tensor. ``low``/``high`` are what it is quantized over; ``observed_*`` the
    exact extremes seen; ``pinned`` names the declaration that overrules observation. ``values`` is
    the number of elements, over all samples. ``zeros`` of them are zero and ``outside_fraction``
    lies outside the range; both are None where extremes alone were collected."""

    low: float
    high: float
    observed_low: float
    observed_high: float
    values: int
    zeros: int | None
    outside_fraction: float | None = None
    pinned: str | None = None

    @property
    def range(self) -> Range:
        """As a ``Range``."""
        return Range.including_zero(self.low, self.high)


class Collection(Record):
    """How statistics were collected.

    ``detail`` says whether there are histograms or extremes alone; ``optimization`` under which
    semantics of ONNX Runtime the graph ran, ``batch`` how many samples at a time. ``preprocessing``
    is what was done to raw data. Statistics of two collections may be merged if all this, the model
    and the tensors are the same.
    """

    detail: Literal["extremes", "histograms"]
    optimization: Literal["none", "full"]
    batch: int
    preprocessing: str
    file: FileFacts


class OutsideRow(Record):
    """Evaluation's values outside the range that calibration gave a tensor.

    ``runs`` is the exact share of runs with any such value. ``share`` is that of all values, and
    counts whole buckets of the histogram: what lies less than one bucket (2**-7 of its value)
    beyond the range may not be in it. ``excess`` is the exact largest distance beyond the range in
    the tensor's own unit, ``steps`` the same in steps of the grid. ``calibration_share`` is what
    the method left out of calibration's own values on purpose.
    """

    tensor: str
    is_output: bool
    runs: float
    share: float
    calibration_share: float | None
    excess: float
    steps: float


class CellCount(Record):
    """Samples in one label bin or class, timestep or group."""

    cell: str
    calibration: int
    evaluation: int | None


class CellCoverage(Record):
    """All cells of one kind; ``word`` is what a person calls one of them.

    ``missing`` are those that occur in evaluation and not in calibration; groups are among them
    only if some group is in both, as a split by groups is meant to keep all of them apart.
    ``beyond`` evaluation samples have a label, of those that are numbers in bins, below the lowest
    or above the highest of calibration.
    """

    kind: Literal["label", "timestep", "group"]
    word: str
    cells: tuple[CellCount, ...]
    missing: tuple[str, ...] = ()
    beyond: int = 0

    @property
    def is_covered(self) -> bool | None:
        """Whether calibration has all cells of evaluation; None if that is not known, or there are
        more of them than calibration has samples, so that it could not."""
        held = sum(1 for cell in self.cells if cell.evaluation)
        can_be = held <= sum(cell.calibration for cell in self.cells)
        return not self.missing if held and can_be else None


class StabilityRow(Record):
    """How far a tensor's range depends on which samples were drawn.

    ``spread`` is half of a 95 % interval of its width, over the width. ``quarter`` and ``half`` are
    its mean width from a quarter and from half of the samples, over the width from all of them;
    None where there are too few to divide.
    """

    tensor: str
    spread: float
    quarter: float | None
    half: float | None


class Sufficiency(Record):
    """How many samples suffice, by the worst tensors: the 95th percentile over ``tensors``.

    ``change`` is that of the widths when the samples were last doubled, ``change_before`` the one
    before. ``enough`` is the number, extrapolated at that rate, from which on doubling changes them
    by less than ``tolerance``: an estimate, and None where it cannot be said.
    """

    samples: int
    tensors: int
    spread: float
    spread_allowed: float
    tolerance: float
    change: float | None
    change_before: float | None
    enough: int | None


class InputRow(Record):
    """Mean and standard deviation of a graph input on both sides.

    ``shift`` is the difference of the means over the pooled standard deviation, ``ratio`` the
    evaluation's standard deviation over calibration's. ``differs`` where either is too large for
    two samples of the same data.
    """

    input: str
    calibration_mean: float
    calibration_std: float
    evaluation_mean: float
    evaluation_std: float
    shift: float
    ratio: float
    differs: bool


class Passport(Record):
    """What calibration is worth: measured on evaluation samples that it has not seen.

    ``evaluated`` is the number of evaluation samples that were run, 0 where there were none; the
    cells of ``coverage`` are counted over all. ``overlap_checked`` is by what it was made sure that
    no evaluation sample is among those of calibration.
    """

    evaluated: int
    overlap_checked: tuple[Literal["content", "group"], ...] = ()
    outside: tuple[OutsideRow, ...] = ()
    coverage: tuple[CellCoverage, ...] = ()
    stability: tuple[StabilityRow, ...] = ()
    sufficiency: Sufficiency | None = None
    inputs: tuple[InputRow, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def is_stable(self) -> bool | None:
        """Whether other samples would give much the same ranges; None if it cannot be said."""
        seen = self.sufficiency
        return None if seen is None else seen.spread <= seen.spread_allowed

    @property
    def is_covered(self) -> bool | None:
        """Whether calibration has every bin, class and timestep of evaluation; None if unknown."""
        known = [seen.is_covered for seen in self.coverage if seen.is_covered is not None]
        return all(known) if known else None

    @property
    def same_preprocessing(self) -> bool | None:
        """Whether inputs look alike on both sides; None if there is no evaluation."""
        return not any(row.differs for row in self.inputs) if self.inputs else None


class CalibrationResult(Record):
    """Ranges of the tensors that will carry Q/DQ on ``target``, from chosen samples; ``excluded``
    names nodes that were to stay float, with the reason."""

    model_sha256: str
    target: str
    excluded: dict[str, str] = {}
    method: str
    choice: SampleChoice
    collection: Collection
    ranges: dict[str, TensorRange]
    passport: Passport | None = None
    findings: tuple[Finding, ...] = ()
    provenance: Provenance


# --- quantize -----------------------------------------------------------------------------------


class TensorParameters(Record):
    """Scale and zero point of an activation."""

    scale: float
    zero_point: int
    type: IntType

    @property
    def affine(self) -> AffineParameters:
        """As the arithmetic wants it."""
        return AffineParameters(self.scale, self.zero_point, self.type)


class FloatNode(Record):
    """A node that stays float, and why."""

    node: str
    op_type: str
    reason: str


class QuantizedModel(Record):
    """A Q/DQ file; ``quantized_nodes`` maps names to operators, ``calibration`` is what its ranges
    come from: the samples among them, so that it is never judged on one."""

    model: FileFacts
    fp32_sha256: str
    calibration_sha256: str
    target: str
    weight_type: IntType
    activation_type: IntType
    quantized_nodes: dict[str, str]
    float_nodes: tuple[FloatNode, ...]
    activations: dict[str, TensorParameters]
    steps: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    made_up_data: bool = False
    calibration: CalibrationResult | None = None
    provenance: Provenance


# --- verify -------------------------------------------------------------------------------------


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
    macs: int = 0
    fused_against_unfused_sqnr_db: float | None = None
    calibration: SampleChoice | None = None
    passport: Passport | None = None
    parity: tuple[ParityCheck, ...] = ()
    findings: tuple[Finding, ...] = ()
    waived: tuple[str, ...] = ()
    provenance: Provenance


# --- hand off -----------------------------------------------------------------------------------


class RuleResult(Record):
    """One rule of the target that the file breaks, or breaks with leave."""

    rule: str
    severity: Literal["error", "warning"]
    where: str
    what: str
    do: str
    source: str
    waived: str | None = None


class AnswerCheck(Record):
    """The known answers of a bundle, as replayed from the file that ships."""

    vectors: int
    optimization: Literal["full", "none"]
    bit_exact: bool


class Bundle(Record):
    """A folder that can be handed to the person who flashes the device."""

    model: FileFacts
    target: str
    verdict: Verdict
    files: tuple[FileFacts, ...]
    rules: tuple[RuleResult, ...]
    answers: AnswerCheck
    provenance: Provenance
