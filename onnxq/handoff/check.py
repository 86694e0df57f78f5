"""A file against the rules of its target.

A rule is an entry of the target's YAML file and the function that it names in ``rules_*.py``.
"""

from collections.abc import Sequence
from typing import Literal

import onnx
import onnx_ir as ir

from onnxq.artifacts import RuleResult
from onnxq.errors import RecipeError, TargetRuleError, UsageError, nearest
from onnxq.handoff import rules_file, rules_operators, rules_shapes, rules_types
from onnxq.handoff.subject import Check, Fault, Subject, subject_of
from onnxq.recipe import Waiver
from onnxq.target import Target, TargetRule, load_target, target_names

__all__ = ["CHECKS", "Phase", "check", "faults_of", "refuse_broken_rules"]

CHECKS: dict[str, Check] = {
    name: getattr(module, name)
    for module in (rules_file, rules_operators, rules_shapes, rules_types)
    for name in module.__all__
}
Phase = Literal["any", "quantized"]
PLACES_SHOWN = 3  # of each rule, so that all rules fit one screen


def check(
    model: ir.Model | onnx.ModelProto,
    target: Target,
    waivers: Sequence[Waiver] = (),
    *,
    file_name: str = "model.onnx",
    phase: Phase = "quantized",
) -> tuple[RuleResult, ...]:
    """Every place where ``model`` breaks a rule of ``target``, in the order of the rules.

    Shapes are inferred first, for a batch of one and with constants followed. The file that ships
    is judged by all rules; an FP32 graph, with ``phase="any"``, by those that do not speak of Q/DQ.
    Rules about the compiler's report are not applied here. ``waivers`` name rules; what they let
    pass carries their reason. Raises RecipeError for a waiver that names no rule of any target,
    UsageError for a target file that names no check.
    """
    reasons = _reasons(target, waivers)
    subject = subject_of(model, target, file_name)
    return tuple(
        _result(fault, rule, reasons.get(rule.id))
        for rule, faults in faults_of(subject, phase)
        for fault in faults
    )


def faults_of(subject: Subject, phase: Phase) -> list[tuple[TargetRule, tuple[Fault, ...]]]:
    """The rules that are applied in ``phase``, each with what breaks it.

    Raises UsageError for a rule that names no check.
    """
    applied = ("any", "quantized") if phase == "quantized" else ("any",)
    found = []
    for rule in subject.target.rules:
        if rule.phase not in applied:
            continue
        if rule.check not in CHECKS:
            raise UsageError(
                f"unknown check `{rule.check}`; {nearest(rule.check, CHECKS)}",
                where=f"{subject.target.name}, rule {rule.id}",
            )
        found.append((rule, tuple(CHECKS[rule.check](subject, rule))))
    return found


def _result(fault: Fault, rule: TargetRule, waived: str | None) -> RuleResult:
    at_input = fault.value is not None and fault.value.is_graph_input()
    usual = (at_input and rule.input_rewrite) or rule.rewrite
    return RuleResult(
        rule=rule.id,
        severity=rule.severity,
        where=fault.where,
        what=fault.what,
        do=rule.do,
        source=rule.source,
        evidence=rule.evidence,
        node=str(fault.node.name or "") if fault.node is not None else "",
        tensor=str(fault.value.name) if fault.value is not None else "",
        rewrite="" if fault.rewrite is None else fault.rewrite or usual,
        waived=waived,
    )


def _reasons(target: Target, waivers: Sequence[Waiver]) -> dict[str, str]:
    """Reasons by rule. A recipe may run for several targets: a rule of another one is let be."""
    own = {rule.id for rule in target.rules}
    for waiver in waivers:
        if waiver.name not in own and waiver.name not in _rules_of_any_target():
            raise RecipeError(
                f"`{waiver.name}` is no rule of {target.name}; {nearest(waiver.name, own)}",
                where="handoff.waive",
                do=f"`onnxq targets {target.name}` lists its rules",
            )
    return {waiver.name: waiver.reason for waiver in waivers if waiver.name in own}


def _rules_of_any_target() -> frozenset[str]:
    return frozenset(rule.id for name in target_names() for rule in load_target(name).rules)


def refuse_broken_rules(results: Sequence[RuleResult], target: Target, where: str) -> None:
    """Raise TargetRuleError with every rule of severity ``error`` that is broken without leave."""
    broken: dict[str, list[RuleResult]] = {}
    for result in results:
        if result.severity == "error" and result.waived is None:
            broken.setdefault(result.rule, []).append(result)
    if not broken:
        return
    says = {rule.id: rule.says for rule in target.rules}
    lines = [f"breaks {len(broken)} rule{'s' * (len(broken) > 1)} of {target.name}"]
    for rule, places in broken.items():
        lines.append(f"  {rule}: {says[rule]}")
        lines += [f"      {place.where} {place.what}" for place in places[:PLACES_SHOWN]]
        if len(places) > PLACES_SHOWN:
            lines.append(f"      and {len(places) - PLACES_SHOWN} more")
        lines.append(f"    do: {places[0].do}")
        rewrites = dict.fromkeys(f"`{place.rewrite}`" for place in places if place.rewrite)
        if rewrites:
            lines.append(f"    onnxq mends it by: {', '.join(rewrites)}")
    raise TargetRuleError(
        "\n".join(lines),
        where=where,
        do="mend it, or waive a rule by name with a reason (handoff.waive)",
    )
