"""What ONNX Runtime really makes of every node of a Q/DQ file, beside what it should."""

import platform
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxq.artifacts import Execution, Finding, FusionAudit, FusionLine, NodeExecution
from onnxq.computed_shapes import with_computed_shapes
from onnxq.graph import load_model, macs_of, save_model
from onnxq.kernels import Expected, expected
from onnxq.qdq import QDQ, QUANTIZE, is_folded_at_load
from onnxq.runtime import executed_operators
from onnxq.target import Target

__all__ = [
    "INT8_FUSES",
    "Executed",
    "audit_fusion",
    "config_for",
    "executed",
    "fusion_lines",
    "numbered",
    "numbers_of",
]

INT8_FUSES = {"session.qdqisint8allowed": "1"}  # what an ARM64 build does by default
_OF_X86 = "session.x64quantprecision"
_NOT_COUNTED = QDQ | {"Constant", "Cast"}
_KERNELS = frozenset({"QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"})
_BLOCKS = frozenset({"MatMulNBits"})
_INTEGERS = frozenset(
    {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT16, onnx.TensorProto.UINT16}
)
_NUMBER = re.compile(r"onnxq_(\d+)_")


@dataclass(frozen=True)
class Executed:
    """What became of one node: how it runs, and the executed operator (empty: it vanished)."""

    runs: Execution
    operator: str


def audit_fusion(path: Path, config: Mapping[str, str] | None = None) -> FusionAudit:
    """Every operator of the file as ONNX Runtime executes it under ``config``, with the reason if
    that is in float; and as it would where int8 activations fuse (ARM64).

    A difference from what the table of kernels says is a finding. Raises RuntimeFailureError if
    the file does not load, ModelError if it is no ONNX graph.
    """
    proto = load_model(path)
    model = ir.from_proto(with_computed_shapes(proto))
    with numbered(proto) as copy:
        here = executed(proto, executed_operators(copy, config))
        there = executed(proto, executed_operators(copy, _on_arm(config or {})))
    int8_fuses = (config or {}).get("session.qdqisint8allowed") == "1" or is_arm()
    rows, findings = [], []
    for number, node in enumerate(model.graph):
        if node.op_type in _NOT_COUNTED or is_folded_at_load(node):
            continue
        should = expected(node, int8_fuses=int8_fuses)
        row = _row(node, (here[number], there[number]), should)
        rows.append(row)
        if here[number].operator in _BLOCKS:
            findings.append(_weight_only(row))
        vanished = row.runs == "folded" and should.runs == "float"  # it did nothing
        if (row.runs == "float") != (should.runs == "float") and not vanished:
            findings.append(_difference(row, should))
    return FusionAudit(nodes=tuple(rows), findings=tuple(findings))


def config_for(target: Target) -> dict[str, str]:
    """The session's configuration under which this machine fuses what ``target`` would."""
    return {**target.session_options, **(INT8_FUSES if target.fuses_int8 else {})}


def _on_arm(config: Mapping[str, str]) -> dict[str, str]:
    """Under what this machine fuses as an ARM64 build does. The option of x86 processors is left
    out: it makes weights uint8, for which there is no kernel beside int8 activations."""
    return {key: value for key, value in config.items() if key != _OF_X86} | INT8_FUSES


def fusion_lines(audit: FusionAudit) -> tuple[FusionLine, ...]:
    """How many operators of each type are executed on integers; those that only move values run on
    whatever they are given and are not listed."""
    listed = [node for node in audit.nodes if node.expected != "data" and node.runs != "data"]
    total = Counter(node.op_type for node in listed)
    floating = Counter(node.op_type for node in listed if node.runs == "float")
    return tuple(
        FusionLine(op_type=kind, integer=count - floating[kind], total=count)
        for kind, count in sorted(total.items())
    )


