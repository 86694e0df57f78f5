"""``onnxq inspect``: what of a model is integer, what is not and why, and where the time goes."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from onnxq.artifacts import FusionAudit, NodeExecution, OutputDistance, TimeLedger, ValueFacts
from onnxq.cli.console import Screen, command_options
from onnxq.cli.flags import path_type
from onnxq.cli.saturation import say_saturation
from onnxq.errors import EXIT_PASSED, EXIT_WORSE, DataError, UsageError
from onnxq.target import Target, load_target

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

__all__ = ["inspect"]

_MOST_NAMES, _MOST_TIMES, _MOST_FAULTS = 3, 5, 8
_SIGNED = "int8 activations on x86"


@click.command()
@click.argument("model", type=path_type)
@click.option("--target", default="ort-x86", help="Target that the answer is for.")
@click.option(
    "--data", metavar="SOURCE", help="Samples to time and compare on (default: random numbers)."
)
@click.option("--fp32", type=path_type, help="The FP32 model, to compare its time with.")
@click.option("--no-time", is_flag=True, help="Do not run the model.")
@command_options
def inspect(model: Path, target: str, screen: Screen, **options: Any) -> int:
    """Show what is integer in MODEL.onnx, what is float and why, and where the time goes.

    Of an FP32 model: which nodes would become integer on the target. Of a quantized one: what
    ONNX Runtime really executes here, node by node, and what to change where that is float; for a
    target that a compiler serves, first its rules and where nodes will run there, as `onnxq check`
    says it. Of either: which rules of the target are broken, and what mends them. Exit code 1 if
    ONNX Runtime computes wrong numbers from the file, or if it breaks a rule of such a compiler
    (an FP32 model: once it is exported).
    """
    import onnx_ir as ir

    from onnxq.computed_shapes import with_computed_shapes
    from onnxq.graph import load_model, parameter_count, values_of
    from onnxq.verify.audit import refuse_other_forms

    proto = load_model(model)
    graph = ir.from_proto(with_computed_shapes(proto))
    refuse_other_forms(graph, model.name)
    inputs, outputs = values_of(proto)
    for value in (*inputs, *outputs):
        screen.say(f"  {value.name}: {value.dtype} {list(value.shape)}")
    quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
    _refuse_unused(model, inputs, options, quantized=quantized)
    facts: dict[str, Any] = {
        "inputs": [v.model_dump(mode="json") for v in inputs],
        "outputs": [v.model_dump(mode="json") for v in outputs],
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "operators": dict(Counter(node.op_type for node in proto.graph.node)),
        "float_parameters": parameter_count(proto),
        "quantized": quantized,
    }
    profile = load_target(target)
    code = EXIT_PASSED
    if quantized and profile.processor is None:
        code = _for_compiler(model, proto, profile, options, facts, screen)
    elif quantized:
        code = _of_file(model, graph, profile, facts, screen)
        if not options["no_time"]:
            _of_runs(model, profile, options, facts, screen)
        _of_saturation(model, profile, options, facts, screen)
        _say_answer(model, facts, screen)
    else:
        code = _of_fp32(model, proto, profile, facts, screen)
    screen.result({"exit_code": code, **facts})
    return code


def _refuse_unused(
    model: Path, inputs: Sequence[ValueFacts], options: Mapping[str, Any], *, quantized: bool
) -> None:
    """Raise UsageError for samples or an FP32 model that could not be used."""
    from onnxq.graph import load_model, values_of

    for name in ("data", "fp32"):
        if options[name] is not None and not quantized:
            raise UsageError(
                f"{model.name} is no quantized file, and is not run",
                where=f"--{name}",
                do="give the quantized file first, or leave the option out",
            )
    if options["fp32"] is None:
        return
    others = {value.name: value for value in values_of(load_model(options["fp32"]))[0]}
    wanted = {value.name: value for value in inputs}
    for name in wanted.keys() | others.keys():
        mine, other = wanted.get(name), others.get(name)
        if mine is None or other is None or not _is_alike(mine, other):
            raise UsageError(
                f"its inputs are {_listed(others)}, those of {model.name} are {_listed(wanted)}",
                where=f"--fp32 {options['fp32'].name}",
                do=f"give the FP32 model that {model.name} was made from",
            )


def _is_alike(mine: ValueFacts, other: ValueFacts) -> bool:
    """Whether one sample fits both; a free dimension fits any number."""
    pairs = zip(mine.shape, other.shape, strict=False)
    return (mine.dtype, len(mine.shape)) == (other.dtype, len(other.shape)) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs
    )


def _listed(values: Mapping[str, ValueFacts]) -> str:
    return ", ".join(f"`{v.name}` {v.dtype} {list(v.shape)}" for v in values.values())


# --- a quantized file for a compiler ------------------------------------------------------------


def _for_compiler(
    model: Path,
    proto: "onnx.ModelProto",
    target: Target,
    options: Mapping[str, Any],
    facts: dict[str, Any],
    screen: Screen,
) -> int:
    """The answer of the target's profile, and then what ONNX Runtime does here, which is none."""
    import onnx_ir as ir

    from onnxq.cli.targets import judge_for
    from onnxq.computed_shapes import with_computed_shapes

    code, judged = judge_for(model, proto, target, screen)
    screen.say("On this machine's ONNX Runtime, for information", style="bold")
    here: dict[str, Any] = {}
    _of_file(model, ir.from_proto(with_computed_shapes(proto)), target, here, screen)
    if not options["no_time"]:
        _of_runs(model, target, options, here, screen)
    verdict = "breaks the rules" if code else "keeps the rules"
    hardware = next((s for s in judged["prediction"]["shares"] if s["runs"] == "hardware"), None)
    share = f"; predicted: {hardware['share']:.0%} of the MACs in hardware" if hardware else ""
    screen.say(f"{model.name}: {verdict} of {target.name}{share}", style="bold")
    judged["hazards"] = judged.pop("findings")
    facts |= here | judged
    return code


