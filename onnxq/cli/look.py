"""``onnxq schema``: what a recipe may hold."""

import json

import click

from onnxq.cli.console import Screen, command_options

__all__ = ["schema"]


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
