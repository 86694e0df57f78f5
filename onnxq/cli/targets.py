"""``onnxq targets|check``: what a target takes, and whether a model is that."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from rich.table import Table

from onnxq.artifacts import Finding, Prediction, RuleResult
from onnxq.cli.console import DONE, DOUBT, Screen, command_options
from onnxq.cli.flags import parsed_waivers, path_type, say_findings
from onnxq.cli.saturation import say_saturation
from onnxq.errors import EXIT_PASSED, EXIT_WORSE
from onnxq.recipe import Waiver
from onnxq.target import Operator, Sourced, Target, load_target, target_names

if TYPE_CHECKING:
    import onnx

__all__ = ["check", "judge_for", "say_broken_rules", "targets"]

_BROKEN = "[red]✗[/] "
_PLACES_SHOWN = 5
_KIB, _MIB = 1024, 1024**2


# --- onnxq targets ------------------------------------------------------------------------------


@click.command()
@click.argument("name", required=False)
@command_options
def targets(name: str | None, screen: Screen) -> int:
    """List the targets, or show the profile of NAME, with the source of everything it says.

    NAME may be the path of a target file of your own (.yaml), and NAME@VERSION another version of
    the vendor's tool.
    """
    if name is None:
        width = max(map(len, target_names()))
        for known in target_names():
            screen.say(f"  {known:<{width}} {load_target(known).title}")
        screen.result({"exit_code": EXIT_PASSED, "targets": list(target_names())})
        return EXIT_PASSED
    target = load_target(name)
    _show(target, screen)
    screen.result({"exit_code": EXIT_PASSED, "target": target.model_dump(mode="json")})
    return EXIT_PASSED


def _show(target: Target, screen: Screen) -> None:
    weights = f"{target.weight_type}{' per channel' if target.per_channel else ''}"
    screen.say(target.title, style="bold")
    screen.say(
        f"  activations {target.activation_type}, weights {weights}; opset {target.opset[0]} to "
        f"{target.opset[1]}; batch {target.batch}; verified as {target.judged_as}"
    )
    if target.tool_version:
        screen.say(f"  tool: {target.tool_version}")
    for line in target.source.splitlines():
        screen.say(f"  {line}")
    _show_facts(target, screen)
    _show_operators(target, screen)
    _show_memory(target, screen)
    _show_versions(target, screen)
    _show_rules(target, screen)
    options = [f"{key} = {value}" for key, value in target.session_options.items()]
    works = [f"{key}: {work}" for key, work in target.sources.items()]
    rest = {
        "Rewrites at export": target.rewrites,
        "Prices, picoseconds an element (of Conv a product), on integers and in float": [
            f"{price.op}: {_price(price.on_integers)}, {_price(price.in_float)} "
            f"{_known(price, target)}"
            for price in target.prices
        ],
        "Notes": target.notes,
        "Session options": options,
        "Commands": target.commands,
        "Sources": works,
    }
    for title, lines in rest.items():
        if lines:
            _section(screen, title, lines)


def _price(picoseconds: float | None) -> str:
    return "none" if picoseconds is None else f"{picoseconds:g}"


def _show_facts(target: Target, screen: Screen) -> None:
    lines = [
        f"{field.replace('_', ' ')} {_value_of(target, field)}: {fact.says} {_known(fact, target)}"
        for field, fact in target.facts.items()
    ]
    if target.io is not None:
        lines.append(f"inputs and outputs: {target.io.says} {_known(target.io, target)}")
    if target.processor is not None:
        cores, says = target.processor.cores, target.processor.says
        lines.append(f"processor {cores}: {says} {_known(target.processor, target)}")
    if target.mac_rate is not None:
        rate = f"{target.mac_rate.per_second:,.0f}"
        lines.append(f"multiply-accumulates a second: {rate} {_known(target.mac_rate, target)}")
    _section(screen, "Facts", lines)


def _value_of(target: Target, field: str) -> str:
    value = getattr(target, field, "")
    return " to ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _show_operators(target: Target, screen: Screen) -> None:
    """One section for each place; operators without a condition stand together at its end."""
    for tier in dict.fromkeys(entry.runs for entry in target.operators):
        entries = [entry for entry in target.operators if entry.runs == tier]
        lines = [
            f"{entry.op}: {_condition(entry)} {_known(entry, target)}"
            for entry in entries
            if _condition(entry)
        ]
        plain: dict[str, list[str]] = {}
        for entry in entries:
            if not _condition(entry):
                plain.setdefault(_known(entry, target), []).append(entry.op)
        lines += [f"{', '.join(names)} {known}" for known, names in plain.items()]
        _section(screen, f"Operators: {tier}", lines)
    if target.operators:
        _section(screen, f"Every other operator: {target.other_operators}", [])


def _condition(entry: Operator) -> str:
    limits = [
        f"{name.replace('_', ' ')} {_in_words(limit)}" for name, limit in entry.limits.items()
    ]
    rewrite = f"onnxq: {entry.rewrite}." if entry.rewrite else ""
    numbers = f"({'; '.join(limits)})" if limits else ""
    return " ".join(part for part in (entry.when, numbers, rewrite) if part)


def _in_words(limit: int | tuple[int, ...]) -> str:
    return str(limit) if isinstance(limit, int) else ", ".join(map(str, limit))


def _show_memory(target: Target, screen: Screen) -> None:
    lines = []
    for pool in target.memory:
        cost = "–".join(f"{bound:g}" for bound in dict.fromkeys(pool.relative_cost))
        lines.append(
            f"{pool.name} ({pool.bank}, {pool.address:#x}): {_size(pool.size_bytes)}, {pool.use}, "
            f"time x {cost} {_known(pool, target)}"
        )
    if lines:
        _section(screen, "Memory, and the time of a network there against one on chip", lines)


def _size(size_bytes: int) -> str:
    whole = size_bytes // _MIB if size_bytes % _MIB == 0 else 0
    return f"{whole} MiB" if whole else f"{size_bytes / _KIB:g} KiB"


def _show_versions(target: Target, screen: Screen) -> None:
    lines = [f"{entry.version}: {entry.says} {_known(entry, target)}" for entry in target.versions]
    if lines:
        _section(screen, f"Versions (`{target.name.partition('@')[0]}@VERSION`)", lines)


def _show_rules(target: Target, screen: Screen) -> None:
    """Errors first, then warnings; what is applied to a Q/DQ file alone says so."""
    for severity in ("error", "warning"):
        lines = []
        for rule in target.rules:
            if rule.severity == severity:
                phase = {"any": "", "quantized": " (Q/DQ)", "compiled": " (report)"}[rule.phase]
                rewrites = dict.fromkeys(filter(None, (rule.rewrite, rule.input_rewrite)))
                mends = f" onnxq: {', '.join(rewrites)}." if rewrites else ""
                lines.append(f"{rule.id}{phase}: {rule.says}{mends} {_known(rule, target)}")
        if lines:
            _section(screen, f"Rules: {severity}", lines)


def _known(entry: Sourced, target: Target) -> str:
    """How it is known and from where, by the keys of the works that are cited."""
    keys, rest = [], entry.source
    while rest:
        key = next((key for key, work in target.sources.items() if rest.startswith(work)), None)
        if key is None:
            return f"[{entry.evidence}: {entry.source}]"
        keys.append(key)
        rest = rest.removeprefix(target.sources[key]).removeprefix("; ")
    return f"[{entry.evidence}: {', '.join(keys)}]"


def _section(screen: Screen, title: str, lines: Iterable[str]) -> None:
    screen.say("")
    screen.say(title, style="bold")
    for line in lines:
        screen.say(f"  {line}")


# --- onnxq check --------------------------------------------------------------------------------


@click.command()
@click.argument("model", type=path_type)
@click.option("--target", required=True, help="Target: a name of `onnxq targets`, or a file.")
@click.option("--waive", multiple=True, metavar="RULE=REASON", help="Let a broken rule pass.")
@command_options
def check(model: Path, target: str, waive: tuple[str, ...], screen: Screen) -> int:
    """Judge MODEL.onnx by the rules of a target, and say where its nodes will run there.

    An FP32 model is judged by the rules that do not speak of Q/DQ. Where nodes run is a prediction
    from the target's profile: nothing is compiled or run. Exit code 1 if a rule is broken.
    """
    import onnx_ir as ir

    from onnxq.graph import load_model
    from onnxq.verify.audit import refuse_other_forms

    profile = load_target(target)
    waivers = parsed_waivers(waive, [rule.id for rule in profile.rules])
    proto = load_model(model)
    refuse_other_forms(ir.from_proto(proto), model.name)
    code, facts = judge_for(model, proto, profile, screen, waivers)
    screen.result({"exit_code": code, "target": profile.name, **facts})
    return code


def judge_for(
    model: Path,
    proto: "onnx.ModelProto",
    target: Target,
    screen: Screen,
    waivers: Sequence[Waiver] = (),
) -> tuple[int, dict[str, Any]]:
    """Print what the rules and the profile of ``target`` say of a model; the exit code, and all of
    it for a program. An FP32 model is judged by the rules that do not speak of Q/DQ."""
    from onnxq.handoff.check import check as check_rules
    from onnxq.handoff.hazards import hazards
    from onnxq.handoff.prediction import predict

    name = model.name
    prediction = predict(proto, target, file_name=name)
    quantized = prediction.of == "quantized"
    phase: Literal["any", "quantized"] = "quantized" if quantized else "any"
    results = check_rules(proto, target, waivers, file_name=name, phase=phase)
    findings = hazards(proto, target) if quantized else ()
    broken = [r for r in results if r.severity == "error" and r.waived is None]
    _say_rules(results, target, screen)
    _say_prediction(prediction, target, screen)
    _say_hazards(findings, screen)
    rows = say_saturation(model, target, None, screen) if quantized else ()
    ids = dict.fromkeys(result.rule for result in broken)
    count = f"{len(ids)} rule{'s' * (len(ids) > 1)}"
    verdict = f"breaks {count} of {target.name}" if ids else f"keeps the rules of {target.name}"
    screen.say(f"{name} {verdict}", mark=_BROKEN if ids else DONE, style="bold")
    return EXIT_WORSE if broken else EXIT_PASSED, {
        "rules": [result.model_dump(mode="json") for result in results],
        "prediction": prediction.model_dump(mode="json"),
        "findings": [finding.model_dump(mode="json") for finding in findings],
        "saturation": [row.model_dump(mode="json") for row in rows],
    }


def _say_rules(results: Sequence[RuleResult], target: Target, screen: Screen) -> None:
    says = {rule.id: rule.says for rule in target.rules}
    for rule in dict.fromkeys(result.rule for result in results):
        places = [result for result in results if result.rule == rule]
        first = places[0]
        waived = first.waived is not None
        mark = DONE if waived else _BROKEN if first.severity == "error" else DOUBT
        screen.say(f"{rule}: {says[rule]}", mark=mark)
        for place in places[:_PLACES_SHOWN]:
            rewrite = f" → {place.rewrite}" if place.rewrite else ""
            screen.say(f"    {place.where} {place.what}{rewrite}")
        if len(places) > _PLACES_SHOWN:
            screen.say(f"    and {len(places) - _PLACES_SHOWN} more (--json)")
        screen.say(f"    waived: {first.waived}" if waived else f"    do: {first.do}")
        screen.say(f"    {first.evidence}: {first.source}", style="dim")


def say_broken_rules(
    given: Sequence[RuleResult], exported: Sequence[RuleResult], target: Target, screen: Screen
) -> None:
    """Rules that an FP32 model breaks, each with one place and what mends it: those that are still
    broken once it is exported, and in one line those that export mends."""
    says = {rule.id: rule.says for rule in target.rules}
    for rule in dict.fromkeys(result.rule for result in exported):
        places = [result for result in exported if result.rule == rule]
        first = places[0]
        more = f" and {len(places) - 1} more" if len(places) > 1 else ""
        rewrites = dict.fromkeys(place.rewrite for place in places if place.rewrite)
        mends = f"onnxq: {', '.join(rewrites)}. " if rewrites else ""
        screen.say(f"{rule}: {says[rule]}", mark=_BROKEN if first.severity == "error" else DOUBT)
        screen.say(f"    {first.where} {first.what}{more}")
        screen.say(f"    → {mends}{first.do}")
    left = {result.rule for result in exported}
    mended: dict[str, dict[str, None]] = {}
    for result in given:
        if result.rule not in left:
            mended.setdefault(result.rule, {})[result.rewrite or "canonical form"] = None
    if mended:
        listed = [f"{rule} ({', '.join(rewrites)})" for rule, rewrites in mended.items()]
        screen.say(f"  export mends: {', '.join(listed)}")


def _say_prediction(prediction: Prediction, target: Target, screen: Screen) -> None:
    state = "as it is" if prediction.of == "quantized" else "as it would be once quantized"
    tool = prediction.tool_version or "of this profile"
    screen.say(f"Prediction, not measured ({tool}): the graph {state}", style="bold")
    table = Table("runs", "nodes", "MACs", "share of MACs", box=None)
    for line in prediction.shares:
        table.add_row(line.runs, str(line.nodes), f"{line.macs:,}", f"{line.share:.1%}")
    screen.text.print(table)
    if prediction.software_epochs and any(entry.runs == "hardware" for entry in target.operators):
        borders = f", {prediction.borders} of them Q or DQ" if prediction.borders else ""
        screen.say(f"  {prediction.software_epochs} or more software epochs{borders}")
    at_best = {entry.op: entry.when for entry in target.operators}
    good = {"hardware", "folded", "software integer" if target.judged_as == "runtime" else ""}
    elsewhere = [
        node
        for node in prediction.nodes
        if node.runs not in good or node.why not in ("", at_best.get(node.op_type))
    ]
    lines: dict[str, list[str]] = {}
    for node in elsewhere:
        lines.setdefault(": ".join(filter(None, (node.runs, node.why))), []).append(
            f"{node.op_type} `{node.node}`"
        )
    for why, nodes in lines.items():
        more = f" and {len(nodes) - _PLACES_SHOWN} more" if len(nodes) > _PLACES_SHOWN else ""
        screen.say(f"  {', '.join(nodes[:_PLACES_SHOWN])}{more}: {why}")


def _say_hazards(findings: Sequence[Finding], screen: Screen) -> None:
    if findings:
        screen.say("Hazards of this file", style="bold")
        say_findings(screen, findings)
