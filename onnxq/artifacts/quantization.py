"""Records of the quantization."""

from onnxq.artifacts.base import FileFacts, Finding, Provenance, Record
from onnxq.artifacts.calibration import CalibrationResult
from onnxq.artifacts.float_steps import EqualizedModel
from onnxq.artifacts.origin import MadeFrom
from onnxq.artifacts.split import Manifest
from onnxq.artifacts.training import FineTuning
from onnxq.qtypes import AffineParameters, IntType

__all__ = [
    "CodeDifference",
    "Conversion",
    "FloatNode",
    "QuantizedModel",
    "RoundTrip",
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
    may lie in ``int8``), and why; no reason where that was asked for all nodes. ``block`` weights
    of a channel share a step; 0 if all of it do."""

    type: IntType
    stored: IntType
    block: int = 0
    reason: str = ""


class FloatNode(Record):
    """A node that stays float, and why."""

    node: str
    op_type: str
    reason: str


class CodeDifference(Record):
    """A quantized tensor of which ``codes`` numbers differ, by ``largest_step`` at most; why."""

    tensor: str
    codes: int
    largest_step: int
    reason: str


class RoundTrip(Record):
    """What the shipped file computes, beside what the graph that was trained computes.

    ``constants`` are the scales, zero points and dequantized weights and biases of the file that
    were compared with those of the training graph; ``constants_differ`` names those that are not
    equal to the last bit. On ``runs`` runs ONNX Runtime with full optimization gave the ``codes``
    numbers of ``tensors`` quantized tensors, and ``outputs`` numbers that the graph gives;
    ``differing`` and ``outputs_differ`` are what the training graph, computed on integers, gives
    otherwise. Computed in floating point, as it is trained, and of the same integers before, it
    gives ``ties`` codes one step otherwise where the value lies midway between two codes,
    ``farthest_tie`` steps from there at most; ``approximated`` are tensors where it gives other
    codes elsewhere. ``levels_differ`` codes are otherwise without optimization, where float32 sums
    have another order and differences spread.
    ``int8_kernels``: with the kernels for int8, as on ARM, and not turned into uint8 as on x86.
    """

    runs: int
    tensors: int
    codes: int
    outputs: int
    constants: int
    constants_differ: tuple[str, ...] = ()
    differing: tuple[CodeDifference, ...] = ()
    outputs_differ: int = 0
    ties: int = 0
    farthest_tie: float = 0.0
    approximated: tuple[CodeDifference, ...] = ()
    levels_differ: int = 0
    int8_kernels: bool = False

    @property
    def is_proven(self) -> bool:
        """Whether every constant, code and output is the same."""
        return not (self.constants_differ or self.differing or self.outputs_differ)


class QuantizedModel(Record):
    """A Q/DQ file; ``quantized_nodes`` maps names to operators, ``calibration`` is what its ranges
    come from: the samples among them, so that it is never judged on one. ``moved`` says by node how
    many steps its ``weight`` or ``bias`` was moved from FP32's at most, before it was rounded.
    ``weight_precision`` says by node where weights are not as the target has them by default.
    ``equalized`` is the graph of other numbers for the function of ``fp32_sha256`` that was
    quantized, if there were float steps; ``round_trip`` is there if a step learned,
    ``finetuning`` if the step ``finetune`` ran."""

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
    round_trip: RoundTrip | None = None
    finetuning: FineTuning | None = None
    weight_precision: dict[str, WeightPrecision] = {}
    findings: tuple[Finding, ...] = ()
    made_up_data: bool = False
    calibration: CalibrationResult | None = None
    equalized: EqualizedModel | None = None
    parts: Manifest | None = None
    made_from: MadeFrom | None = None
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
