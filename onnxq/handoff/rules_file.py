"""Rules about the file as a whole: domains, opset, IR version, operators, its name."""

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.handoff.subject import Fault, Subject, label_of
from onnxq.target import TargetRule

__all__ = [
    "default_domain",
    "file_name",
    "forbidden_ops",
    "ir_version_at_most",
    "no_subgraphs",
    "no_unused_imports",
    "opset_within",
]

_DEFAULT = ("", "ai.onnx")
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})


def default_domain(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every node is of the default domain, and none computes on integers by itself."""
    for node in subject.nodes:
        if node.domain not in _DEFAULT:
            yield Fault(label_of(node), f"is of the domain {node.domain}")
        elif node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPERATORS:
            yield Fault(label_of(node), "is an integer operator and no Q/DQ")


def no_unused_imports(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every imported operator domain is used by a node."""
    used = {node.domain for node in subject.nodes} | set(_DEFAULT)
    unused = sorted(set(subject.model.opset_imports) - used)
    if unused:
        yield Fault(subject.file_name, f"imports {', '.join(unused)} for no node")


def opset_within(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The default opset lies between the two ``values`` of the rule."""
    low, high = map(int, rule.values)
    opset = subject.model.opset_imports.get("", 1)
    if not low <= opset <= high:
        yield Fault(subject.file_name, f"is of opset {opset}, not {low} to {high}")


def ir_version_at_most(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The file's IR version does not exceed ``limit``."""
    version = subject.model.ir_version
    if rule.limit is not None and version > rule.limit:
        yield Fault(subject.file_name, f"is of IR version {version}, above {rule.limit}")


def no_subgraphs(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No node holds a graph of its own."""
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    for node in subject.nodes:
        if any(attribute.type in kinds for attribute in node.attributes.values()):
            yield Fault(label_of(node), "holds a subgraph")


def forbidden_ops(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No node is of an operator named in ``values``."""
    for node in subject.of_type(*rule.values):
        yield Fault(label_of(node), f"is a {node.op_type}")


def file_name(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The file's name holds none of ``values``."""
    for part in rule.values:
        if part in subject.file_name:
            yield Fault(subject.file_name, f"has `{part}` in its name")
