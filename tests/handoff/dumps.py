"""Bundles and the dumps of devices that are right or have one fault, made with onnxruntime."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx

from handoff.records import N6, samples
from handoff.runtime_integers import runtime_integers
from onnxq.artifacts import FileFacts, Manifest, PartFacts
from onnxq.graph import load_model
from onnxq.handoff.dump import KnownLayers, known_layers
from onnxq.handoff.stage import hand_off
from onnxq.samples import Samples
from onnxq.target import Target

Layers = dict[str, np.ndarray]


def bundle_of(model: Path, folder: Path, given: Samples | None = None, target: Target = N6) -> Path:
    """An unverified bundle of the model."""
    hand_off(
        model=model,
        target=target,
        samples=samples() if given is None else given,
        folder=folder,
        allow_unverified=True,
    )
    return folder


def device(bundle: Path, edit: Callable[[onnx.ModelProto], None] | None = None) -> Layers:
    """What a device gives that runs the bundle's model after ``edit``, by onnxruntime."""
    known = known_layers(bundle)
    if edit is None:
        return runtime_integers(known.model, known.inputs, "none")
    changed = load_model(bundle / known.name)
    edit(changed)
    return runtime_integers(changed, known.inputs, "none")


def fed(bundle: Path, integers: np.ndarray) -> Layers:
    """What the right model gives behind an input that was quantized to ``integers``."""
    known = known_layers(bundle)
    grid = known.layers[0].grid
    reals = (integers.astype(np.float32) - grid.zero_point) * np.float32(grid.scale)
    return runtime_integers(known.model, {"image": reals.astype(np.float32)}, "none")


def save(path: Path, layers: Mapping[str, np.ndarray]) -> Path:
    """The layers as ``.npz``."""
    np.savez(path, **layers)
    return path


def manifest_of(*parts: tuple[str, str]) -> Manifest:
    """The manifest of parts, each a name and its file's path in the bundle."""
    facts = [
        PartFacts(
            name=name, file=FileFacts(name=file, sha256="", size_bytes=1), inputs=(), outputs=()
        )
        for name, file in parts
    ]
    return Manifest(whole_sha256="", inputs=(), outputs=(), parts=tuple(facts), steps=())


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def maker_of(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if tensor in node.output)


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def with_constant(model: onnx.ModelProto, node: onnx.NodeProto, at: int, array: np.ndarray) -> None:
    """Give input ``at`` of the node another constant."""
    name = f"{node.name}_{at}_changed"
    model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    node.input[at] = name


def quantizer_of(model: onnx.ModelProto, known: KnownLayers, layer: str) -> onnx.NodeProto:
    integers = next(one.integers for one in known.layers if one.name == layer)
    return maker_of(model, integers)
