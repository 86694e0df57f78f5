"""Records of what ONNX Runtime executes, node by node, and of where the time goes."""

from typing import Literal

from onnxq.artifacts.base import Finding, Record

__all__ = [
    "Execution",
    "FloatCause",
    "FusionAudit",
    "NodeExecution",
    "NodeTime",
    "OperatorTime",
    "TimeLedger",
]

Execution = Literal["integer", "data", "folded", "float"]
FloatCause = Literal[
    "no integer kernel",
    "no Q on its output",
    "used as float too",
    "activation not folded",
    "int8 activations on x86",
    "re-scaled data mover",
    "int4 without Cast",
    "16-bit activations",
    "float input",
    "mixed types",
    "not quantized",
    "unknown",
]


class NodeExecution(Record):
    """What the runtime makes of one node of the file.

    ``runs`` is measured: ``integer`` by an integer kernel, ``data`` on the integers as they are,
    ``folded`` into a neighbour, or ``float``; ``executed_as`` is the operator that does it, empty
    for one that vanished. ``elsewhere`` is the same where int8 activations fuse (ARM64).
    ``expected`` is what the table of kernels says. For float: the ``cause``, ``why`` and what to
    ``do``.
    """

    node: str
    op_type: str
    runs: Execution
    executed_as: str
    elsewhere: Execution
    expected: Execution
    macs: int = 0
    cause: FloatCause | None = None
    why: str = ""
    do: str = ""


class FusionAudit(Record):
    """Every node of the file as it is executed; ``findings`` are differences from the table."""

    nodes: tuple[NodeExecution, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def integer_macs(self) -> int:
        """Multiply-accumulates done by integer kernels, as measured."""
        return sum(node.macs for node in self.nodes if node.runs == "integer")

    @property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return sum(node.macs for node in self.nodes)


class OperatorTime(Record):
    """All nodes of one executed operator: how many, and their ``share`` of the time."""

    operator: str
    count: int
    share: float


class NodeTime(Record):
    """One node of the file: what it is executed as, and its ``share`` of the time."""

    node: str
    executed_as: str
    share: float


class TimeLedger(Record):
    """Where the time goes, in shares of the whole; medians over ``runs``, one thread.

    ``to_unfused`` is the time of a run over that of the same file with fusion switched off
    (``session.disable_quant_qdq=1``); ``to_float`` over that of the FP32 model, or if
    ``float_is_twin`` of the file with its Q and DQ taken out. Shares are the profiler's, ratios are
    measured without it.
    """

    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]
    integer: float
    floating: float
    quantizing: float
    layout: float
    to_unfused: float
    to_float: float
    float_is_twin: bool
    runs: int
    made_up_data: bool
