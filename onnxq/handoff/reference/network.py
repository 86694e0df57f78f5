"""The layers of a Q/DQ graph: every tensor that it holds as integers, in the graph's order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.errors import ModelError
from onnxq.qdq import DEQUANTIZE, QUANTIZE
from onnxq.qtypes import AffineParameters, IntType

__all__ = ["Layer", "layers_of"]

_EIGHT_BITS = {onnx.TensorProto.INT8: IntType.INT8, onnx.TensorProto.UINT8: IntType.UINT8}


@dataclass(frozen=True)
class Layer:
    """A tensor that the graph holds as integers: made by a QuantizeLinear, or an integer input.

    ``name`` is the tensor's name in the float graph (where that is quantized twice, the second time
    the name of the integers), ``integers`` that of the integers. ``nodes``
    are those between the integers it is made of (``sources``, names of layers) and these.
    ``aliases`` are other names of it: of the Q's input, of what dequantizes it, of its last node.
    """

    name: str
    integers: str
    grid: AffineParameters
    nodes: tuple[str, ...]
    op_type: str
    sources: tuple[str, ...]
    aliases: tuple[str, ...]

    @property
    def label(self) -> str:
        """The node it comes from, for messages."""
        return f"{self.op_type} `{self.nodes[0]}`" if self.nodes else "the graph's input"


def layers_of(
    model: onnx.ModelProto, constants: Mapping[str, Shaped[np.ndarray, "..."]]
) -> tuple[Layer, ...]:
    """Every layer of ``model``, in the order of its nodes.

    Raises ModelError if an activation is quantized otherwise than to 8 bits with one constant
    scale and zero point.
    """
    graph = model.graph
    makers = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    finder = _Finder(graph, makers, users, constants)
    found: dict[str, Layer] = {}
    for value in graph.input:
        kind = _EIGHT_BITS.get(value.type.tensor_type.elem_type)
        taken = [node for node in users.get(value.name, ()) if node.op_type == DEQUANTIZE]
        if kind is not None and taken and value.name not in constants:
            found[value.name] = finder.of_input(value.name, taken[0], kind)
    for node in graph.node:
        if node.op_type == QUANTIZE and finder.is_computed(node.input[0]):
            found[node.output[0]] = finder.of_node(node, found)
    return tuple(found.values())


class _Finder:
    def __init__(
        self,
        graph: onnx.GraphProto,
        makers: Mapping[str, onnx.NodeProto],
        users: Mapping[str, list[onnx.NodeProto]],
        constants: Mapping[str, Shaped[np.ndarray, "..."]],
    ) -> None:
        self._makers, self._users, self._constants = makers, users, constants
        self._outputs = {value.name for value in graph.output}
        self._computed = {value.name for value in graph.input if value.name not in constants}
        for node in graph.node:
            if any(name in self._computed for name in node.input):
                self._computed.update(node.output)

    def is_computed(self, name: str) -> bool:
        """True unless the tensor follows from constants alone."""
        return name in self._computed

    def of_input(self, name: str, dequantize: onnx.NodeProto, kind: IntType) -> Layer:
        """An input that is integer in the file."""
        aliases = (dequantize.output[0], dequantize.name)
        return Layer(name, name, self._grid(dequantize, kind), (), "Input", (), aliases)

    def of_node(self, node: onnx.NodeProto, found: Mapping[str, Layer]) -> Layer:
        """The layer that the QuantizeLinear ``node`` makes."""
        integers = node.output[0]
        dequantized = [
            user.output[0] for user in self._users.get(integers, ()) if user.op_type == DEQUANTIZE
        ]
        shown = [name for name in dequantized if name in self._outputs]
        taken = {layer.name for layer in found.values()}
        choice = (*shown, node.input[0], integers)
        name = next(name for name in choice if name not in taken)
        inner, sources = self._between(node.input[0], found)
        main = next((one for one in inner if one.op_type not in ("Relu", "Clip")), None)
        first = main or (inner[0] if inner else None)
        names = [one.name or one.output[0] for one in inner]
        if first is not None:
            own = first.name or first.output[0]
            names = [own, *(other for other in names if other != own)]
        aliases = dict.fromkeys([node.input[0], integers, *dequantized, node.name, *names[:1]])
        return Layer(
            name=name,
            integers=integers,
            grid=self._grid(node, self._kind(node)),
            nodes=tuple(names),
            op_type=first.op_type if first is not None else "Input",
            sources=sources,
            aliases=tuple(alias for alias in aliases if alias and alias != name),
        )

    def _between(
        self, name: str, found: Mapping[str, Layer]
    ) -> tuple[list[onnx.NodeProto], tuple[str, ...]]:
        """Nodes from the last integers to the tensor, the last first, and the layers they take."""
        nodes: list[onnx.NodeProto] = []
        sources: dict[str, None] = {}
        waiting = [name]
        while waiting:
            maker = self._makers.get(waiting.pop(0))
            if maker is None or maker in nodes or not self._is_run_time(maker):
                continue
            if maker.op_type == DEQUANTIZE and maker.input[0] in found:
                sources[found[maker.input[0]].name] = None
                continue
            nodes.append(maker)
            waiting += [source for source in maker.input if source in self._computed]
        return nodes, tuple(sources)

    def _is_run_time(self, node: onnx.NodeProto) -> bool:
        return any(name in self._computed for name in node.output)

    def _kind(self, node: onnx.NodeProto) -> IntType:
        """uint8 is what QuantizeLinear makes without a zero point or an ``output_dtype``."""
        point = self._constants.get(node.input[2]) if len(node.input) > 2 else None
        declared = [entry.i for entry in node.attribute if entry.name == "output_dtype"]
        if point is not None:
            kind = str(point.dtype)
        elif declared:
            kind = str(onnx.helper.tensor_dtype_to_np_dtype(declared[0]))
        else:
            kind = "uint8"
        if kind not in (IntType.INT8, IntType.UINT8):
            raise ModelError(f"makes {kind}, not 8 bits", where=_where(node))
        return IntType(kind)

    def _grid(self, node: onnx.NodeProto, kind: IntType) -> AffineParameters:
        scale = self._constants.get(node.input[1])
        point = (
            self._constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        )
        if (
            scale is None
            or scale.size != 1
            or (len(node.input) > 2 and node.input[2] and point is None)
        ):
            raise ModelError(
                "has no single constant scale and zero point",
                where=_where(node),
                do="quantize it with one scale per activation",
            )
        zero_point = 0 if point is None else int(point.reshape(-1)[0])
        return AffineParameters(float(scale.reshape(-1)[0]), zero_point, kind)


def _where(node: onnx.NodeProto) -> str:
    return f"{node.op_type} `{node.name or node.output[0]}`"
