"""Records of the export."""

from onnxq.artifacts.base import FileFacts, Finding, Provenance, Record, ValueFacts, WaivedKey
from onnxq.artifacts.split import Manifest

__all__ = [
    "CheckpointFacts",
    "ExportedModel",
    "ParityCheck",
]


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
    parts: Manifest | None = None
    provenance: Provenance
