"""Matrix products."""

import torch
from torch import Tensor

from onnxq.quantize.torch_graph.registry import Call, operator


@operator("MatMul")
def _matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@operator("Gemm")
def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """``alpha * a' @ b' + beta * c``."""
    a = a.T if call.get("transA", 0) else a
    b = b.T if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = torch.matmul(a, b)
    product = product if alpha == 1 else alpha * product
    if c is None:
        return product
    return (product + (c if beta == 1 else beta * c)).to(a.dtype)


@operator("Einsum")
def _einsum(call: Call, *tensors: Tensor) -> Tensor:
    return torch.einsum(call.get("equation").replace(" ", ""), *tensors)
