"""DQ, operator and Q as one step on integers, where ONNX Runtime has an integer kernel for them."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
import torch
from torch import Tensor

from onnxq.quantize.torch_graph.integers import KERNELS, Grid, Operand, quantized_bias
from onnxq.quantize.torch_graph.registry import Call, Computation, Step

__all__ = ["IntegerNodes", "with_kernels"]

_FOLDED = frozenset({"Clip", "Relu"})
_GIVES_FLOAT = frozenset({"Gemm", "MatMul"})
_TWO_OPERANDS = frozenset({"Add", "Conv", "Gemm", "MatMul", "Mul"})
_SHIFT = 128  # between the codes of int8 and of uint8


@dataclass(frozen=True)
class IntegerNodes:
    """Which nodes are computed as ONNX Runtime's integer kernels compute them.

    ``outputs`` are the first outputs of those nodes; a Relu or Clip behind one is folded into it
    where its output is among them too. ``as_uint8``: int8 activations are turned into uint8 first.
    """

    outputs: frozenset[str]
    as_uint8: bool = False


def with_kernels(
    steps: Sequence[Step], outputs: Collection[str], nodes: IntegerNodes
) -> tuple[Step, ...]:
    """The steps with each of ``nodes``, its DQs and its Q made one; what nobody takes is left out.

    A node that is not between a DQ and a Q, or for which there is no kernel, stays as it is.
    """
    makers = {name: step for step in steps for name in step.outputs}
    takers: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        for name in step.inputs:
            takers[name].append(step)
    fused: dict[str, Step] = {}
    for step in steps:
        if step.outputs[0] not in nodes.outputs or step.call.op_type not in KERNELS:
            continue
        last = _last_folded(step, takers, nodes, outputs)
        kernel = _fused(step, makers, _writer(last, takers, outputs), nodes)
        if kernel is not None:
            fused[kernel.outputs[0]] = kernel
    replaced = [fused.get(step.outputs[0], step) for step in steps]
    return _living(replaced, outputs)


def _last_folded(
    step: Step, takers: Mapping[str, Sequence[Step]], nodes: IntegerNodes, outputs: Collection[str]
) -> str:
    """What a node's output is behind the Relu and Clip that are folded into it."""
    name = step.outputs[0]
    while name not in outputs and len(takers[name]) == 1:
        (taker,) = takers[name]
        if taker.call.op_type not in _FOLDED or taker.outputs[0] not in nodes.outputs:
            break
        name = taker.outputs[0]
    return name


def _writer(
    name: str, takers: Mapping[str, Sequence[Step]], outputs: Collection[str]
) -> Step | None:
    """The Q that alone takes a tensor."""
    found = takers[name]
    alone = name not in outputs and len(found) == 1
    return found[0] if alone and found[0].call.op_type == "QuantizeLinear" else None


def _fused(
    step: Step, makers: Mapping[str, Step], writer: Step | None, nodes: IntegerNodes
) -> Step | None:
    """The kernel's step: its inputs are codes, scale and zero point of each operand, the bias, and
    scale and zero point of what it makes; "" for what is not there."""
    count = 2 if step.call.op_type in _TWO_OPERANDS else 1
    readers = [_reader(name, makers) for name in step.inputs]
    operands = [reader for reader in readers[:count] if reader is not None]
    if len(operands) < count or (writer is None and step.call.op_type not in _GIVES_FLOAT):
        return None
    tensors = [tensor for reader in operands for tensor in _three(reader)]
    bias = [(name, type_) for name, type_ in zip(step.inputs, step.call.input_types, strict=True)]
    if len(step.inputs) > 2 and (reader := readers[2]) is not None:
        bias[2] = _three(reader)[0]
    tensors.append([*bias, ("", 0), ("", 0)][2] if count == 2 else ("", 0))
    end = step if writer is None else writer
    tensors += [("", 0), ("", 0)] if writer is None else _three(writer)[1:]
    names, types = zip(*tensors, strict=True)
    call = replace(end.call, where=step.call.where, input_types=types)
    reads = tuple(reader.call for reader in operands)
    return Step(call, _computation(step.call, reads, as_uint8=nodes.as_uint8), names, end.outputs)


def _reader(name: str, makers: Mapping[str, Step]) -> Step | None:
    step = makers.get(name)
    return step if step is not None and step.call.op_type == "DequantizeLinear" else None


def _three(step: Step) -> list[tuple[str, int]]:
    """What a Q or DQ takes, with its types; the zero point may be missing."""
    return [*zip(step.inputs, step.call.input_types, strict=True), ("", 0)][:3]


def _computation(op: Call, reads: Sequence[Call], *, as_uint8: bool) -> Computation:
    kernel = KERNELS[op.op_type]

    def grid(scale: Tensor, zero: Tensor | None, type_: int) -> Grid:
        shift = _SHIFT if as_uint8 and type_ == onnx.TensorProto.INT8 else 0
        return Grid(scale, torch.zeros_like(scale) if zero is None else zero, type_, shift)

    def compute(call: Call, *given: Tensor | None) -> Tensor:
        *triples, bias, scale, zero = given
        operands = []
        for number, read in enumerate(reads):
            codes, step, offset = triples[3 * number : 3 * number + 3]
            if codes is None or step is None:
                raise op.refused("an operand without codes or scale")
            operands.append(Operand(codes, grid(step, offset, read.input_types[0]), read))
        if bias is not None and bias.is_floating_point():
            bias = quantized_bias(bias, *operands)
        behind = None if scale is None else grid(scale, zero, call.output_types[0])
        return kernel(op, operands, bias, behind)

    return compute


def _living(steps: Sequence[Step], outputs: Collection[str]) -> tuple[Step, ...]:
    """The steps that some output follows from."""
    needed, kept = set(outputs), []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            kept.append(step)
            needed.update(step.inputs)
    return tuple(kept[::-1])
