"""Records of the quantization."""

from onnxq.artifacts.base import FileFacts, Finding, Provenance, Record
from onnxq.artifacts.calibration import CalibrationResult
from onnxq.artifacts.float_steps import EqualizedModel
from onnxq.artifacts.split import Manifest
from onnxq.qtypes import AffineParameters, IntType

__all__ = [
    "Conversion",
    "FloatNode",
    "QuantizedModel",
    "TensorParameters",
    "WeightPrecision",
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


class WeightPrecision(Record):
    """The grid of a node's weight, the type in which the file stores its integers (``int4`` numbers
    may lie in ``int8``), and why; no reason where that was asked for all nodes."""

    type: IntType
    stored: IntType
    reason: str = ""


class FloatNode(Record):
    """A node that stays float, and why."""

    node: str
    op_type: str
    reason: str


class QuantizedModel(Record):
    """A Q/DQ file; ``quantized_nodes`` maps names to operators, ``calibration`` is what its ranges
    come from: the samples among them, so that it is never judged on one. ``moved`` says by node how
    many steps its ``weight`` or ``bias`` was moved from FP32's at most, before it was rounded.
    ``weight_precision`` says by node where weights are not as the target has them by default.
    ``equalized`` is the graph of other numbers for the function of ``fp32_sha256`` that was
    quantized, if there were float steps."""

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
    moved: dict[str, dict[str, float]] = {}
    weight_precision: dict[str, WeightPrecision] = {}
    findings: tuple[Finding, ...] = ()
    made_up_data: bool = False
    calibration: CalibrationResult | None = None
    equalized: EqualizedModel | None = None
    parts: Manifest | None = None
    provenance: Provenance


class Conversion(Record):
    """Two files that hold the same numbers, with int8 activations in one and uint8 in the other.

    On ``samples`` (random numbers if ``made_up_data``) all outputs were equal to the last bit
    without optimization, and ``integers_compared`` values of ``activations`` tensors 128 apart.
    """

    source: FileFacts
    converted: FileFacts
    was: IntType
    became: IntType
    activations: int
    samples: int
    made_up_data: bool
    integers_compared: int
    provenance: Provenance
