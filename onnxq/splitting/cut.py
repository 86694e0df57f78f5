"""One part of a graph, FP32 or Q/DQ, as a model of its own."""

from collections.abc import Iterator, Mapping, MutableSequence, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxq.errors import ExportError, nearest
from onnxq.graph import constants_of, cut_to
from onnxq.qdq import DEQUANTIZE, QDQ, QUANTIZE
from onnxq.recipe import PartSection, PartValue
from onnxq.splitting.route import rows_of, shape_of_run

__all__ = ["cut_part"]

_VIEWS = frozenset({"Reshape", "Flatten"})
Shapes = Mapping[str, tuple[int, ...]]


def cut_part(model: onnx.ModelProto, part: PartSection, shapes: Shapes) -> onnx.ModelProto:
    """The model of ``part``, with static shapes and a batch of 1 where it runs ``each_row``.

    ``shapes`` are those of the FP32 graph for one sample. In a Q/DQ graph a part begins with the Q
    of its inputs and ends with the DQ of its outputs, so that neighbours share scale and zero
    point, and the integers of both are those of the whole. Raises ExportError where the graph has
    no such tensor, or computes something else when it is run row by row.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _Cutter(copy, part, shapes).cut()
    try:
        onnx.checker.check_model(copy, full_check=True)
        return onnx.shape_inference.infer_shapes(copy, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
        raise ExportError(
            f"is no graph of its own: {str(fault).strip().splitlines()[0]}",
            where=f"split, part {part.name}",
            do="cut where every value of the first axis is computed by itself",
        ) from fault


class _Cutter:
    """Changes a graph in place until it is the part."""

    def __init__(self, model: onnx.ModelProto, part: PartSection, shapes: Shapes) -> None:
        self._model, self._graph = model, model.graph
        self._part, self._shapes = part, shapes
        self._number = 0
        inferred = onnx.shape_inference.infer_shapes(model).graph
        self._kinds = {
            value.name: value.type.tensor_type.elem_type
            for value in (*inferred.input, *inferred.value_info, *inferred.output)
        }

    def cut(self) -> None:
        """Outputs first: what only they need is what stays."""
        outputs = [self._end(value) for value in self._part.outputs]
        inputs = [self._begin(value) for value in self._part.inputs]
        del self._graph.value_info[:], self._graph.output[:], self._graph.input[:]
        self._graph.output.extend(outputs)
        cut_to(self._model)
        self._refuse_other_inputs({value.name for value in inputs})
        self._graph.input.extend(inputs)
        if self._part.each_row:
            self._one_row()

    def _begin(self, value: PartValue) -> onnx.ValueInfoProto:
        """A graph input in place of a tensor."""
        self._known(value)
        name, shape = value.label, shape_of_run(self._part, value, self._shapes)
        fresh = f"{self._part.name}.{name}.in"
        for node in self._graph.node:
            _replace(node.input, value.tensor, fresh)
        inner = self._shapes[value.tensor]
        if value.shape is not None and len(shape) != len(inner):
            self._restore(fresh, (inner[0] // rows_of(self._part, self._shapes), *inner[1:]))
        self._rename(fresh, name, value.tensor)
        return helper.make_tensor_value_info(name, self._kinds[value.tensor], shape)

    def _restore(self, name: str, shape: Sequence[int]) -> None:
        """Give the tensor's own shape to those readers, past Q and DQ, that are no views."""
        for node in list(self._graph.node):
            if name not in node.input or node.op_type in _VIEWS:
                continue
            if node.op_type in QDQ:
                self._restore(node.output[0], shape)
                continue
            view = self._after(name, shape)
            _replace(node.input, name, view)

    def _end(self, value: PartValue) -> onnx.ValueInfoProto:
        """A graph output that shows a tensor, dequantized where it is quantized."""
        self._known(value)
        shape = shape_of_run(self._part, value, self._shapes)
        shown = self._dequantized(value.tensor)
        inner = self._shapes[value.tensor]
        if value.shape is not None and tuple(shape) != (1, *inner[1:]):
            shown = self._after(shown, shape)
        if shown == value.label:
            return helper.make_tensor_value_info(shown, self._kinds[value.tensor], shape)
        if value.label in self._names():
            self._rename(value.label, f"{value.label}.raw", value.tensor)
            shown = f"{value.label}.raw" if shown == value.label else shown
        self._rename(shown, value.label, value.tensor)
        return helper.make_tensor_value_info(value.label, self._kinds[value.tensor], shape)

    def _dequantized(self, tensor: str) -> str:
        for quantize in self._readers(tensor, QUANTIZE):
            for dequantize in self._readers(quantize.output[0], DEQUANTIZE):
                return str(dequantize.output[0])
        return tensor

    def _after(self, name: str, shape: Sequence[int]) -> str:
        """A view of a tensor, with the Q and DQ of that tensor behind it if it comes from a DQ."""
        target = self._name("shape")
        array = np.array(shape, np.int64)
        self._graph.initializer.append(numpy_helper.from_array(array, target))
        view = helper.make_node("Reshape", [name, target], [self._name("view")], self._name("n"))
        added, maker = [view], self._maker(name)
        if maker is not None and maker.op_type == DEQUANTIZE:
            parameters = list(maker.input[1:])
            quantize = helper.make_node(
                QUANTIZE, [view.output[0], *parameters], [self._name("q")], self._name("n")
            )
            dequantize = helper.make_node(
                DEQUANTIZE, [quantize.output[0], *parameters], [self._name("d")], self._name("n")
            )
            added += [quantize, dequantize]
        nodes = list(self._graph.node)
        place = nodes.index(maker) + 1 if maker is not None else 0
        nodes[place:place] = added
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del self._graph.node[:]
        self._graph.node.extend(copies)
        return str(added[-1].output[0])

    def _one_row(self) -> None:
        """Views that spell out the number of rows make one row."""
        rows = rows_of(self._part, self._shapes)
        constants = constants_of(self._model)
        for node in self._graph.node:
            shape = constants.get(node.input[1]) if node.op_type == "Reshape" else None
            if shape is not None and shape.size and shape[0] == rows:
                name = self._name("shape")
                array = np.array([1, *shape[1:]], np.int64)
                self._graph.initializer.append(numpy_helper.from_array(array, name))
                node.input[1] = name
        cut_to(self._model)

    def _refuse_other_inputs(self, wanted: set[str]) -> None:
        made = {name for node in self._graph.node for name in node.output}
        known = made | wanted | {tensor.name for tensor in self._graph.initializer}
        for node in self._graph.node:
            for name in node.input:
                if name and name not in known:
                    raise ExportError(
                        f"{node.op_type} `{node.name}` needs `{name}`, which is no input of it",
                        where=f"split, part {self._part.name}",
                        do="list the tensor among the part's inputs",
                    )

    def _known(self, value: PartValue) -> None:
        names, where = self._names(), f"split, part {self._part.name}"
        if value.tensor not in names:
            raise ExportError(
                f"there is no tensor `{value.tensor}`; {nearest(value.tensor, names)}",
                where=where,
                do="cut behind a Relu or Clip, not before it: it is folded away",
            )
        if value.label != value.tensor and value.label in names:
            raise ExportError(
                f"the graph has another tensor called `{value.label}`",
                where=where,
                do="give the part's input or output another `name`",
            )

    def _names(self) -> set[str]:
        made = {name for node in self._graph.node for name in node.output}
        return made | {value.name for value in self._graph.input}

    def _maker(self, name: str) -> onnx.NodeProto | None:
        return next((node for node in self._graph.node if name in node.output), None)

    def _readers(self, name: str, op_type: str) -> Iterator[onnx.NodeProto]:
        nodes = list(self._graph.node)
        return (node for node in nodes if node.op_type == op_type and node.input[0] == name)

    def _rename(self, old: str, new: str, tensor: str) -> None:
        """Call a value ``new`` everywhere; what was called so before was the cut ``tensor``."""
        if old == new:
            return
        for node in self._graph.node:
            if new in node.output:
                _replace(node.output, new, f"{tensor}.outside")
            _replace(node.input, old, new)
            _replace(node.output, old, new)

    def _name(self, what: str) -> str:
        self._number += 1
        return f"{self._part.name}.{what}_{self._number}"


def _replace(names: MutableSequence[str], old: str, new: str) -> None:
    """Put ``new`` where ``old`` stands in a node's inputs or outputs."""
    for index, name in enumerate(names):
        if name == old:
            names[index] = new
