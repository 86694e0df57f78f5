"""MatMul, then Add of a constant bias, at rank 2 → Gemm."""

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.export.rewrites.edit import sole_producer, substitute
from onnxq.graph import constant_input, dims_of

__all__ = ["matmul_add_to_gemm"]


def matmul_add_to_gemm(model: ir.Model) -> int:
    """``x (n, k) · weight (k, m) + bias (m,)`` → Gemm, which integer kernels know with its bias."""
    graph = model.graph
    found = [(node, *match) for node in graph if (match := _match(node)) is not None]
    for add, matmul, bias in found:
        gemm = ir.node("Gemm", [*matmul.inputs, add.inputs[bias]])
        substitute(graph, add, [gemm])
        graph.remove(matmul, safe=True)
    return len(found)


def _match(add: ir.Node) -> tuple[ir.Node, int] | None:
    """The MatMul and the position of the bias, if ``add`` adds a bias to a linear layer."""
    if add.op_type != "Add":
        return None
    for position in (0, 1):
        matmul = sole_producer(add.inputs[position], frozenset({"MatMul"}))
        bias = constant_input(add, 1 - position)
        if matmul is None or bias is None:
            continue
        weight, data = constant_input(matmul, 1), dims_of(matmul.inputs[0])
        if weight is not None and data is not None and _is_linear(weight, len(data), bias):
            return matmul, 1 - position
    return None


def _is_linear(
    weight: Shaped[np.ndarray, "..."], rank: int, bias: Shaped[np.ndarray, "..."]
) -> bool:
    return weight.ndim == 2 and rank == 2 and bias.shape == weight.shape[1:]