# --- a quantized file ---------------------------------------------------------------------------


def _of_file(
    model: Path, graph: "ir.Model", target: Target, facts: dict[str, Any], screen: Screen
) -> int:
    """What the file holds, and what the runtime makes of it; the exit code."""
    from onnxq.verify.audit import audit, coverage, gives_wrong_numbers
    from onnxq.verify.fusion import audit_fusion, config_for, fusion_lines

    rows, share = audit(graph), coverage(graph, None, target)
    executed = audit_fusion(model, config_for(target))
    for name, line in (
        ("operators", share.operators), ("parameters", share.parameters), ("MACs", share.macs),
    ):  # fmt: skip
        screen.say(f"  integer {name}: {line.integer} of {line.total} ({line.fraction:.1%})")
    measured = executed.integer_macs / executed.macs if executed.macs else 0.0
    where = "on ARM64" if target.fuses_int8 else "here"
    screen.say(f"  MACs that ONNX Runtime executes on integers {where}: {measured:.1%}")
    screen.text.print(_table_of(executed, where))
    _say_causes(executed.nodes, screen, mend=target.processor is not None)
    faults = [f"{row.op_type} `{row.node}`: {fault}" for row in rows for fault in row.faults]
    faults += [f"{found.where}: {found.what}" for found in executed.findings]
    for fault in faults[:_MOST_FAULTS]:
        screen.say(f"  ! {fault}")
    if len(faults) > _MOST_FAULTS:
        screen.say(f"  ! and {len(faults) - _MOST_FAULTS} more (--json)")
    facts |= {
        "coverage": share.model_dump(mode="json"),
        "executed": [row.model_dump(mode="json") for row in fusion_lines(executed)],
        "nodes": [node.model_dump(mode="json") for node in executed.nodes],
        "macs": {"integer": executed.integer_macs, "total": executed.macs},
        "findings": [found.model_dump(mode="json") for found in executed.findings],
        "audit": [row.model_dump(mode="json") for row in rows],
        "remedies": _remedies(model, target, executed.nodes),
    }
    return EXIT_WORSE if gives_wrong_numbers(rows) else EXIT_PASSED


def _table_of(executed: FusionAudit, where: str) -> Table:
    """Operators of the file and how many run on integers, where it is asked for and on ARM64."""
    columns = ["operator", "in the file", f"on integers {where}"]
    columns += ["on ARM64"] if where == "here" else []
    table = Table(*columns, box=None)
    by_kind: dict[str, list[NodeExecution]] = {}
    for node in executed.nodes:
        by_kind.setdefault(node.op_type, []).append(node)
    for kind, nodes in sorted(by_kind.items()):
        here = sum(node.runs != "float" for node in nodes)
        there = sum(node.elsewhere != "float" for node in nodes)
        table.add_row(*map(str, (kind, len(nodes), here, there)[: len(columns)]))
    return table


