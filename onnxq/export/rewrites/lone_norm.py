"""BatchNormalization that no layer takes in → a Conv of one weight a channel.

Between a sum and an activation there is nothing to fold a norm into. As a depthwise 1 × 1 Conv it
has integer kernels everywhere, and scales per channel.
"""

import numpy as np
import onnx_ir as ir

from onnxq.export.rewrites.edit import add_constant, substitute
from onnxq.export.rewrites.fold_batchnorm import affine_of, is_inference
from onnxq.graph import dims_of

__all__ = ["norm_to_conv"]


def norm_to_conv(model: ir.Model) -> int:
    """Every BatchNormalization of constants over maps of one, two or three axes.

    To be run after ``fold_batchnorm``, which does away with the norm where it can.
    """
    graph, found = model.graph, 0
    for node in tuple(graph):
        single = is_inference(node) and node.outputs[0].dtype == ir.DataType.FLOAT
        dims = dims_of(node.inputs[0]) if single else None
        affine = None if dims is None else affine_of(node)
        if dims is None or affine is None or not 3 <= len(dims) <= 5:
            continue
        factor, shift = (part.astype(np.float32) for part in affine)
        weight = factor.reshape(-1, *[1] * (len(dims) - 1))
        constants = [add_constant(graph, "norm", array) for array in (weight, shift)]
        conv = ir.node("Conv", [node.inputs[0], *constants], {"group": len(factor)})
        substitute(graph, node, [conv])
        found += 1
    return found
