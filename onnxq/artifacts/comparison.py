"""Records of models that are laid side by side."""

from typing import Literal

from onnxq.artifacts.base import FileFacts, Interval, Provenance, Record

__all__ = ["CandidateFacts", "Latency", "MetricOfModel", "PairedRow", "SideBySide"]


class Latency(Record):
    """Times of ``runs`` single samples on one thread, in turns with the other models, with full
    optimization. ``ratio`` is the median over that of FP32."""

    median_ms: float
    low_quartile_ms: float
    high_quartile_ms: float
    ratio: float
    runs: int


class CandidateFacts(Record):
    """One model of the comparison.

    ``judged_as`` is the semantics that its metrics were measured under (see ``Comparison``);
    ``weights`` and ``activations`` are integer types as its record says, or ``float``, or empty if
    no record says. ``size_bytes`` counts weights in a file beside it too. ``sqnr_db`` is that of
    its outputs against FP32's, the lowest if there are several; None for FP32 itself.
    """

    name: str
    kind: Literal["fp32", "recipe", "build folder", "file"]
    file: FileFacts
    target: str
    judged_as: Literal["runtime", "graph"]
    weights: str
    activations: str
    steps: tuple[str, ...] = ()
    size_bytes: int
    size_ratio: float
    sqnr_db: float | None
    latency: Latency | None


class MetricOfModel(Record):
    """One metric of one model. ``increase`` is by how much it is worse than FP32, positive is
    worse; None for FP32 itself and for metrics without a better side. ``interval`` is the paired
    95 % interval of the increase, where the metric has a value per sample."""

    model: str
    metric: str
    unit: str
    better: Literal["lower", "higher", "neither"]
    value: float
    increase: float | None
    interval: Interval | None


class PairedRow(Record):
    """Two candidates on the same samples: by how much ``second`` is worse than ``first`` in
    ``metric``, with its paired 95 % interval. Where both are right or wrong on every sample,
    ``only_first`` and ``only_second`` count the samples that one of them alone has right, and
    ``p_value`` is McNemar's, exact; it is None where samples come in groups, as they are not
    independent then."""

    metric: str
    first: str
    second: str
    increase: float
    interval: Interval | None
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None


class SideBySide(Record):
    """FP32 and its candidates on the same held-out samples.

    ``headline`` is the metric that advice is about; ``limit`` the increase over FP32 that is
    allowed in it, if one was given, and ``within`` the candidates whose whole interval keeps it,
    ``beyond`` those of which none does. The first of ``models`` is FP32.
    """

    data: str
    data_sha256: str
    samples: int
    groups: int
    headline: str
    limit: float | None
    within: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    models: tuple[CandidateFacts, ...]
    metrics: tuple[MetricOfModel, ...]
    pairs: tuple[PairedRow, ...]
    advice: str
    notes: tuple[str, ...] = ()
    provenance: Provenance
