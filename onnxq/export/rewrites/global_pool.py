"""ReduceMean over all spatial axes → GlobalAveragePool, which integer kernels know."""

import onnx_ir as ir

from onnxq.export.rewrites.edit import constant_input, dims_of, substitute

__all__ = ["mean_to_global_pool"]


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


def _is_spatial(mean: ir.Node) -> bool:
    dims = dims_of(mean.inputs[0])
    if dims is None or len(dims) not in (3, 4, 5):
        return False
    constant = constant_input(mean, 1)
    axes = mean.attributes.get_ints("axes") if constant is None else constant.tolist()
    return axes is not None and sorted(a % len(dims) for a in axes) == list(range(2, len(dims)))
