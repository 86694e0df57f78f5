"""Rules about the file as a whole: domains, opset, IR version, operators, its name."""

from collections.abc import Iterator

import onnx_ir as ir

from onnxq.handoff.subject import Fault, Subject, at_node
from onnxq.target import TargetRule

__all__ = [
    "default_domain",
    "file_name",
    "forbidden_ops",
    "ir_version_at_most",
    "no_subgraphs",
    "no_unused_imports",
    "operator_runs",
    "opset_within",
]

_DEFAULT = ("", "ai.onnx")
_RUNS = {
    "refused": "is refused",
    "importer only": "is taken by the importer, and where it runs is not documented",
    "unknown": "is of an operator that the target's table does not name",
}
_INTEGER_OPERATORS = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"})


def default_domain(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every node is of the default domain, and none computes on integers by itself."""
    for node in subject.nodes:
        if node.domain not in _DEFAULT:
            yield at_node(node, f"is of the domain {node.domain}")
        elif node.op_type.startswith("QLinear") or node.op_type in _INTEGER_OPERATORS:
            yield at_node(node, "is an integer operator and no Q/DQ")


def no_unused_imports(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """Every imported operator domain is used by a node."""
    used = {node.domain for node in subject.nodes} | set(_DEFAULT)
    unused = sorted(set(subject.model.opset_imports) - used)
    if unused:
        yield Fault(subject.file_name, f"imports {', '.join(unused)} for no node")


def opset_within(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The default opset lies between the two ``values`` of the rule; of a file that holds int4,
    between the first and ``limit``, if there is one."""
    low, high = map(int, rule.values)
    if rule.limit is not None and any(value.dtype == ir.DataType.INT4 for value in subject.values):
        high = rule.limit
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
    for node in subject.nodes:
        if _inner_graphs(node):
            yield at_node(node, "holds a subgraph")


def _inner_graphs(node: ir.Node) -> bool:
    kinds = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attributes.values())


def forbidden_ops(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No node is of an operator named in ``values``."""
    for node in subject.of_type(*rule.values):
        entry = subject.target.operator(node.op_type)
        yield at_node(node, f"is a {node.op_type}", entry.rewrite if entry is not None else "")


def operator_runs(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """No node is of an operator that, by the target's table, runs in a place named in ``values``.

    An operator that a ``forbidden_ops`` rule names, and one with a subgraph, is left to its rule.
    """
    target = subject.target
    named = {op for other in target.rules if other.check == "forbidden_ops" for op in other.values}
    for node in subject.nodes:
        if node.domain not in _DEFAULT or node.op_type in named or _inner_graphs(node):
            continue
        entry = target.operator(node.op_type)
        runs = entry.runs if entry is not None else target.other_operators
        if runs in rule.values:
            condition = f" ({entry.when})" if entry is not None and entry.when else ""
            rewrite = entry.rewrite if entry is not None else ""
            yield at_node(node, _RUNS.get(runs, f"runs as {runs}") + condition, rewrite)


def file_name(subject: Subject, rule: TargetRule) -> Iterator[Fault]:
    """The file's name holds none of ``values``."""
    for part in rule.values:
        if part in subject.file_name:
            yield Fault(subject.file_name, f"has `{part}` in its name")
