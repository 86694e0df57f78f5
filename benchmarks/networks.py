"""Two networks of known architecture with made-up weights, and made-up samples of their inputs.

What a calibration costs depends on the shapes of a graph and not on what it has learnt, so the
weights are drawn by a seed and nothing is fetched. They are scaled so that activations neither
vanish nor grow on the way (He et al. 2015, arXiv 1502.01852, section 2.2).
"""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

__all__ = ["INPUT", "NETWORKS", "Network", "mobilenet_v2", "transformer", "write_samples"]

INPUT = "input"
_GRAIN = 16  # pixels or positions that share one value of the coarse noise
_STAGES = (  # expansion, channels, blocks, stride of the first: Sandler et al. 2018, table 2
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class _Writer:
    """Nodes and weights of a graph that is being written down; every method returns a tensor."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """The output of a new node."""
        name = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weight(self, values: np.ndarray | float | list[int]) -> str:
        """A constant; float32 unless it is a shape."""
        kind = np.int64 if isinstance(values, list) else np.float32
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, kind), name))
        return name

    def drawn(self, shape: tuple[int, ...], variance: float) -> str:
        """Normal numbers."""
        return self.weight(self.random.standard_normal(shape) * np.sqrt(variance))

    def save(self, path: Path, shapes: tuple[list[object], list[object]]) -> None:
        """The checked model with the shape of every tensor at ``path``."""
        self.nodes[-1].output[0] = "output"
        given, computed = (
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
            for name, shape in zip((INPUT, "output"), shapes, strict=True)
        )
        graph = helper.make_graph(self.nodes, path.stem, [given], [computed], self.weights)
        opset = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opset, ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=True), path)


def mobilenet_v2(path: Path, seed: int = 0) -> None:
    """MobileNetV2 as torchvision builds it (width 1.0, 1,000 classes), BatchNorm folded, any batch.

    Source: Sandler et al. 2018, arXiv 1801.04381, tables 1 and 2.
    """
    writer = _Writer(seed)
    channels = 32
    tensor = _convolution(writer, INPUT, (3, channels, 3, 2), activated=True)
    for expansion, width, blocks, first_stride in _STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            entry, hidden = tensor, channels * expansion
            if expansion > 1:
                tensor = _convolution(writer, tensor, (channels, hidden, 1, 1), activated=True)
            tensor = _convolution(writer, tensor, (1, hidden, 3, stride), activated=True)
            tensor = _convolution(writer, tensor, (hidden, width, 1, 1), activated=False)
            if stride == 1 and channels == width:
                tensor = writer.node("Add", entry, tensor)
            channels = width
    tensor = _convolution(writer, tensor, (channels, 1280, 1, 1), activated=True)
    tensor = writer.node("Flatten", writer.node("GlobalAveragePool", tensor))
    head = writer.drawn((1000, 1280), 1 / 1280)
    writer.node("Gemm", tensor, head, writer.weight(np.zeros(1000)), transB=1)
    writer.save(path, (["n", 3, 224, 224], ["n", 1000]))


def _convolution(
    writer: _Writer, tensor: str, sizes: tuple[int, int, int, int], *, activated: bool
) -> str:
    """``sizes`` are the input channels of one filter, the filters, their side and the stride; one
    input channel means depthwise.
    """
    depth, filters, side, stride = sizes
    fan_in = depth * side * side
    output = writer.node(
        "Conv",
        tensor,
        writer.drawn((filters, depth, side, side), 2 / fan_in),
        writer.drawn((filters,), 0.01),
        group=filters if depth == 1 else 1,
        kernel_shape=[side, side],
        pads=[side // 2] * 4,
        strides=[stride, stride],
    )
    if not activated:
        return output
    return writer.node("Clip", output, writer.weight(0.0), writer.weight(6.0))


@dataclass(frozen=True)
class TransformerSizes:
    """Sizes of a stack of transformer blocks."""

    blocks: int = 4
    positions: int = 512
    width: int = 256
    heads: int = 4


def transformer(path: Path, seed: int = 0, sizes: TransformerSizes | None = None) -> None:
    """Encoder blocks with LayerNormalization first, softmax attention and an erf GELU, any batch.

    The order of operations is that of ``torch.nn.TransformerEncoderLayer(norm_first=True)``.
    """
    sizes = sizes or TransformerSizes()
    writer, tensor = _Writer(seed), INPUT
    for _ in range(sizes.blocks):
        mixed = _attention(writer, _normalized(writer, tensor, sizes.width), sizes)
        tensor = writer.node("Add", tensor, mixed)
        hidden = _normalized(writer, tensor, sizes.width)
        hidden = _gelu(writer, _linear(writer, hidden, (sizes.width, 4 * sizes.width)))
        tensor = writer.node("Add", tensor, _linear(writer, hidden, (4 * sizes.width, sizes.width)))
    _normalized(writer, tensor, sizes.width)
    shape = ["n", sizes.positions, sizes.width]
    writer.save(path, (shape, shape))


def _normalized(writer: _Writer, tensor: str, width: int) -> str:
    scale, shift = writer.weight(np.ones(width)), writer.weight(np.zeros(width))
    return writer.node("LayerNormalization", tensor, scale, shift, axis=-1, epsilon=1e-5)


def _linear(writer: _Writer, tensor: str, shape: tuple[int, int]) -> str:
    product = writer.node("MatMul", tensor, writer.drawn(shape, 1 / shape[0]))
    return writer.node("Add", product, writer.drawn((shape[1],), 0.01))


def _attention(writer: _Writer, tensor: str, sizes: TransformerSizes) -> str:
    depth = sizes.width // sizes.heads
    apart = writer.weight([0, sizes.positions, sizes.heads, depth])

    def heads(order: list[int]) -> str:
        projected = _linear(writer, tensor, (sizes.width, sizes.width))
        return writer.node("Transpose", writer.node("Reshape", projected, apart), perm=order)

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    likeness = writer.node("MatMul", query, key)
    weights = writer.node("Div", likeness, writer.weight(np.sqrt(depth)))
    mixed = writer.node("MatMul", writer.node("Softmax", weights, axis=-1), value)
    mixed = writer.node("Transpose", mixed, perm=[0, 2, 1, 3])
    together = writer.weight([0, sizes.positions, sizes.width])
    joined = writer.node("Reshape", mixed, together)
    return _linear(writer, joined, (sizes.width, sizes.width))


def _gelu(writer: _Writer, tensor: str) -> str:
    """GELU, x · (1 + erf(x / √2)) / 2: Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2."""
    erf = writer.node("Erf", writer.node("Div", tensor, writer.weight(np.sqrt(2))))
    doubled = writer.node("Mul", tensor, writer.node("Add", erf, writer.weight(1.0)))
    return writer.node("Mul", doubled, writer.weight(0.5))


@dataclass(frozen=True)
class Network:
    """A network of the benchmark: its writer, the shape of one sample, and the axes of a sample
    along which neighbours resemble one another.
    """

    write: Callable[[Path], None]
    shape: tuple[int, ...]
    space: tuple[int, ...]


NETWORKS = {
    "mobilenet": Network(mobilenet_v2, (3, 224, 224), (1, 2)),
    "transformer": Network(transformer, (512, 256), (0,)),
}


def write_samples(path: Path, network: Network, count: int) -> None:
    """``count`` samples as an uncompressed ``.npz``, one after another, so that memory stays small.

    A sample is coarse noise, the same over 16 neighbours, and half as much fine noise; the first
    samples of a larger file are those of a smaller one.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, *network.shape)}
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open(f"{INPUT}.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)
        for number in range(count):
            member.write(_sample(network, np.random.default_rng(number)).tobytes())


def _sample(network: Network, random: np.random.Generator) -> np.ndarray:
    shape = [
        size // _GRAIN if axis in network.space else size for axis, size in enumerate(network.shape)
    ]
    values = random.standard_normal(shape, np.float32)
    for axis in network.space:
        values = values.repeat(_GRAIN, axis)
    return values + 0.5 * random.standard_normal(network.shape, np.float32)
