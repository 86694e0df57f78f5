"""The records: what each stage made, from what, as frozen models without arrays.

A record lies as JSON beside what it describes and names the SHA-256 of what it was made from, so
that a file and a record that do not belong together are found out, never used.
"""

from onnxq.artifacts.base import (
    FileFacts,
    Finding,
    Provenance,
    Record,
    ValueFacts,
    Verdict,
    WaivedKey,
)
from onnxq.artifacts.bundle import AnswerCheck, Bundle, RuleResult
from onnxq.artifacts.calibration import (
    DECLARED,
    CalibrationResult,
    CellCount,
    CellCoverage,
    Collection,
    InputRow,
    OutsideRow,
    Passport,
    SampleChoice,
    StabilityRow,
    Sufficiency,
    TensorRange,
)
from onnxq.artifacts.export import CheckpointFacts, ExportedModel, ParityCheck
from onnxq.artifacts.quantization import FloatNode, QuantizedModel, TensorParameters
from onnxq.artifacts.split import HostStep, Manifest, PartFacts, RunStep, Step
from onnxq.artifacts.verification import (
    AuditRow,
    Comparison,
    Coverage,
    CoverageLine,
    FusionLine,
    GateResult,
    GroupRow,
    Interval,
    LayerDistance,
    MetricRow,
    SizeLine,
    VerificationReport,
)

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
    "GroupRow",
    "HostStep",
    "InputRow",
    "Interval",
    "LayerDistance",
    "Manifest",
    "MetricRow",
    "OutsideRow",
    "ParityCheck",
    "PartFacts",
    "Passport",
    "Provenance",
    "QuantizedModel",
    "Record",
    "RuleResult",
    "RunStep",
    "SampleChoice",
    "SizeLine",
    "StabilityRow",
    "Step",
    "Sufficiency",
    "TensorParameters",
    "TensorRange",
    "ValueFacts",
    "Verdict",
    "VerificationReport",
    "WaivedKey",
]
