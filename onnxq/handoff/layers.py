"""Every layer's integers for one sample, and the known answers in the device's own type.

What a device computes can then be compared where it went wrong, not only at its output.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.affine import quantize
from onnxq.errors import ModelError
from onnxq.graph import constants_of, load_model
from onnxq.handoff.arrays import save_arrays
from onnxq.handoff.c_source import C_TYPES, array_literal, comment, float_literal
from onnxq.handoff.contract import Contract
from onnxq.handoff.reference.evaluate import Reference
from onnxq.handoff.reference.network import Layer, layers_of
from onnxq.runtime import Session, with_outputs
from onnxq.target import Target

__all__ = ["DEVICE_FILE", "LAYERS_FILE", "MOST_INTEGERS", "write_layers"]

LAYERS_FILE, DEVICE_FILE, TEXT_FILE = "layers.npz", "device_answers.npz", "LAYERS.md"
MOST_INTEGERS = 65_536  # of all layers together that are written as C arrays: 0.4 MB of text
BESIDE = 1e-3  # steps from a middle within which float32 may tip a value to its other side
CHANNELS_LAST = "chlast"  # what a target's commands say where the device takes them so
Array = Shaped[np.ndarray, "..."]


@dataclass(frozen=True)
class _Judged:
    """How far the integer reference is from ONNX Runtime in one layer, of the same integers.

    ``middle`` is the largest distance, in steps, of a differing exact value from the middle between
    two integers."""

    steps: int
    differing: int
    middle: float = 0.0


def write_layers(
    folder: Path, contract: Contract, target: Target, answers: Mapping[str, Array]
) -> None:
    """Write ``layers.npz``, ``device_answers.npz``, ``LAYERS.md`` and C arrays to ``folder``.

    ``answers`` are the arrays of ``known_answers.npz``; the layers are of their first vector, as
    ONNX Runtime computes the file with optimization off: what the graph says, operator by operator.
    ``device_answers.npz`` holds every vector with inputs and outputs as integers, where the file
    says how. A file whose activations have no single 8-bit grid has no layers, and the text says
    so. Raises RuntimeFailureError, StoreError.
    """
    device = _device_answers(contract, target, answers)
    save_arrays(folder / DEVICE_FILE, device)
    model = load_model(folder / contract.model)
    feed = {value.name: answers[f"input.{value.name}"][0] for value in contract.inputs}
    try:
        layers = layers_of(model, constants_of(model))
    except ModelError as fault:
        (folder / TEXT_FILE).write_text(_text(contract, (), {}, f"none: {fault}"), "utf-8")
        return
    integers = _integers(model, layers, feed, target) if layers else {}
    judged, refusal = _judged(model, feed, integers)
    arrays = {f"input.{name}": array for name, array in feed.items()}
    arrays |= {f"layer.{layer.name}": integers[layer.name] for layer in layers}
    about = {
        "model": contract.model,
        "sha256": contract.sha256,
        "vector": 0,
        "optimization": "ORT_DISABLE_ALL",
        "layers": [_facts(layer, integers[layer.name], judged.get(layer.name)) for layer in layers],
        "reference": refusal or "every layer was compared",
    }
    save_arrays(folder / LAYERS_FILE, arrays | {"about": np.array(json.dumps(about, indent=1))})
    told = _text(contract, layers, judged, refusal)
    if layers and sum(array.size for array in integers.values()) <= MOST_INTEGERS:
        (folder / "layers.h").write_text(_header(contract, layers, integers), "utf-8")
        (folder / "layers.c").write_text(_source(contract, layers, integers), "utf-8")
    (folder / TEXT_FILE).write_text(told, "utf-8")


def _device_answers(
    contract: Contract, target: Target, answers: Mapping[str, Array]
) -> dict[str, Array]:
    """Inputs and outputs of every vector as the device has them.

    In the file's own layout; inputs also with the channels last, as ``input_chlast.<name>``, where
    a command of the target asks its compiler for that.
    """
    arrays: dict[str, Array] = {}
    forms = {}
    for value in (*contract.inputs, *contract.outputs):
        key, known = f"{value.direction}.{value.name}", value.quantization
        array = answers[key]
        if known is not None and array.dtype.kind == "f":
            array = quantize(array, known.scale, known.zero_point, known.type)
        arrays[key] = array
        forms[key] = {
            "dtype": str(array.dtype),
            "scale": None if known is None else known.scale,
            "zero_point": None if known is None else known.zero_point,
            "layout": value.layout,
            "note": value.note,
        }
    if any(CHANNELS_LAST in command for command in target.commands):
        for value in contract.inputs:
            if value.layout.startswith("NC"):
                moved = np.moveaxis(arrays[f"input.{value.name}"], 2, -1)
                arrays[f"input_chlast.{value.name}"] = np.ascontiguousarray(moved)
    about = {"model": contract.model, "sha256": contract.sha256, "values": forms}
    return arrays | {"about": np.array(json.dumps(about, indent=1))}


def _integers(
    model: onnx.ModelProto, layers: Sequence[Layer], feed: Mapping[str, Array], target: Target
) -> dict[str, Array]:
    """What ONNX Runtime gives for every layer; an integer input is as it is fed."""
    names = [layer.integers for layer in layers if layer.integers not in feed]
    session = Session(
        with_outputs(model, names).SerializeToString(),
        optimization="none",
        config=target.session_options,
    )
    found = {**session.run(feed), **feed}
    return {layer.name: found[layer.integers] for layer in layers}


def _judged(
    model: onnx.ModelProto, feed: Mapping[str, Array], integers: Mapping[str, Array]
) -> tuple[dict[str, _Judged], str]:
    """The reference beside ONNX Runtime, layer by layer; or why there is no reference."""
    try:
        reference = Reference(model)
        found = {}
        for layer, computed in reference.each(feed, integers):
            away = np.abs(computed.integers.astype(np.int64) - integers[layer.name])
            middle = np.abs(computed.exact % 1 - 0.5)[away > 0].max(initial=0.0)
            found[layer.name] = _Judged(
                int(away.max(initial=0)), int((away > 0).sum()), float(middle)
            )
    except ModelError as fault:
        return {}, f"no integer reference: {fault}"
    return found, ""


def _facts(layer: Layer, integers: Array, judged: _Judged | None) -> dict[str, object]:
    return {
        "name": layer.name,
        "node": layer.nodes[0] if layer.nodes else "",
        "op_type": layer.op_type,
        "folded": list(layer.nodes[1:]),
        "sources": list(layer.sources),
        "aliases": list(layer.aliases),
        "dtype": str(integers.dtype),
        "shape": list(integers.shape),
        "scale": layer.grid.scale,
        "zero_point": layer.grid.zero_point,
        "reference_steps": None if judged is None else judged.steps,
        "reference_differing": None if judged is None else judged.differing,
    }


def _text(
    contract: Contract, layers: Sequence[Layer], judged: Mapping[str, _Judged], refusal: str
) -> str:
    """LAYERS.md."""
    if judged:
        most = max(layer.steps for layer in judged.values())
        differing = sum(1 for layer in judged.values() if layer.differing)
        others = f"the others differ by at most {most} step{'' if most == 1 else 's'}"
        told = (
            "The integer reference, given the same integers, gives the same in "
            f"{len(judged) - differing} of {len(judged)} layers"
            f"{f'; {others}' if differing else ''}.{_differences(layers, judged)}"
        )
    else:
        told = refusal or "There is no layer."
    return (
        f"# Layers of {contract.model}\n\n"
        f"`{LAYERS_FILE}`: the integers of {len(layers)} quantized tensors for the first known "
        "answer, under `layer.<tensor>` in the order of the graph, in their own type and the "
        "graph's layout (channels first after a Conv); `input.<name>` is what was fed; `about` "
        "says node, scale and zero point of each. They are what ONNX Runtime gives with "
        f"ORT_DISABLE_ALL. {told}\n\n"
        f"`layers.h` and `layers.c` hold the same as C arrays, if all layers together have at most "
        f"{MOST_INTEGERS} integers.\n\n"
        f"`{DEVICE_FILE}`: inputs and outputs of every known answer in the device's own type.\n\n"
        "A dump of a device is compared with\n\n```sh\nonnxq compare-dump FOLDER_OF_THIS_FILE DUMP"
        "\n```\n\nDUMP is an `.npz` (one array a tensor or node), a `.csv` (a line a tensor: its "
        "name, then its numbers), or a `.bin` / `.raw` of all layers one after the other.\n"
    )


def _differences(layers: Sequence[Layer], judged: Mapping[str, _Judged]) -> str:
    """A sentence on the layers in which reference and runtime differ: which, and why."""
    near: list[str] = []
    far: list[str] = []
    for layer in layers:
        one = judged.get(layer.name)
        if one is None or not one.differing:
            continue
        named = f"`{layer.name}` ({layer.label}, {one.differing} of its integers)"
        tipped = one.steps == 1 and one.middle < BESIDE
        (near if tipped else far).append(named)
    said = ""
    if near:
        said += (
            f" They differ in {', '.join(near)}: there the exact value lies beside the middle "
            "between two integers, and the float32 of the runtime tips it to the other side."
        )
    if far:
        said += (
            f" In {', '.join(far)} that is no such middle: the runtime's operator rounds in a way "
            "of its own (QLinearSoftmax and QLinearAveragePool have one), or there is a fault."
        )
    return said


def _header(contract: Contract, layers: Sequence[Layer], integers: Mapping[str, Array]) -> str:
    """The text of ``layers.h``, C99."""
    head = comment(
        f"Integers of every layer of {contract.model} for its first known answer.",
        f"Written only where all layers together have at most {MOST_INTEGERS} integers.",
    )
    arrays = "\n".join(
        f"extern const {C_TYPES[str(integers[layer.name].dtype)]} "
        f"known_layer_{place}[{integers[layer.name].size}]; {comment(layer.name, layer.label)}"
        for place, layer in enumerate(layers)
    )
    return (
        f"{head}\n#ifndef KNOWN_LAYERS_H\n#define KNOWN_LAYERS_H\n\n"
        "#include <stddef.h>\n#include <stdint.h>\n\n"
        f"#define KNOWN_LAYER_COUNT {len(layers)}\n\n"
        "typedef struct {\n    const char *tensor;\n    const char *node;\n"
        "    const void *integers;\n    size_t count;\n    int is_signed;\n"
        "    float scale;\n    int zero_point;\n"
        "} known_layer;\n\n"
        f"extern const known_layer known_layers[KNOWN_LAYER_COUNT];\n\n{arrays}\n\n#endif\n"
    )


def _source(contract: Contract, layers: Sequence[Layer], integers: Mapping[str, Array]) -> str:
    """The text of ``layers.c``."""
    arrays = "\n\n".join(
        f"{comment(layer.name)}\nconst {C_TYPES[str(array.dtype)]} known_layer_{place}"
        f"[{array.size}] = {array_literal(array.reshape(-1))};"
        for place, layer in enumerate(layers)
        for array in (integers[layer.name],)
    )
    rows = ",\n".join(
        f"    {{{json.dumps(layer.name)}, {json.dumps(layer.nodes[0] if layer.nodes else '')}, "
        f"known_layer_{place}, {integers[layer.name].size}, "
        f"{int(integers[layer.name].dtype == np.int8)}, {float_literal(layer.grid.scale)}, "
        f"{layer.grid.zero_point}}}"
        for place, layer in enumerate(layers)
    )
    return (
        f'#include "layers.h"\n\n{arrays}\n\n'
        f"const known_layer known_layers[KNOWN_LAYER_COUNT] = {{\n{rows}\n}};\n"
    )
