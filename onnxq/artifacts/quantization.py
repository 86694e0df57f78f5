"""Records of the quantization."""

from onnxq.artifacts.base import FileFacts, Finding, Provenance, Record
from onnxq.artifacts.calibration import CalibrationResult
from onnxq.qtypes import AffineParameters, IntType

__all__ = [
    "FloatNode",
    "QuantizedModel",
    "TensorParameters",
]


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
