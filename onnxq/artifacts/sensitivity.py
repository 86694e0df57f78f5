"""Records of how much each layer's quantization costs."""

import math
from typing import Literal

from onnxq.artifacts.base import FileFacts, Provenance, Record

__all__ = ["LayerSensitivity", "Sensitivity", "Trial", "TrialKind", "decibels"]

TrialKind = Literal["all", "weights", "activations", "only", "only weights", "only activations",
               "all but", "budget"]  # fmt: skip


def decibels(error: float | None) -> float | None:
    """SQNR of a share of the output's energy that is error: −10·log10; infinite for none at all."""
    if error is None or math.isnan(error):
        return error
    return -10 * math.log10(error) if error > 0 else math.inf


class Trial(Record):
    """One graph with some Q/DQ switched on, measured. ``layer`` is empty where none is meant.

    ``key`` is the digest of everything that the figure depends on; ``error`` is the mean over the
    outputs of Σ (FP32 − quantized)² / Σ FP32², over ``samples`` samples.
    """

    key: str
    kind: TrialKind
    layer: str
    error: float
    samples: int


class LayerSensitivity(Record):
    """What one layer's quantization costs, as shares of the outputs' energy that become error.

    A layer is a node with its constants and all tensors that share its output's scale; a graph
    input is one too. ``only`` it is quantized; ``without`` it all others are; ``only_weights`` and
    ``only_activations`` are of its parts. ``budget_weights`` and ``budget_activations`` are its
    parts of the whole error (see ``Sensitivity``). None where it has no such part, or that was not
    asked for. ``fisher`` is ½ Σ E[g²]·Δw² over its weights: an estimate of what rounding them adds
    to the loss, g being the gradient of one sample's loss.
    """

    layer: str
    op_type: str
    weights: int
    macs: int
    only: float | None = None
    without: float | None = None
    only_weights: float | None = None
    only_activations: float | None = None
    budget_weights: float | None = None
    budget_activations: float | None = None
    fisher: float | None = None


class Sensitivity(Record):
    """How much each layer's quantization costs, on ``samples`` samples that the ranges were
    calibrated on: they choose a precision, and judge nothing.

    Everything is computed as the graph says, without optimization. ``error`` is that of the whole
    quantized graph, ``weights_error`` and ``activations_error`` those with weights or activations
    alone. The budget switches Q/DQ on one after the other, along the graph and in each layer its
    weights before its activations; what each adds to the error is its part, so that the parts of
    all add up to ``error``. A part can be negative, where one error takes off another, and depends
    on that order; ``only`` and ``without`` do not.
    """

    name: str
    model: FileFacts
    target: str
    data: str
    data_sha256: str
    samples: int
    error: float
    weights_error: float
    activations_error: float
    layers: tuple[LayerSensitivity, ...]
    loss: str = ""
    trials: int
    provenance: Provenance
