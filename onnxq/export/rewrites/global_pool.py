"""Means over the whole map → GlobalAveragePool, which has integer kernels and a scale of its own.

ReduceMean runs in float on ONNX Runtime; AveragePool is quantized with its input's scale, although
a mean over a map spans much less than its pixels do.
"""

import onnx_ir as ir

from onnxq.export.rewrites.edit import substitute
from onnxq.graph import constant_input, dims_of

__all__ = ["mean_to_global_pool", "whole_pool_to_global_pool"]


def mean_to_global_pool(model: ir.Model) -> int:
    """The mean over every axis but batch and channels, of a tensor of rank 3 to 5.

    Without ``keepdims`` a Flatten follows, which drops the axes of length 1.
    """
    graph = model.graph
    found = [node for node in graph if node.op_type == "ReduceMean" and _is_spatial(node)]
    for mean in found:
        pool = ir.node("GlobalAveragePool", [mean.inputs[0]])
        nodes = [pool]
        if not mean.attributes.get_int("keepdims", 1):
            nodes.append(ir.node("Flatten", [pool.outputs[0]], {"axis": 1}))
        substitute(graph, mean, nodes)
    return len(found)


def whole_pool_to_global_pool(model: ir.Model) -> int:
    """AveragePool whose window is the whole map, without padding."""
    graph = model.graph
    found = [node for node in graph if node.op_type == "AveragePool" and _is_whole(node)]
    for pool in found:
        substitute(graph, pool, [ir.node("GlobalAveragePool", [pool.inputs[0]])])
    return len(found)


def _is_whole(pool: ir.Node) -> bool:
    dims = dims_of(pool.inputs[0])
    window = pool.attributes.get_ints("kernel_shape")
    padded = any(pool.attributes.get_ints("pads", ())) or (
        pool.attributes.get_string("auto_pad", "NOTSET") not in {"NOTSET", "VALID"}
    )
    return dims is not None and window is not None and tuple(window) == dims[2:] and not padded


def _is_spatial(mean: ir.Node) -> bool:
    dims = dims_of(mean.inputs[0])
    if dims is None or len(dims) not in (3, 4, 5):
        return False
    constant = constant_input(mean, 1)
    axes = mean.attributes.get_ints("axes") if constant is None else constant.tolist()
    return axes is not None and sorted(a % len(dims) for a in axes) == list(range(2, len(dims)))
