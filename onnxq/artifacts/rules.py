"""Records of the check against a target: rules that are broken, and where nodes will run."""

from typing import Literal

from onnxq.artifacts.base import Record

__all__ = [
    "NodePrediction",
    "Prediction",
    "PredictionShare",
    "RuleResult",
]


class RuleResult(Record):
    """One rule of the target that the file breaks at one place, or breaks with leave.

    ``node`` and ``tensor`` name what it is about, empty where that is the file as a whole;
    ``rewrite`` is the step of onnxq that mends it, empty if there is none.
    """

    rule: str
    severity: Literal["error", "warning"]
    where: str
    what: str
    do: str
    source: str
    evidence: Literal["documented", "reported", "measured"] | None = None
    node: str = ""
    tensor: str = ""
    rewrite: str = ""
    waived: str | None = None


class NodePrediction(Record):
    """Where one node is expected to run, and why there; ``macs`` are its multiply-accumulates."""

    node: str
    op_type: str
    runs: str
    why: str
    macs: int


class PredictionShare(Record):
    """What runs in one place: nodes, their multiply-accumulates, and the share of all of those."""

    runs: str
    nodes: int
    macs: int
    share: float


class Prediction(Record):
    """Where the nodes of a graph are expected to run on a target.

    A PREDICTION from the target's profile: nothing was compiled or run. ``of`` says of what: a
    ``float`` graph as it would be quantized, or a ``quantized`` one. Q and DQ are no ``nodes``;
    those of a Q/DQ file where a float operator begins or ends, which run beside it, are
    ``borders``. Those of the graph's inputs and outputs are not among them.
    """

    target: str
    tool_version: str
    of: Literal["float", "quantized"]
    nodes: tuple[NodePrediction, ...]
    borders: int = 0
    shares: tuple[PredictionShare, ...]

    @property
    def software_epochs(self) -> int:
        """Nodes that stop the hardware to run on the processor, and the borders around them."""
        software = [node for node in self.nodes if node.runs.startswith("software")]
        return len(software) + self.borders
