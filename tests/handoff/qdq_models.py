"""Small Q/DQ graphs for the tests of the hand-off."""

from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)

from tests.onnx_text import model_of

SMALL_NET = """
<ir_version: 8, opset_import: ["" : 17]>
small (float[1,3,8,8] image) => (float[1,4] scores)
{
  a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (image, w1, b1)
  r = Relu (a)
  p = MaxPool <kernel_shape=[2,2], strides=[2,2]> (r)
  c = Conv <kernel_shape=[1,1]> (p, w2, b2)
  s = Add (c, shift)
  g = GlobalAveragePool (s)
  f = Flatten (g)
  scores = Gemm <transB=1> (f, w3, b3)
}
"""


def with_constants(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """The model of ``text`` with these initializers, every node with a name."""
    model = model_of(text, **constants)
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"n{number}"
    return model


def small_net() -> onnx.ModelProto:
    """Conv–Relu–MaxPool–Conv–Add–GlobalAveragePool–Flatten–Gemm on a 3×8×8 image."""
    draw = np.random.default_rng(0)

    def weights(*shape: int) -> np.ndarray:
        return draw.normal(0, 0.4, shape).astype(np.float32)

    return with_constants(
        SMALL_NET,
        w1=weights(6, 3, 3, 3),
        b1=weights(6),
        w2=weights(5, 6, 1, 1),
        b2=weights(5),
        shift=weights(1, 5, 1, 1),
        w3=weights(4, 5),
        b3=weights(4),
    )


class _Images(CalibrationDataReader):
    def __init__(self, images: np.ndarray) -> None:
        self._rows = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self._rows, None)
        return None if row is None else {"image": row[np.newaxis]}


def images(count: int = 12) -> np.ndarray:
    """Made-up pictures in [0, 1] of shape (count, 3, 8, 8)."""
    return np.random.default_rng(1).random((count, 3, 8, 8)).astype(np.float32)


def quantized_net(folder: Path, activation: QuantType, name: str = "net_int8.onnx") -> Path:
    """``small_net`` as onnxruntime's own quantizer writes it, per channel."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(small_net(), folder / "net_fp32.onnx")
    quantize_static(
        folder / "net_fp32.onnx",
        folder / name,
        _Images(images()),
        quant_format=QuantFormat.QDQ,
        activation_type=activation,
        weight_type=QuantType.QInt8,
        per_channel=True,
        extra_options={"ForceQuantizeNoInputCheck": True},
    )
    return folder / name
