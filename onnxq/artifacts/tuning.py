"""Records of the search for the cheapest precision that is still good enough."""

from typing import Literal

from onnxq.artifacts.base import Interval, Provenance, Record

__all__ = ["Budgets", "PlanTrial", "Tuning"]

PlanVerdict = Literal["passed", "failed", "not settled", "not possible"]


class Budgets(Record):
    """What a plan may cost: bytes of the file, its latency over FP32's, and the least share of the
    multiply–accumulates that run on the target's own integer units. None: not limited."""

    max_bytes: int | None = None
    max_latency_ratio: float | None = None
    min_hardware_macs: float | None = None


class PlanTrial(Record):
    """One plan, carried out and measured.

    ``nodes`` maps nodes to what differs from 8 bits: ``int4`` weights, ``int16`` activations,
    ``float``. ``increase`` is by how much the metric is worse than FP32's on ``samples`` of the
    ``of_samples`` there are: fewer, where the interval had settled the verdict before.
    ``hardware_macs`` is a share. ``broken`` names the budgets that it does not keep; ``reason``
    says why a plan was not possible.
    """

    key: str
    name: str
    nodes: dict[str, str]
    steps: tuple[str, ...]
    verdict: PlanVerdict
    size_bytes: int = 0
    size_ratio: float = 0.0
    increase: float | None = None
    interval: Interval | None = None
    samples: int = 0
    of_samples: int = 0
    hardware_macs: float | None = None
    latency_ratio: float | None = None
    broken: tuple[str, ...] = ()
    reason: str = ""


class Tuning(Record):
    """Every plan that was tried, and the cheapest that passed within its budgets.

    ``truth`` says what the metric was held against: ``labels``, or ``FP32`` where there are none.
    ``refused`` says by precision why the target has no place for it. ``front`` names the trials
    that no other is both smaller and better than; ``lines`` are those of a recipe.
    """

    name: str
    target: str
    metric: str
    unit: str
    limit: float
    judge: Literal["point", "bound"]
    truth: Literal["labels", "FP32"]
    data: str
    data_sha256: str
    fp32_bytes: int
    budgets: Budgets
    refused: dict[str, str]
    trials: tuple[PlanTrial, ...]
    front: tuple[str, ...]
    chosen: str | None
    advice: str
    lines: str
    notes: tuple[str, ...] = ()
    provenance: Provenance
