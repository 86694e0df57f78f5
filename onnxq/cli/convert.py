"""``onnxq convert``: the activations that another target wants, the same numbers."""

from pathlib import Path

import click

from onnxq.cli.console import DONE, Screen, command_options
from onnxq.cli.flags import path_type, required

__all__ = ["convert"]


@click.command()
@click.argument("model", type=path_type)
@click.option("--target", required=True, help="Target (`onnxq targets`) that it is to run on.")
@click.option("--data", metavar="SOURCE", help="Samples to compare on (default: random numbers).")
@click.option("-o", "output", type=path_type, help="The converted file.")
@command_options
def convert(model: Path, target: str, data: str | None, output: Path | None, screen: Screen) -> int:
    """Make the activations of a quantized MODEL.onnx int8 or uint8, as a target wants them.

    int8 with zero point z and uint8 with z + 128 are the same numbers: weights, scales and results
    stay, whoever quantized the file. That is proven on samples, without optimization: outputs
    equal to the last bit, every activation integer by integer.
    """
    from onnxq.plain.convert import convert_file, integer_nodes
    from onnxq.target import load_target

    profile, written = load_target(target), required(output, "-o OUT.onnx")
    made, record = convert_file(model, profile, data, written)
    screen.say(f"{written}: {made.activations} activations {made.was} → {made.became}", mark=DONE)
    on = "random numbers" if made.made_up_data else "samples"
    screen.say(
        f"  {made.samples} {on} without optimization: outputs equal to the last bit, "
        f"{made.integers_compared} integers equal but for the shift"
    )
    before, after = integer_nodes(model, profile), integer_nodes(written, profile)
    if profile.judged_as == "runtime":
        for kind, (integer, total) in after.items():
            was = before.get(kind, (0, 0))[0]
            screen.say(f"  {kind}: {integer} of {total} executed on integers, {was} before")
    if record is not None:
        screen.say(f"  record  {written.with_suffix('.json')}")
    screen.result(
        {
            "exit_code": 0,
            "conversion": made.model_dump(mode="json"),
            "executed": {
                kind: {"before": before.get(kind, (0, 0))[0], "after": integer, "total": total}
                for kind, (integer, total) in after.items()
            },
        }
    )
    return 0
