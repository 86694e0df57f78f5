"""JUnit XML: what CI shows. Whatever is not known to be good is shown as not passed."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from onnxq.artifacts import GateResult, Verdict, VerificationReport
from onnxq.verify.report.device import verdicts
from onnxq.verify.report.formatting import number
from onnxq.verify.report.quality import SEMANTICS

__all__ = ["junit"]

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
Outcome = Literal["passed", "failure", "error", "skipped"]
_OUTCOMES: dict[Verdict, Outcome] = {
    "passed": "passed",
    "failed": "failure",
    "inconclusive": "error",
    "unverified": "error",
}


@dataclass(frozen=True)
class _Case:
    name: str
    outcome: Outcome
    kind: str
    message: str


def junit(report: VerificationReport) -> str:
    """One suite: the verdict, each gate, the audit, parity, execution on integers, and what was
    found on devices since.

    What failed is a ``failure``; what could not be judged (inconclusive, unverified) is an
    ``error``; what does not apply is ``skipped``. Times are 0, as nothing is timed here.
    """
    cases = tuple(_cases(report))
    counted = {
        f"{outcome}s" if outcome != "skipped" else outcome: str(
            sum(case.outcome == outcome for case in cases)
        )
        for outcome in ("failure", "error", "skipped")
    }
    name = _legal(f"onnxq verify {report.name} for {report.target}")
    totals = {"tests": str(len(cases)), **counted, "time": "0"}
    root = ElementTree.Element("testsuites", {"name": name, **totals})
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **totals})
    for case in cases:
        _add(suite, case, _legal(f"onnxq.{report.name}.{report.target}"))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _cases(report: VerificationReport) -> Iterable[_Case]:
    reasons = "; ".join(report.reasons)
    yield _Case("verdict", _OUTCOMES[report.verdict], report.verdict, reasons)
    for gate in report.gates:
        yield _Case(f"gate {gate.metric}", _OUTCOMES[gate.verdict], gate.verdict, _said(gate))
    faults = [f"{row.op_type} {row.node}: {fault}" for row in report.audit for fault in row.faults]
    audited = "; ".join(faults) or f"{len(report.audit)} operators without fault"
    yield _Case("audit", "failure" if faults else "passed", "failed", audited)
    yield _parity(report)
    yield _executed(report)
    for found in verdicts(report.device) if report.device is not None else ():
        outcome: Outcome = "passed" if found.passed else "failure"
        yield _Case(f"device {found.what}", outcome, "failed", found.says)


def _said(gate: GateResult) -> str:
    bound = "" if gate.bound is None else f", at most {number(gate.bound)} (95 %)"
    needs = f"; {gate.needs}" if gate.needs else ""
    limit = number(gate.allowed, trim=True)
    return f"{gate.statement}: {number(gate.point)}{bound}, allowed {limit}{needs}"


def _parity(report: VerificationReport) -> _Case:
    if not report.parity:
        return _Case("parity", "skipped", "skipped", "no record of the export")
    off = [hop for hop in report.parity if not hop.passed]
    message = "; ".join(
        f"{hop.hop} on {hop.inputs}: off by {number(hop.max_absolute)}" for hop in off
    )
    message = message or f"{len(report.parity)} hops agree"
    return _Case("parity", "failure" if off else "passed", "failed", message)


def _executed(report: VerificationReport) -> _Case:
    """Failed if nothing at all runs on integers on a machine that is the judge of it."""
    name, judged_as = "executed-integer", report.comparison.judged_as
    integers = sum(line.integer for line in report.fusion)
    total = sum(line.total for line in report.fusion)
    message = f"{integers} of {total} operators run on integers on this machine"
    if judged_as == "graph" or not total:
        said = f"the target is judged {SEMANTICS[judged_as]}; {message}"
        return _Case(name, "skipped", "skipped", said)
    return _Case(name, "passed" if integers else "failure", "failed", message)


def _add(suite: ElementTree.Element, case: _Case, classname: str) -> None:
    attributes = {"name": _legal(case.name), "classname": classname, "time": "0"}
    element = ElementTree.SubElement(suite, "testcase", attributes)
    if case.outcome == "passed":
        ElementTree.SubElement(element, "system-out").text = _legal(case.message)
    else:
        said = {"message": _legal(case.message)}
        said |= {} if case.outcome == "skipped" else {"type": case.kind}
        ElementTree.SubElement(element, case.outcome, said).text = _legal(case.message)


def _legal(text: str) -> str:
    """``text`` without the control characters that XML cannot hold."""
    return _ILLEGAL.sub("\N{REPLACEMENT CHARACTER}", text)
