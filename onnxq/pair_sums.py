"""16-bit sums of pairs: what x86 without VNNI adds up before it widens to 32 bits.

VPMADDUBSW multiplies uint8 activations by int8 weights and adds neighbouring products in int16,
which saturates. ONNX Runtime's kernels (MLAS) take neighbours along the axis that is summed over:
elements 2j and 2j + 1 of a weight's row, where a Conv's row runs over kernel positions first and
input channels last (the layout of im2col on channels-last data). Products with uint8 weights and
depthwise convolutions are computed in wider integers.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, PMADDUBSW; ONNX Runtime's
mlas/lib/qgemm_kernel_avx2.cpp and the reordering of filters in qlinearconv.cc. The order is held
against ONNX Runtime 1.31.1 on an emulated processor by tests/verify/test_saturation.py.
"""

import math

import numpy as np
import onnx_ir as ir
from jaxtyping import Bool, Int32, Shaped

from onnxq.graph import WEIGHTED

__all__ = [
    "INT16_MAX",
    "INT16_MIN",
    "SAFE_WEIGHT",
    "at_risk",
    "extreme_sums",
    "has_pair_sums",
    "pairs_of",
    "reduction_rows",
]

INT16_MIN, INT16_MAX = -(2**15), 2**15 - 1
SAFE_WEIGHT = 64  # 255 · (64 + 64) = 32,640: no two such weights leave int16, whatever their order


def has_pair_sums(node: ir.Node) -> bool:
    """Whether a Conv, Gemm or MatMul multiplies in pairs; a depthwise Conv does not."""
    if node.op_type not in WEIGHTED - {"ConvTranspose"}:
        return False  # ONNX Runtime has no integer ConvTranspose
    weight = node.inputs[1]
    if node.op_type != "Conv" or weight is None or weight.shape is None:
        return True
    groups = node.attributes.get_int("group", 1)
    return not (weight.shape[1] == 1 and weight.shape[0] == groups)


def reduction_rows(
    node: ir.Node, weight: Shaped[np.ndarray, "..."]
) -> Shaped[np.ndarray, "channels k"]:
    """The weight as rows that are summed over, one for each output channel, in the kernels' order.

    Conv: kernel positions, then input channels of the group. Gemm and MatMul: as they are; the
    matrices of a batched MatMul follow one another.
    """
    if node.op_type == "Conv":
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1:
        return weight
    if weight.ndim == 1:  # MatMul with a vector
        return weight[np.newaxis]
    return np.swapaxes(weight, -1, -2).reshape(-1, weight.shape[-2])


def pairs_of(rows: Shaped[np.ndarray, "n k"]) -> Int32[np.ndarray, "n pairs 2"]:
    """Neighbours along the last axis; an odd last element stands beside a zero."""
    count, length = rows.shape
    half = math.ceil(length / 2)
    padded = np.zeros((count, 2 * half), np.int32)
    padded[:, :length] = rows
    return padded.reshape(count, half, 2)


def extreme_sums(
    pairs: Int32[np.ndarray, "n pairs 2"],
    low: Int32[np.ndarray, "*#n_pairs_2"],
    high: Int32[np.ndarray, "*#n_pairs_2"],
) -> tuple[Int32[np.ndarray, "n pairs"], Int32[np.ndarray, "n pairs"]]:
    """Smallest and largest sum of each pair of products for activations within [low, high]."""
    at_low, at_high = pairs * low, pairs * high
    smallest, largest = np.minimum(at_low, at_high), np.maximum(at_low, at_high)
    return smallest.sum(-1, dtype=np.int32), largest.sum(-1, dtype=np.int32)


def at_risk(
    rows: Shaped[np.ndarray, "channels k"], low: int = 0, high: int = 255
) -> Bool[np.ndarray, " channels"]:
    """Channels in which some pair of products leaves int16 for some activations in [low, high]."""
    bounds = (np.full((1, 1), bound, np.int32) for bound in (low, high))
    smallest, largest = extreme_sums(pairs_of(rows), *bounds)
    return np.asarray(((smallest < INT16_MIN) | (largest > INT16_MAX)).any(-1))
