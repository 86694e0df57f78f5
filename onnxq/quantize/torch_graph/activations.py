"""Activations, by the formulas of the ONNX operator specification."""

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.quantize.torch_graph.registry import Call, operator


@operator("Relu")
def _relu(call: Call, x: Tensor) -> Tensor:
    return torch.relu(x)


@operator("Sigmoid")
def _sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@operator("LeakyRelu")
def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@operator("PRelu")
def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


@operator("ThresholdedRelu")
def _thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


@operator("Elu")
def _elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


@operator("Celu")
def _celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, call.get("alpha", 1.0))


@operator("Selu")
def _selu(call: Call, x: Tensor) -> Tensor:
    alpha = call.get("alpha", 1.67326319217681884765625)
    gamma = call.get("gamma", 1.05070102214813232421875)
    return torch.mul(functional.elu(x, alpha), gamma)


@operator("Gelu")
def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.only("approximate", "none", ("none", "tanh")))


@operator("HardSigmoid")
def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@operator("HardSwish")
def _hard_swish(call: Call, x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@operator("Softplus")
def _softplus(call: Call, x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))


@operator("Softsign")
def _softsign(call: Call, x: Tensor) -> Tensor:
    return functional.softsign(x)


@operator("Mish")
def _mish(call: Call, x: Tensor) -> Tensor:
    return x * torch.tanh(torch.logaddexp(x, torch.zeros_like(x)))


@operator("Shrink")
def _shrink(call: Call, x: Tensor) -> Tensor:
    bias, lambd = call.get("bias", 0.0), call.get("lambd", 0.5)
    shrunk = torch.where(x > lambd, x - bias, torch.zeros_like(x))
    return torch.where(x < -lambd, x + bias, shrunk).to(x.dtype)


@operator("Softmax")
def _softmax(call: Call, x: Tensor) -> Tensor:
    return torch.softmax(x, call.get("axis", -1))


@operator("LogSoftmax")
def _log_softmax(call: Call, x: Tensor) -> Tensor:
    return torch.log_softmax(x, call.get("axis", -1))


@operator("Hardmax")
def _hardmax(call: Call, x: Tensor) -> Tensor:
    """One at the first of the largest, else zero."""
    axis = call.get("axis", -1)
    first = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, first, 1.0)
