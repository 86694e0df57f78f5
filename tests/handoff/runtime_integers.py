"""Q/DQ nets made by onnxruntime's own quantizer, and the integers that onnxruntime gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from handoff.qdq_models import with_constants
from onnxq.graph import load_model
from onnxq.handoff.reference.evaluate import Reference
from onnxq.runtime import Optimization, Session, with_outputs

TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}


class _Rows(CalibrationDataReader):
    def __init__(self, rows: list[dict[str, np.ndarray]]) -> None:
        self._rows = iter(rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._rows, None)


def normal(*shape: int, seed: int = 0, size: float = 0.4) -> np.ndarray:
    """Normal numbers, float32."""
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(np.float32)


def quantized(
    folder: Path,
    text: str,
    rows: list[dict[str, np.ndarray]],
    activation: str = "uint8",
    *,
    per_channel: bool = True,
    **constants: np.ndarray,
) -> Path:
    """The graph of ``text`` quantized over ``rows`` of inputs."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(with_constants(text, **constants), folder / "fp32.onnx")
    quantize_static(
        folder / "fp32.onnx",
        folder / f"{activation}.onnx",
        _Rows(rows),
        quant_format=QuantFormat.QDQ,
        activation_type=TYPES[activation],
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
        extra_options={"ForceQuantizeNoInputCheck": True},
    )
    return folder / f"{activation}.onnx"


def runtime_integers(
    model: onnx.ModelProto, feed: Mapping[str, np.ndarray], optimization: Optimization
) -> dict[str, np.ndarray]:
    """What every layer's QuantizeLinear gives in onnxruntime, by the layer's name."""
    layers = Reference(model).layers
    session = Session(
        with_outputs(model, [layer.integers for layer in layers]).SerializeToString(),
        optimization=optimization,
    )
    found = session.run(feed)
    return {layer.name: found[layer.integers] for layer in layers}


@dataclass(frozen=True)
class Agreement:
    """How one layer of the reference, computed of the runtime's own integers, meets the runtime's.

    ``steps`` is the largest difference, ``differing`` the share of elements that differ, and
    ``from_middle`` how far the exact value of such an element is, at most, from the middle between
    two integers. ``by`` is the reference's own word.
    """

    steps: int
    differing: float
    from_middle: float
    by: str


def agreement(
    path: Path, feed: Mapping[str, np.ndarray], optimization: Optimization
) -> dict[str, Agreement]:
    """Agreement of every layer, each judged by the runtime's integers of the layers before it."""
    model = load_model(path)
    wanted = runtime_integers(model, feed, optimization)
    found = {}
    for layer, computed in Reference(model).each(feed, wanted):
        got = wanted[layer.name].astype(np.int64)
        away = np.abs(got - computed.integers)
        middle = np.abs(np.abs(computed.exact - np.floor(computed.exact)) - 0.5)
        found[layer.name] = Agreement(
            steps=int(away.max()),
            differing=float((away > 0).mean()),
            from_middle=float(middle[away > 0].max(initial=0.0)),
            by=computed.by,
        )
    return found
