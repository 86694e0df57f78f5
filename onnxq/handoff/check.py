"""A file against the rules of its target.

A rule is an entry of the target's YAML file and the function that it names in ``rules_*.py``.
"""

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from onnxq.artifacts import RuleResult
from onnxq.errors import RecipeError, TargetRuleError, UsageError, nearest
from onnxq.handoff import rules_file, rules_operators, rules_shapes, rules_types
from onnxq.handoff.subject import Check, subject_of
from onnxq.recipe import Waiver
from onnxq.target import Target, load_target, target_names

__all__ = ["CHECKS", "check", "refuse_broken_rules"]

CHECKS: dict[str, Check] = {
    name: getattr(module, name)
    for module in (rules_file, rules_operators, rules_shapes, rules_types)
    for name in module.__all__
}
PLACES_SHOWN = 3  # of each rule, so that all rules fit one screen


def check(
    model: ir.Model | onnx.ModelProto,
    target: Target,
    waivers: Sequence[Waiver] = (),
    *,
    file_name: str = "model.onnx",
) -> tuple[RuleResult, ...]:
    """Every place where ``model`` breaks a rule of ``target``, in the order of the rules.

    Shapes are inferred first, with constants followed. ``waivers`` name rules; what they let pass
    carries their reason. Raises RecipeError for a waiver that names no rule of any target,
    UsageError for a target file that names no check.
    """
    reasons = _reasons(target, waivers)
    subject = subject_of(model, target, file_name)
    results = []
    for rule in target.rules:
        if rule.check not in CHECKS:
            raise UsageError(
                f"unknown check `{rule.check}`; {nearest(rule.check, CHECKS)}",
                where=f"{target.name}.yaml, rule {rule.id}",
            )
        results += [
            RuleResult(
                rule=rule.id,
                severity=rule.severity,
                where=fault.where,
                what=fault.what,
                do=rule.do,
                source=rule.source,
                waived=reasons.get(rule.id),
            )
            for fault in CHECKS[rule.check](subject, rule)
        ]
    return tuple(results)


def _reasons(target: Target, waivers: Sequence[Waiver]) -> dict[str, str]:
    """Reasons by rule. A recipe may run for several targets: a rule of another one is let be."""
    own = {rule.id for rule in target.rules}
    known = own.union(rule.id for name in target_names() for rule in load_target(name).rules)
    for waiver in waivers:
        if waiver.name not in known:
            raise RecipeError(
                f"`{waiver.name}` is no rule of {target.name}; {nearest(waiver.name, own)}",
                where="handoff.waive",
                do=f"`onnxq targets {target.name}` lists its rules",
            )
    return {waiver.name: waiver.reason for waiver in waivers if waiver.name in own}


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
    raise TargetRuleError(
        "\n".join(lines),
        where=where,
        do="mend it, or waive a rule by name with a reason (handoff.waive)",
    )
