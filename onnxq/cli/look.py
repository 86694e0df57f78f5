"""``onnxq targets|schema``: commands that look and change nothing."""

import json

import click
from rich.table import Table

from onnxq.cli.console import Screen, command_options
from onnxq.target import load_target, target_names

__all__ = ["schema", "targets"]


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
