"""``onnxq inspect|targets|schema``: commands that look and change nothing."""

import json
from collections import Counter
from pathlib import Path

import click
from rich.table import Table

from onnxq.cli.console import Screen, command_options
from onnxq.target import Target, load_target, target_names

__all__ = ["inspect", "schema", "targets"]


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", default="ort-x86", help="Target that the answer is for.")
@command_options
def inspect(model: Path, target: str, screen: Screen) -> int:
    """Show what is integer in MODEL.onnx, what is float, and why.

    Of an FP32 model: which nodes would become integer on the target.
    """
    import onnx_ir as ir

    from onnxq.graph import load_model, parameter_count, values_of, with_batch_of_one
    from onnxq.verify.audit import refuse_other_forms

    proto = load_model(model)
    graph = ir.from_proto(with_batch_of_one(proto))
    refuse_other_forms(graph, model.name)
    inputs, outputs = values_of(proto)
    for value in (*inputs, *outputs):
        screen.say(f"  {value.name}: {value.dtype} {list(value.shape)}")
    quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
    facts: dict[str, object] = {
        "inputs": [v.model_dump(mode="json") for v in inputs],
        "outputs": [v.model_dump(mode="json") for v in outputs],
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "operators": dict(Counter(node.op_type for node in proto.graph.node)),
        "float_parameters": parameter_count(proto),
        "quantized": quantized,
    }
    profile = load_target(target)
    if quantized:
        facts |= _of_int8(model, graph, profile, screen)
    else:
        facts |= _of_fp32(model, profile, screen)
    screen.result({"exit_code": 0, **facts})
    return 0


def _of_int8(model: Path, graph: object, target: Target, screen: Screen) -> dict[str, object]:
    import onnx_ir as ir

    from onnxq.verify.audit import audit, coverage, fusion

    if not isinstance(graph, ir.Model):
        raise TypeError("not a graph")
    rows, share = audit(graph), coverage(graph, None, target)
    executed = fusion(model, graph, target.session_options)
    for name, line in (
        ("operators", share.operators), ("parameters", share.parameters), ("MACs", share.macs),
    ):  # fmt: skip
        screen.say(f"  integer {name}: {line.integer} of {line.total} ({line.fraction:.1%})")
    table = Table("operator", "in the file", "executed on integers here", box=None)
    for row in executed:
        table.add_row(row.op_type, str(row.total), str(row.integer))
    screen.text.print(table)
    for audited in rows:
        for fault in audited.faults:
            screen.say(f"  ! {audited.op_type} `{audited.node}`: {fault}")
    return {
        "coverage": share.model_dump(mode="json"),
        "executed": [row.model_dump(mode="json") for row in executed],
        "audit": [row.model_dump(mode="json") for row in rows],
    }


def _of_fp32(model: Path, target: Target, screen: Screen) -> dict[str, object]:
    import tempfile

    from onnxq.artifacts import TensorRange
    from onnxq.calibrate.finite import float_tensors
    from onnxq.graph import load_model
    from onnxq.plain.export import export_file
    from onnxq.quantize.plan import make_plan
    from onnxq.quantize.unshare import unshare_constants

    with tempfile.TemporaryDirectory() as folder:
        export_file(model, target, {}, Path(folder))
        canonical = load_model(Path(folder) / "fp32.onnx")
    import onnx_ir as ir

    unit = TensorRange(low=0, high=1, observed_low=0, observed_high=1, values=1, zeros=0)
    graph, _ = unshare_constants(ir.from_proto(canonical))
    plan = make_plan(graph, target, dict.fromkeys(float_tensors(canonical), unit), {})
    screen.say(f"  on {target.name}: {len(plan.nodes)} nodes would become integer")
    for node in plan.float_nodes:
        screen.say(f"  float: {node.op_type} `{node.node}`: {node.reason}")
    return {
        "integer_nodes": list(plan.nodes),
        "float_nodes": [node.model_dump(mode="json") for node in plan.float_nodes],
    }


@click.command()
@click.argument("name", required=False)
@command_options
def targets(name: str | None, screen: Screen) -> int:
    """List the targets, or show the profile of NAME with the source of every rule."""
    if name is None:
        for known in target_names():
            screen.say(f"  {known:<12} {load_target(known).title}")
        screen.result({"exit_code": 0, "targets": list(target_names())})
        return 0
    target = load_target(name)
    screen.say(target.title, style="bold")
    weights = f"{target.weight_type}{' per channel' if target.per_channel else ''}"
    screen.say(
        f"  activations {target.activation_type}, weights {weights}; opset {target.opset[0]} to "
        f"{target.opset[1]}; batch {target.batch}; verified as {target.judged_as}"
    )
    table = Table("rule", "says", "evidence", "source", box=None)
    for rule in target.rules:
        table.add_row(rule.id, rule.says, rule.evidence, rule.source)
    screen.text.print(table)
    for note in target.notes:
        screen.say(f"  · {note}")
    screen.result({"exit_code": 0, "target": target.model_dump(mode="json")})
    return 0


@click.command()
@command_options
def schema(screen: Screen) -> int:
    """Print the JSON Schema of recipes, for editors that check YAML while one types."""
    from onnxq.recipe import Recipe

    text = Recipe.model_json_schema()
    if screen.as_json:
        screen.result({"exit_code": 0, "schema": text})
    else:
        click.echo(json.dumps(text, indent=2))
    return 0