def _say_causes(nodes: Sequence[NodeExecution], screen: Screen, *, mend: bool) -> None:
    """One entry for each cause of float, the most frequent first; ``mend``: with its remedy."""
    groups: dict[tuple[str, str], list[NodeExecution]] = {}
    for node in nodes:
        if node.runs == "float":
            key = (str(node.cause), node.op_type if node.cause == "no integer kernel" else "")
            groups.setdefault(key, []).append(node)
    for (cause, _), found in sorted(groups.items(), key=lambda item: -len(item[1])):
        names = ", ".join(f"{node.op_type} `{node.node}`" for node in found[:_MOST_NAMES])
        more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        screen.say(f"  float, {cause}: {names}{more}")
        screen.say(f"    {found[0].why}" + (f" → {found[0].do}" if mend else ""))


def _remedies(model: Path, target: Target, nodes: Sequence[NodeExecution]) -> list[str]:
    """Commands of onnxq that make float nodes integer on the target."""
    if target.activation_type == "uint8" and any(node.cause == _SIGNED for node in nodes):
        output = model.with_name(f"{model.stem.removesuffix('-s8')}-u8.onnx")
        words = ("onnxq", "convert", str(model), "--target", target.name, "-o", str(output))
        return [shlex.join(words)]
    return []


# --- running it ---------------------------------------------------------------------------------


def _of_runs(
    model: Path,
    target: Target,
    options: Mapping[str, Any],
    facts: dict[str, Any],
    screen: Screen,
) -> None:
    """Where the time goes, and what fusion changes. Without samples that could be run it is said
    that nothing was measured."""
    from onnxq.graph import load_model, values_of
    from onnxq.plain.in_range import samples_in_range
    from onnxq.sample_checks import runs_of
    from onnxq.verify.fusion import is_arm
    from onnxq.verify.levels import compare_levels
    from onnxq.verify.profiling import time_ledger

    if target.fuses_int8 and not is_arm():
        facts["not_measured"] = "this machine is no ARM64: `selftest.py` of a bundle times it there"
        screen.say(f"  time: not measured: {facts['not_measured']}")
        return
    try:
        samples = samples_in_range(model, options["data"])
    except DataError as fault:
        if options["data"] is not None:
            raise
        screen.say(f"  time: not measured: {fault.what} → {fault.do}")
        facts["not_measured"] = fault.what
        return
    rows = runs_of(samples, values_of(load_model(model))[0])
    distance = compare_levels(model, rows, target.session_options)
    time = time_ledger(
        model, rows, target.session_options, fp32=options["fp32"], made_up_data=samples.made_up
    )
    _say_time(time, screen)
    _say_distance(distance, samples.name, screen)
    facts["time"] = time.model_dump(mode="json")
    facts["fused_against_unfused"] = distance.model_dump(mode="json")


def _of_saturation(
    model: Path,
    target: Target,
    options: Mapping[str, Any],
    facts: dict[str, Any],
    screen: Screen,
) -> None:
    """Whether sums of pairs leave 16 bits; counted only on samples that were given."""
    from onnxq.plain.in_range import samples_in_range

    counted = options["data"] is not None and not options["no_time"]
    samples = samples_in_range(model, options["data"]) if counted else None
    rows = say_saturation(model, target, samples, screen)
    facts["saturation"] = [row.model_dump(mode="json") for row in rows]


def _say_time(time: TimeLedger, screen: Screen) -> None:
    parts = (
        ("integer", time.integer), ("float", time.floating), ("Q/DQ", time.quantizing),
        ("layout", time.layout),
    )  # fmt: skip
    screen.say("  time: " + ", ".join(f"{name} {share:.0%}" for name, share in parts))
    operators = time.operators[:_MOST_TIMES]
    listed = ", ".join(f"{one.operator} ×{one.count} {one.share:.0%}" for one in operators)
    screen.say(f"    by operator: {listed}")
    nodes = time.nodes[:_MOST_TIMES]
    listed = ", ".join(f"`{one.node}` ({one.executed_as}) {one.share:.0%}" for one in nodes)
    screen.say(f"    by node: {listed}")
    other = "the file with its Q/DQ taken out" if time.float_is_twin else "the FP32 model"
    screen.say(
        f"    {time.to_float:.2f}× the time of {other}, {time.to_unfused:.2f}× of the same file "
        f"with fusion off; one thread, median of {time.runs} runs"
    )


