"""Records of how far one tensor is from another, in ST Edge AI's terms."""

from onnxq.artifacts.base import Record

__all__ = ["ST_METRICS", "Distances", "LayerDistance", "OutputDistance"]

ST_METRICS = ("rmse", "mae", "l2r", "mean", "std", "nse", "cos")  # as ST Edge AI names them


class Distances(Record):
    """Distance between a reference and what was got in its place.

    ``sqnr_db`` = 10·log10(Σ ref² / Σ (ref − got)²); ``l2r`` = ‖ref − got‖₂ / ‖ref‖₂; ``nse`` =
    Nash–Sutcliffe efficiency; ``mean`` and ``std`` are those of the error.
    """

    sqnr_db: float
    rmse: float
    mae: float
    l2r: float
    mean: float
    std: float
    nse: float
    cos: float


class LayerDistance(Distances):
    """Distance of one tensor between FP32 and INT8."""

    tensor: str
    node: str
    op_type: str


class OutputDistance(Distances):
    """How far INT8 fused is from INT8 as the graph says, over all outputs and samples.

    ``steps`` is the largest difference of one value in steps of its output's scale; None where an
    output has no scale.
    """

    samples: int
    largest: float
    steps: float | None = None
