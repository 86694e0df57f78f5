"""Normalizations, in inference."""

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.quantize.torch_graph.registry import Call, operator

_HALF = (torch.float16, torch.bfloat16)


def _beside_channels(vector: Tensor, x: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (x.dim() - 2))


@operator("BatchNormalization")
def _batch_normalization(call: Call, x: Tensor, *parameters: Tensor) -> Tensor:
    """``parameters``: scale, shift, mean, variance, one a channel."""
    if call.get("training_mode", 0):
        raise call.refused(
            "BatchNormalization in training mode", "export the network in evaluation mode"
        )
    scale, shift, mean, variance = (_beside_channels(p, x) for p in parameters)
    return ((x - mean) / torch.sqrt(variance + call.get("epsilon", 1e-5)) * scale + shift).to(
        x.dtype
    )


@operator("InstanceNormalization")
def _instance_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    axes = list(range(2, x.dim()))
    normal, _, _ = _standardized(x, axes, call.get("epsilon", 1e-5))
    return normal * _beside_channels(scale, x) + _beside_channels(shift, x)


@operator("GroupNormalization")
def _group_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Scale and shift are one a group before opset 21, one a channel from there on."""
    groups = call.get("num_groups")
    wide = x.float() if x.dtype in _HALF and call.get("stash_type", 1) == 1 else x
    grouped = wide.reshape(x.shape[0], groups, -1)
    normal, _, _ = _standardized(grouped, [2], call.get("epsilon", 1e-5))
    if call.opset < 21:
        normal = normal.to(x.dtype) * scale.reshape(-1, 1) + shift.reshape(-1, 1)
        return normal.reshape(x.shape)
    normal = normal.reshape(x.shape).to(x.dtype)
    return normal * _beside_channels(scale, x) + _beside_channels(shift, x)


@operator("LayerNormalization")
def _layer_normalization(
    call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The statistics are float32 for half precision, as stash_type says."""
    if call.get("stash_type", 1) != 1:
        raise call.refused(f"stash_type {call.get('stash_type')}; float32 (1) is computed")
    wide = x.float() if x.dtype in _HALF else x
    axes = list(range(call.get("axis", -1) % x.dim(), x.dim()))
    normal, mean, inverse = _standardized(wide, axes, call.get("epsilon", 1e-5))
    result = normal.to(x.dtype) * scale
    return result if shift is None else result + shift, mean, inverse


def _standardized(x: Tensor, axes: list[int], epsilon: float) -> tuple[Tensor, Tensor, Tensor]:
    """``(x - mean) / sqrt(variance + epsilon)``, the mean, and one over that root."""
    mean = x.mean(axes, keepdim=True)
    away = x - mean
    inverse = 1 / torch.sqrt((away * away).mean(axes, keepdim=True) + epsilon)
    return away * inverse, mean, inverse


@operator("MeanVarianceNormalization")
def _mean_variance_normalization(call: Call, x: Tensor) -> Tensor:
    """``(x - mean) / (deviation + 1e-9)``, as the function body of the operator says."""
    axes = list(call.get("axes") or [0, 2, 3])
    away = x - x.mean(axes, keepdim=True)
    return away / (torch.sqrt((away * away).mean(axes, keepdim=True)) + 1e-9)


@operator("LpNormalization")
def _lp_normalization(call: Call, x: Tensor) -> Tensor:
    """Where the norm is zero the result is zero."""
    norm = torch.linalg.vector_norm(x, call.get("p", 2), call.get("axis", -1), keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, 1, norm))


@operator("LRN")
def _lrn(call: Call, x: Tensor) -> Tensor:
    """Squares are summed over ``size`` channels around each, fewer at the ends."""
    size = call.get("size")
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    squares = functional.pad((x * x).transpose(1, -1), (before, after))
    total = squares.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    scale = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * total
    return x / torch.pow(scale, call.get("beta", 0.75))
