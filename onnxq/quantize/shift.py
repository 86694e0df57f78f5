"""Activations of a Q/DQ file from int8 to uint8 or back: the same numbers, zero points 128 apart.

``q + 128`` with zero point ``z + 128`` stands for the same real value as ``q`` with ``z``, so that
only types and zero points change: scales, biases and int8 weights stay what they are. Integers that
a graph takes or gives keep their type, and are shifted at that border by one DQ and one Q.
"""

from collections.abc import Mapping, MutableSequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from jaxtyping import Integer
from onnx import TensorProto

from onnxq.errors import ModelError
from onnxq.graph import WEIGHTED, constants_of, is_quantized_form, refuse_inner_graphs
from onnxq.qdq import DEQUANTIZE, QDQ, QUANTIZE
from onnxq.qtypes import IntType

__all__ = ["ELEMENT", "OTHER", "Shifted", "shift_activations"]

_SHIFT = 128
ELEMENT = {IntType.INT8: TensorProto.INT8, IntType.UINT8: TensorProto.UINT8}
OTHER = {IntType.INT8: IntType.UINT8, IntType.UINT8: IntType.INT8}
_SUFFIX = {IntType.INT8: "s8", IntType.UINT8: "u8"}
# what moves integers, or takes the largest or smallest of them, gives shifted ones for shifted ones
_FIRST_INPUT = frozenset(
    {
        "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
        "MaxPool", "ReduceMax", "ReduceMin", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split",
        "Squeeze", "Tile", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
_ALL_INPUTS = frozenset({"Concat", "Max", "Min"})


@dataclass(frozen=True)
class Shifted:
    """A file whose activations are of another type, and which tensors those are.

    ``type`` is that type, and ``tensors`` maps every integer activation that had the other one to
    what it is called in ``model``.
    """

    model: onnx.ModelProto
    tensors: dict[str, str]
    type: IntType


def shift_activations(model: onnx.ModelProto, to: IntType, where: str) -> Shifted:
    """A copy of ``model`` whose every 8-bit activation is of type ``to`` (int8 or uint8).

    An activation is what a Q makes of a computed tensor, and the operands beside it that are
    constants; weights stay as they are, but for uint8 ones where activations become int8, as
    ONNX Runtime multiplies int8 by int8 only. What is of type ``to`` already is let be.
    Raises ModelError for a file in another form than Q/DQ, with graphs inside nodes, or with an
    operator that computes on the integers themselves.
    """
    _refuse_other_forms(model, where)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensors = _Tensors(copy, OTHER[to])
    tensors.refuse_arithmetic(where)
    edit = _Edit(copy, to)
    renamed = {name: name for name in tensors.shifted}
    for node in copy.graph.node:
        if tensors.belongs(node):
            edit.shift_zero_point(node, where)
    for name in sorted(tensors.shifted & tensors.constants.keys()):
        renamed[name] = edit.shift_constant(name, tensors.constants[name], tensors)
    renamed |= edit.borders(tensors.shifted)
    edit.finish(set(renamed.values()))
    computed = {old: new for old, new in renamed.items() if old not in tensors.constants}
    return Shifted(copy, computed, to)


def _refuse_other_forms(model: onnx.ModelProto, where: str) -> None:
    others = [
        node
        for node in model.graph.node
        if node.op_type not in QDQ and is_quantized_form(node.op_type)
    ]
    if others:
        raise ModelError(
            f"QOperator or dynamic form ({len(others)} nodes, first {others[0].op_type} "
            f"`{others[0].name}`): only files in Q/DQ form can be converted",
            where=where,
            do="quantize the FP32 model statically with quant_format=QuantFormat.QDQ",
        )
    if model.functions:
        raise ModelError(
            f"holds functions of its own (first `{model.functions[0].name}`)",
            where=where,
            do="inline them: onnx.inliner.inline_local_functions",
        )
    refuse_inner_graphs(model, where)


class _Tensors:
    """The integer tensors of a graph that are activations of type ``kind``."""

    def __init__(self, model: onnx.ModelProto, kind: IntType) -> None:
        self.graph = model.graph
        self.constants = constants_of(model)
        self._makers = {output: node for node in model.graph.node for output in node.output}
        self._computed = _computed(model.graph, self.constants)
        self._element = ELEMENT[kind]
        self._types = _types(model, self.constants)
        self._kept = self._weights(kind)
        self.shifted = self._followed(
            {
                self._integers(node)
                for node in self.graph.node
                if node.op_type in QDQ and self._is_activation(node)
            }
        )

    @staticmethod
    def _integers(node: onnx.NodeProto) -> str:
        return str(node.output[0] if node.op_type == QUANTIZE else node.input[0])

    def belongs(self, node: onnx.NodeProto) -> bool:
        """Whether a node is a Q or DQ of an activation that is shifted."""
        if node.op_type not in QDQ or node.output[0] in self._kept:
            return False
        return self._integers(node) in self.shifted

    def _is_activation(self, node: onnx.NodeProto) -> bool:
        of_type = self._types.get(self._integers(node)) == self._element
        return of_type and node.output[0] not in self._kept

    def _weights(self, kind: IntType) -> set[str]:
        """Outputs of Q and DQ that make weights of constants, and are to be left alone."""
        if kind is IntType.UINT8:
            return {node.output[0] for node in self.graph.node if self._is_cast_weight(node)}
        found = set()
        for node in self.graph.node:
            name = node.input[1] if node.op_type in WEIGHTED else ""
            while name in self._makers and name not in self._computed:
                found.add(name)
                name = (*self._makers[name].input, "")[0]
        return found

    def _is_cast_weight(self, node: onnx.NodeProto) -> bool:
        """Whether a DQ reads integers that a node makes of constants, as 4-bit weights are."""
        maker = self._makers.get(node.input[0]) if node.op_type == DEQUANTIZE else None
        from_constants = maker is not None and maker.output[0] not in self._computed
        return from_constants and maker is not None and maker.op_type not in {QUANTIZE, "Constant"}

    def _followed(self, found: set[str]) -> set[str]:
        """``found``, and what nodes that only move integers make of them, or make them from."""
        grown = True
        while grown:
            before = len(found)
            for node in self.graph.node:
                moved = {*_moved(node), *_moved_to(node)}
                if moved & found:
                    found |= {name for name in moved if self._types.get(name) == self._element}
            grown = len(found) > before
        return found

    def refuse_arithmetic(self, where: str) -> None:
        """Raise ModelError if a node computes on, or makes, integers that would be shifted."""
        for node in self.graph.node:
            allowed = {self._integers(node)} if node.op_type in QDQ else set(_moved(node))
            allowed |= set(_moved_to(node))
            for name in ({*node.input, *node.output} & self.shifted) - allowed:
                if node.op_type != "Constant":
                    raise ModelError(
                        f"{node.op_type} `{node.name}` computes on the integers `{name}` "
                        "themselves: shifted by 128 they would mean something else",
                        where=where,
                        do="put a DequantizeLinear before that node and a QuantizeLinear behind it",
                    )


def _moved(node: onnx.NodeProto) -> list[str]:
    """Inputs of a node whose values it only moves or chooses from."""
    if node.op_type in _ALL_INPUTS:
        return list(node.input)
    nearest = [a.s for a in node.attribute if a.name == "mode"] in ([], [b"nearest"])
    moves = node.op_type in _FIRST_INPUT and (node.op_type != "Resize" or nearest)
    return list(node.input[:1]) if moves else []


def _moved_to(node: onnx.NodeProto) -> list[str]:
    """Outputs of a node that hold values of its inputs."""
    if not _moved(node):
        return []
    return list(node.output) if node.op_type == "Split" else list(node.output[:1])


def _computed(graph: onnx.GraphProto, constants: Mapping[str, object]) -> set[str]:
    """Tensors that depend on the graph's inputs."""
    found = {value.name for value in graph.input if value.name not in constants}
    for node in graph.node:
        if found & set(node.input):
            found |= set(node.output)
    return found


def _types(model: onnx.ModelProto, constants: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Element types of constants, inputs, and of integers behind a Q however far they are moved."""
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for tensor in model.graph.initializer:
        types[tensor.name] = tensor.data_type
    for node in model.graph.node:
        if node.op_type == "Constant" and node.output[0] in constants:
            dtype = constants[node.output[0]].dtype
            types[node.output[0]] = onnx.helper.np_dtype_to_tensor_dtype(dtype)
        elif node.op_type == QUANTIZE:
            chosen = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
            zero_point = node.input[2] if len(node.input) > 2 else ""
            types[node.output[0]] = types.get(zero_point, (*chosen, TensorProto.UINT8)[0])
        elif node.op_type == "Cast":
            types[node.output[0]] = next(a.i for a in node.attribute if a.name == "to")
        else:
            kinds = [types[name] for name in _moved(node) if name in types]
            types |= dict.fromkeys(_moved_to(node), kinds[0]) if kinds else {}
    return types


@dataclass
class _Edit:
    """Changes to one graph, in place."""

    model: onnx.ModelProto
    to: IntType
    shift: int = field(init=False)
    _arrays: dict[str, np.ndarray] = field(init=False)
    _done: dict[tuple[str, ...], str] = field(init=False, default_factory=dict)
    _names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.shift = _SHIFT if self.to is IntType.UINT8 else -_SHIFT
        self._arrays = constants_of(self.model)
        outputs = (name for node in graph.node for name in node.output)
        self._names = {*self._arrays, *outputs, *(value.name for value in graph.input)}

    def shift_zero_point(self, node: onnx.NodeProto, where: str) -> None:
        """Give a Q or DQ its shifted zero point."""
        old = node.input[2] if len(node.input) > 2 else ""
        if old and old not in self._arrays:
            raise ModelError(
                f"the zero point `{old}` of `{node.output[0]}` is computed at run time",
                where=where,
                do="give a file with constant zero points",
            )
        scale = self._arrays.get(node.input[1], np.zeros(()))
        array = self._arrays[old] if old else np.zeros(scale.shape, np.int16)
        key = (old, str(array.shape))
        if key not in self._done:
            self._done[key] = self._store(old or "zero_point", self._moved(array))
        del node.input[2:]
        node.input.append(self._done[key])
        for attribute in [a for a in node.attribute if a.name == "output_dtype"]:
            node.attribute.remove(attribute)

    def shift_constant(self, name: str, array: np.ndarray, tensors: _Tensors) -> str:
        """Store the shifted integers of an operand, for those that read it as one."""
        new = self._store(name, self._moved(array))
        for node in self.model.graph.node:
            if tensors.belongs(node) or (_moved(node) and node.op_type != DEQUANTIZE):
                _rename(node.input, {name: new})
        return new

    def borders(self, shifted: set[str]) -> dict[str, str]:
        """Shift integers of inputs and outputs where they enter and leave; their new names."""
        graph, renamed = self.model.graph, {}
        before, after = [], []
        constants = {tensor.name for tensor in graph.initializer}
        inputs = [v.name for v in graph.input if v.name in shifted - constants]
        outputs = [v.name for v in graph.output if v.name in shifted]
        for name in dict.fromkeys((*inputs, *outputs)):
            renamed[name] = self._unused(name)
        for node in graph.node:
            _rename(node.input, renamed)
            _rename(node.output, renamed)
        for name in inputs:
            before += self._border(name, renamed[name], inwards=True)
        for name in outputs:
            if name not in inputs:  # one that is passed through has its own type still
                after += self._border(renamed[name], name, inwards=False)
        nodes = [*before, *graph.node, *after]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        return renamed

    def _border(self, source: str, name: str, *, inwards: bool) -> list[onnx.NodeProto]:
        """A DQ and a Q of scale 1 that add the shift (``inwards``) or take it away."""
        one = self._once("border.scale", np.float32(1))
        zero = {
            IntType.INT8: self._once("border.s8", np.int8(0)),
            IntType.UINT8: self._once("border.u8", np.uint8(_SHIFT)),
        }
        source_kind, kind = (OTHER[self.to], self.to) if inwards else (self.to, OTHER[self.to])
        middle = self._unused(f"{name}.real")
        return [
            onnx.helper.make_node(
                DEQUANTIZE, [source, one, zero[source_kind]], [middle], name=middle
            ),
            onnx.helper.make_node(QUANTIZE, [middle, one, zero[kind]], [name], name=f"{middle}.q"),
        ]

    def finish(self, shifted: set[str]) -> None:
        """Correct the types that are noted in the file, and drop constants without a use."""
        graph = self.model.graph
        for value in graph.value_info:
            if value.name in shifted:
                value.type.tensor_type.elem_type = ELEMENT[self.to]
        used = {name for node in graph.node for name in node.input}
        used |= {value.name for value in (*graph.input, *graph.output)}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
            graph.initializer.remove(tensor)

    def _moved(self, array: Integer[np.ndarray, "..."]) -> Integer[np.ndarray, "..."]:
        return np.asarray(array.astype(np.int16) + self.shift).astype(self.to.value)

    def _once(self, name: str, value: np.generic) -> str:
        if (name,) not in self._done:
            self._done[(name,)] = self._store(name, np.asarray(value))
        return self._done[(name,)]

    def _store(self, name: str, array: np.ndarray) -> str:
        new = self._unused(name)
        self.model.graph.initializer.append(onnx.numpy_helper.from_array(array, new))
        return new

    def _unused(self, name: str) -> str:
        stem = f"{name}.{_SUFFIX[self.to]}"
        tries = (stem, *(f"{stem}.{n}" for n in range(2, len(self._names) + 3)))
        new = next(candidate for candidate in tries if candidate not in self._names)
        self._names.add(new)
        return new


def _rename(names: MutableSequence[str], new: Mapping[str, str]) -> None:
    """Rename in place, in a node's list of inputs or outputs."""
    for index, name in enumerate(names):
        if name in new:
            names[index] = new[name]
