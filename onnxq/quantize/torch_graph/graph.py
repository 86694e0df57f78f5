"""The graph itself: its nodes as torch calls, its constants as parameters and buffers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx.inliner
import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from onnxq.errors import DataError, ModelError, UsageError, nearest
from onnxq.quantize.torch_graph import (  # noqa: F401 (each fills the table with its operators)
    activations,
    convolution,
    elementwise,
    fake_quant,
    indexing,
    normalization,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sampling,
    shaping,
)
from onnxq.quantize.torch_graph.fused import IntegerNodes, with_kernels
from onnxq.quantize.torch_graph.pairs import with_pairs
from onnxq.quantize.torch_graph.registry import (
    NEWEST_OPSET,
    OLDEST_OPSET,
    Call,
    Step,
    computation_of,
)
from onnxq.quantize.torch_graph.trainable import MOVING, trainable_constants
from onnxq.quantize.torch_graph.types import (
    BOUNDS,
    as_tensor,
    delivered,
    held,
    is_carried,
    landed,
    wrapped,
)
from onnxq.shapes import infer_shapes

__all__ = ["TorchGraph"]

_CARRYING = MOVING | {"Cast", "CastLike", "DequantizeLinear", "MaxPool", "Pad"}


class TorchGraph(nn.Module):
    """An ONNX graph of opset 13 to 21, computed by torch with gradients.

    Its parameters are the float initializers that are a weight or a bias, also behind Q/DQ; every
    other constant is a buffer. In torch's own listings their names stand with "." as "%2E"; by
    their names in the graph they are in ``weights``. Dropout and BatchNormalization are those of
    inference, whatever ``train()`` says.

    With ``on_integers`` those nodes are computed as ONNX Runtime computes them with full
    optimization, to the last code and without gradients; nothing inside them can be asked for.

    Raises ModelError naming the node whose operator, attribute or type cannot be computed exactly.
    """

    def __init__(self, model: onnx.ModelProto, on_integers: IntegerNodes | None = None) -> None:
        super().__init__()
        self._where = model.graph.name or "the graph"
        opset = self._opset_of(model)
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        graph = infer_shapes(model, self._where).graph
        self._types = _types_of(graph)
        self._keys: dict[str, str] = {}
        self._constants = nn.Module()
        self._enter_constants(graph)
        self._outputs = tuple(value.name for value in graph.output)
        self._inputs = tuple(v.name for v in graph.input if v.name not in self._keys)
        steps = tuple(self._steps_of(graph, opset))
        if on_integers is not None:
            steps = with_kernels(steps, self._outputs, on_integers)
        paired = with_pairs(steps, self._outputs)
        self._steps, self._paired = _with_spent(steps), _with_spent(paired)
        self._stretches: dict[tuple[frozenset[str], tuple[str, ...]], tuple[Step, ...]] = {}
        self._hidden = _made(steps) - _made(paired)
        made = _made(steps)
        self._known = frozenset([*self._keys, *self._inputs, *made]) - {""}

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """What is trained, by its name in the graph."""
        found = {name: getattr(self._constants, key) for name, key in self._keys.items()}
        return {name: t for name, t in found.items() if isinstance(t, nn.Parameter)}

    def make_trainable(self, name: str) -> nn.Parameter:
        """Turn a constant, such as the scale of a QuantizeLinear, into a parameter.

        Raises UsageError where the graph has no floating point constant of that name.
        """
        key = self._keys.get(name, "")
        tensor = getattr(self._constants, key) if key else None
        if tensor is None or not tensor.is_floating_point():
            raise UsageError(
                f"the graph has no floating point constant `{name}`",
                where=self._where,
                do=nearest(name, self._keys),
            )
        if isinstance(tensor, nn.Parameter):
            return tensor
        delattr(self._constants, key)
        parameter = nn.Parameter(tensor)
        self._constants.register_parameter(key, parameter)
        return parameter

    @property
    def grids(self) -> dict[str, tuple[str, str, str]]:
        """By the codes that a QuantizeLinear makes: what it rounds, scale, zero point or ""."""
        return {
            step.outputs[0]: (step.inputs[0], step.inputs[1], [*step.inputs, ""][2])
            for step in self._steps
            if step.call.op_type == "QuantizeLinear"
        }

    def forward(
        self,
        inputs: Mapping[str, Shaped[Tensor, "..."]],
        wanted: Sequence[str] = (),
        instead: Mapping[str, Shaped[Tensor, "..."]] | None = None,
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """The graph's outputs and the tensors named by ``wanted``.

        What follows from a tensor that ``instead`` names is computed of the value given there, and
        not of what is delivered for it.

        Raises DataError for inputs that are missing, unknown or of another type, UsageError for a
        wanted tensor that the graph does not have, ModelError where torch refuses a node.
        """
        self._refuse_unknown(wanted)
        kept = (*self._outputs, *wanted)
        values = {name: getattr(self._constants, key) for name, key in self._keys.items()}
        values |= self._given(inputs)
        instead, replaced = instead or {}, {}
        for step in self._steps if self._hidden & {*wanted, *instead} else self._paired:
            made = dict(zip(step.outputs, self._computed(step, values), strict=False))
            for name in instead.keys() & made.keys():
                replaced[name], made[name] = made[name], instead[name]
            values.update(made)
            for name in step.spent:
                if name not in kept:
                    values.pop(name, None)
        return {
            name: delivered(landed(replaced.get(name, values[name]), type_, self._where), type_)
            for name in kept
            for type_ in (self._types[name],)
        }

    def between(
        self, values: Mapping[str, Shaped[Tensor, "..."]], wanted: Sequence[str]
    ) -> dict[str, Shaped[Tensor, "..."]]:
        """The tensors ``wanted``, computed from ``values``: inputs, other numbers for constants, or
        tensors from inside the graph. Only nodes between them are run.

        Raises DataError if an input of the graph would be needed, UsageError and ModelError as
        ``forward`` does.
        """
        self._refuse_unknown(wanted)
        found = {name: getattr(self._constants, key) for name, key in self._keys.items()}
        found |= values
        given = frozenset(values)
        for step in self._steps_between(given, tuple(wanted)):
            found.update(zip(step.outputs, self._computed(step, found), strict=False))
            for name in step.spent:
                if name not in wanted:
                    found.pop(name, None)
        return {
            name: delivered(landed(found[name], self._types[name], self._where), self._types[name])
            for name in wanted
        }

    def _steps_between(self, given: frozenset[str], wanted: tuple[str, ...]) -> tuple[Step, ...]:
        if (given, wanted) in self._stretches:
            return self._stretches[given, wanted]
        needed, kept = set(wanted) - given, []
        steps = self._steps if self._hidden & {*wanted, *given} else self._paired
        for step in reversed(steps):
            if needed & set(step.outputs):
                kept.append(step)
                needed = (needed - set(step.outputs)) | (set(step.inputs) - given - {""})
        missing = needed - self._keys.keys()
        if missing:
            raise DataError(
                f"`{min(missing)}` would be needed and is not given",
                where=self._where,
                do="give it, or a tensor behind it",
            )
        stretch = _with_spent(kept[::-1])
        self._stretches[given, wanted] = stretch
        return stretch

    def _refuse_unknown(self, wanted: Sequence[str]) -> None:
        for name in wanted:
            if name not in self._known:
                raise UsageError(
                    f"the graph has no tensor `{name}`",
                    where=self._where,
                    do=nearest(name, self._known),
                )

    def run(
        self,
        inputs: Mapping[str, Shaped[np.ndarray, "..."]],
        wanted: Sequence[str] = (),
        instead: Mapping[str, Shaped[np.ndarray, "..."]] | None = None,
    ) -> dict[str, Shaped[np.ndarray, "..."]]:
        """As ``forward``, of arrays and without gradients."""
        fed, put = (
            {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
            for arrays in (inputs, instead or {})
        )
        with torch.no_grad():
            return {name: t.numpy() for name, t in self(fed, wanted, put).items()}

    def _opset_of(self, model: onnx.ModelProto) -> int:
        versions = [o.version for o in model.opset_import if o.domain in ("", "ai.onnx")]
        opset = versions[0] if versions else 0
        if OLDEST_OPSET <= opset <= NEWEST_OPSET:
            return opset
        raise ModelError(
            f"it is of opset {opset}; {OLDEST_OPSET} to {NEWEST_OPSET} are computed in torch",
            where=self._where,
            do="export the model again at one of these, or convert it with onnx.version_converter",
        )

    def _enter_constants(self, graph: onnx.GraphProto) -> None:
        """Initializers and Constant nodes. Raises ModelError for what torch does not hold."""
        if graph.sparse_initializer:
            raise ModelError(
                "it has sparse initializers", where=self._where, do="store them as dense ones"
            )
        trained = trainable_constants(graph)
        for name, proto in _constants(graph):
            key = _key_of(name)
            self._keys[name] = key
            where = f"{self._where}, constant `{name}`"
            held(proto.data_type, where)
            tensor = as_tensor(onnx.numpy_helper.to_array(proto), proto.data_type, where)
            if name in trained:
                if tensor.dim() == 4:  # convolutions then need no copies in another order
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
                self._constants.register_parameter(key, nn.Parameter(tensor))
            else:
                self._constants.register_buffer(key, tensor)

    def _steps_of(self, graph: onnx.GraphProto, opset: int) -> Iterator[Step]:
        for node in graph.node:
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                continue
            where = f"{self._where}, {node.op_type} `{node.name or next(iter(node.output), '')}`"
            computation = computation_of(node.domain, node.op_type, where)
            for name in filter(None, node.output):
                if name not in self._types:
                    raise ModelError(
                        f"onnx cannot infer the type of `{name}`",
                        where=where,
                        do="check the node with onnx.checker.check_model(full_check=True)",
                    )
                held(self._types[name], f"{where}, tensor `{name}`")
            call = Call(
                where=where,
                op_type=node.op_type,
                opset=opset,
                attributes=_attributes(node),
                input_types=tuple(self._types.get(name, 0) for name in node.input),
                output_types=tuple(self._types.get(name, 0) for name in node.output),
            )
            yield Step(call, computation, tuple(node.input), tuple(node.output))

    def _given(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        given: dict[str, Tensor] = {}
        for name in self._inputs:
            if name not in inputs:
                raise DataError(
                    f"the input `{name}` is missing", where=self._where, do="give it a tensor"
                )
        for name, tensor in inputs.items():
            if name not in self._inputs and name not in self._keys:
                raise DataError(
                    f"the graph has no input `{name}`",
                    where=self._where,
                    do=nearest(name, self._inputs),
                )
            type_ = self._types[name]
            dtype = held(type_, f"{self._where}, input `{name}`")
            if dtype.is_floating_point != tensor.dtype.is_floating_point:
                raise DataError(
                    f"the input `{name}` is {tensor.dtype}; the graph declares {dtype}",
                    where=self._where,
                    do="convert it",
                )
            whole = tensor if dtype.is_floating_point else tensor.to(dtype)
            given[name] = wrapped(whole, type_, f"{self._where}, input `{name}`")
        return given

    def _computed(self, step: Step, values: Mapping[str, Tensor]) -> list[Tensor]:
        call = step.call
        arguments: list[Tensor | None] = []
        for i, name in enumerate(step.inputs):
            value = values[name] if name else None
            carries = call.op_type in _CARRYING and (i == 0 or call.op_type == "Concat")
            if value is not None and not carries:
                value = landed(value, call.input_types[i], call.where)
            arguments.append(value)
        try:
            made = step.computation(call, *arguments)
        except (RuntimeError, IndexError, TypeError, ValueError) as fault:
            raise ModelError(
                f"torch cannot compute it: {str(fault).splitlines()[0]}",
                where=call.where,
                do="check the shapes of what is fed and the node's attributes",
            ) from fault
        results = made if isinstance(made, tuple) else (made,)
        return [
            _typed(tensor, type_, call.where)
            for tensor, type_ in zip(results, call.output_types, strict=False)
        ]


def _made(steps: Sequence[Step]) -> frozenset[str]:
    """Every tensor that steps make."""
    return frozenset(name for step in steps for name in step.outputs)


def _with_spent(steps: Sequence[Step]) -> tuple[Step, ...]:
    """Each step with the tensors that are forgotten behind it."""
    last = {name: i for i, step in enumerate(steps) for name in step.inputs}
    spent = (
        tuple(n for n in {*step.inputs, *step.outputs} if n and last.get(n, -1) <= i)
        for i, step in enumerate(steps)
    )
    return tuple(replace(step, spent=names) for step, names in zip(steps, spent, strict=True))


def _typed(tensor: Tensor, type_: int, where: str) -> Tensor:
    """A result in the type that torch holds; floating point and codes as they are."""
    if not type_ or is_carried(tensor, type_):
        return tensor
    dtype = held(type_, where)
    if type_ in BOUNDS or tensor.is_floating_point() != dtype.is_floating_point:
        tensor = tensor.to(dtype)
    return wrapped(tensor, type_, where)


def _types_of(graph: onnx.GraphProto) -> dict[str, int]:
    values = [*graph.value_info, *graph.input, *graph.output]
    types = {v.name: v.type.tensor_type.elem_type for v in values if v.type.tensor_type.elem_type}
    return types | {name: proto.data_type for name, proto in _constants(graph)}


def _constants(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for proto in graph.initializer:
        yield proto.name, proto
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            yield node.output[0], _constant_of(node)


def _constant_of(node: onnx.NodeProto) -> onnx.TensorProto:
    """The value of a Constant node. Raises ModelError for strings and sparse tensors."""
    attribute = node.attribute[0]
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return value
    kinds: dict[str, type[np.generic]] = {"value_float": np.float32, "value_floats": np.float32}
    kinds |= {"value_int": np.int64, "value_ints": np.int64}
    if attribute.name not in kinds:
        raise ModelError(
            f"a constant given as {attribute.name} is not computed in torch",
            where=f"Constant `{node.output[0]}`",
            do="store it as a dense tensor of numbers",
        )
    return onnx.numpy_helper.from_array(np.asarray(value, kinds[attribute.name]))


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    found = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in found.items()}


def _key_of(name: str) -> str:
    """A name that torch takes for a parameter: without dots, and no attribute of a module."""
    key = name.replace("%", "%25").replace(".", "%2E")
    if not key or hasattr(nn.Module, key) or key in nn.Module().__dict__:
        key = f"%{ord(key[0]):02X}{key[1:]}" if key else "%"
    return key