def _row(node: ir.Node, found: tuple[Executed, Executed], should: Expected) -> NodeExecution:
    here, there = found
    floating = here.runs == "float"
    explained = floating and should.runs == "float"
    return NodeExecution(
        node=str(node.name or node.outputs[0].name),
        op_type=node.op_type,
        runs=here.runs,
        executed_as=here.operator,
        elsewhere=there.runs,
        expected=should.runs,
        macs=macs_of(node),
        cause=(should.cause if explained else "unknown") if floating else None,
        why=should.why if explained else "nothing known is against it" if floating else "",
        do=should.do if explained else "report it with the model" if floating else "",
    )


def _difference(row: NodeExecution, should: Expected) -> Finding:
    measured = f"ONNX Runtime executes it as {row.executed_as or 'nothing'} ({row.runs})"
    why = f" because {should.why}" if should.why else ""
    return Finding(
        where=f"{row.op_type} `{row.node}`",
        what=f"{measured}, and it should be {should.runs}{why}",
        do="measure this version of ONNX Runtime anew: its fusions have changed",
    )


def _weight_only(row: NodeExecution) -> Finding:
    return Finding(
        where=f"{row.op_type} `{row.node}`",
        what="its input is float and its weight dequantized: ONNX Runtime quantizes the input to "
        "int8 by itself at run time (MatMulNBits, accuracy level 4), which the graph does not say",
        do="quantize its input, or run with `session.qdq_matmulnbits_accuracy_level=1`",
    )


# --- the executed graph, node by node -----------------------------------------------------------


@contextmanager
def numbered(model: onnx.ModelProto) -> Iterator[Path]:
    """A file of the same graph whose nodes carry their numbers as names.

    ONNX Runtime derives the names of what it makes from those of what it replaces.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        node.name = f"onnxq_{number}_"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_model(copy, path)
        yield path


def executed(model: onnx.ModelProto, optimized: onnx.ModelProto) -> dict[int, Executed]:
    """What became of every node of ``model``, by number, in the graph that ONNX Runtime saved for
    its ``numbered`` form."""
    on_integers = _integer_tensors(optimized)
    found: dict[int, Executed] = {}
    activated = set()  # nodes with a float activation inside them
    outputs = {f"{node.output[0]}_nchwc": n for n, node in enumerate(model.graph.node)}
    for node in optimized.graph.node:
        for number in numbers_of(node.name, outputs):
            if node.op_type in QDQ and model.graph.node[number].op_type not in QDQ:
                continue
            found[number] = Executed(_runs(node, on_integers), node.op_type)
            if any(attribute.name == "activation" for attribute in node.attribute):
                activated.add(number)
    makers = {output: n for n, node in enumerate(model.graph.node) for output in node.output}
    for number, node in enumerate(model.graph.node):
        if number not in found:
            maker = makers.get(node.input[0], -1) if node.input else -1
            floating = maker in activated and found[maker].runs == "float"
            found[number] = Executed("float" if floating else "folded", "")
    return found


def numbers_of(name: str, outputs: Mapping[str, int]) -> list[int]:
    """Numbers of the nodes of the file that an executed node called ``name`` was made from.

    ``outputs`` maps the names that blocked convolutions are given, after their output.
    """
    if name in outputs:
        return [outputs[name]]
    return [int(number) for number in _NUMBER.findall(name)]


def _runs(node: onnx.NodeProto, on_integers: set[str]) -> Execution:
    if node.op_type in _KERNELS | _BLOCKS or node.op_type.startswith("QLinear"):
        return "integer"
    return "data" if node.input and node.input[0] in on_integers else "float"


def _integer_tensors(model: onnx.ModelProto) -> set[str]:
    """Tensors of the executed graph that hold quantized values."""
    graph = model.graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    found = {name for name, kind in kinds.items() if kind in _INTEGERS}
    found |= {tensor.name for tensor in graph.initializer if tensor.data_type in _INTEGERS}
    for node in graph.node:
        quantizes = node.op_type == QUANTIZE or node.op_type.startswith("QLinear")
        gives = node.op_type == "QGemm" and len(node.input) > 7
        moves = node.op_type not in QDQ | _KERNELS and node.input and node.input[0] in found
        if quantizes or gives or moves:
            found |= set(node.output)
    return found


def is_arm() -> bool:
    """Whether this machine is an ARM64."""
    return platform.machine().lower() in {"aarch64", "arm64"}