def _say_distance(distance: OutputDistance, samples: str, screen: Screen) -> None:
    steps = "" if distance.steps is None else f" ({distance.steps:.3g} steps)"
    apart = f"SQNR {distance.sqnr_db:.1f} dB, at most {distance.largest:.3g}{steps}"
    said = apart if distance.largest else "equal"
    screen.say(f"  fused against unfused, {distance.samples} runs on {samples}: {said}")


def _say_answer(model: Path, facts: Mapping[str, Any], screen: Screen) -> None:
    """Why it is not as fast as it could be, with the line to change."""
    floating = [node for node in facts["nodes"] if node["runs"] == "float"]
    if not floating:
        cause = _cause_of_slowness(facts.get("time"))
        screen.say(f"{model.name}: nothing of it runs in float{cause}", style="bold")
        return
    total = facts["macs"]["total"]
    share = 1 - facts["macs"]["integer"] / total if total else 0.0
    time = facts.get("time")
    took = f" and take {time['floating'] + time['quantizing']:.0%} of the time" if time else ""
    with_qdq = " with the Q/DQ around them" if time else ""
    screen.say(
        f"{model.name}: {len(floating)} of {len(facts['nodes'])} operators run in float: they do "
        f"{share:.0%} of the MACs{took}{with_qdq}",
        style="bold",
    )
    for command in facts["remedies"]:
        screen.say(f"  → {command}", style="cyan")


def _cause_of_slowness(time: Mapping[str, Any] | None) -> str:
    """Why a file that is all integer is slower than in float; nothing if it is not."""
    if time is None or time["to_float"] <= 1:
        return ""
    return (
        f", and yet it takes {time['to_float']:.2f}× the time of FP32: Q/DQ is "
        f"{time['quantizing']:.0%} and layout {time['layout']:.0%} of the time, more than the "
        "integers of so small a network gain"
    )


# --- an FP32 file -------------------------------------------------------------------------------


def _of_fp32(
    model: Path, proto: "onnx.ModelProto", target: Target, facts: dict[str, Any], screen: Screen
) -> int:
    """What would become integer, and which rules are broken as it is and once it is exported; the
    exit code."""
    import tempfile

    import onnx_ir as ir

    from onnxq.artifacts import TensorRange
    from onnxq.calibrate.finite import float_tensors
    from onnxq.cli.targets import say_broken_rules
    from onnxq.graph import load_model
    from onnxq.handoff.check import check
    from onnxq.plain.export import export_file
    from onnxq.quantize.plan import make_plan
    from onnxq.quantize.unshare import unshare_constants

    with tempfile.TemporaryDirectory() as folder:
        export_file(model, target, {}, Path(folder))
        canonical = load_model(Path(folder) / "fp32.onnx")
    unit = TensorRange(low=0, high=1, observed_low=0, observed_high=1, values=1, zeros=0)
    graph, _ = unshare_constants(ir.from_proto(canonical))
    plan = make_plan(graph, target, dict.fromkeys(float_tensors(canonical), unit), {})
    screen.say(f"  on {target.name}: {len(plan.nodes)} nodes would become integer")
    for node in plan.float_nodes:
        screen.say(f"  float: {node.op_type} `{node.node}`: {node.reason}")
    given, exported = (
        check(form, target, file_name=model.name, phase="any") for form in (proto, canonical)
    )
    say_broken_rules(given, exported, target, screen)
    facts |= {
        "integer_nodes": list(plan.nodes),
        "float_nodes": [node.model_dump(mode="json") for node in plan.float_nodes],
        "rules": [result.model_dump(mode="json") for result in given],
        "rules_once_exported": [result.model_dump(mode="json") for result in exported],
    }
    broken = any(result.severity == "error" for result in exported)
    return EXIT_WORSE if broken and target.processor is None else EXIT_PASSED
