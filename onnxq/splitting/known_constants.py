"""What a graph computes from constants alone, as constants: how often its loops run is among it."""

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped
from onnx import helper, numpy_helper
from onnx_ir.passes import common

from onnxq.errors import ExportError
from onnxq.graph import cut_to
from onnxq.runtime import Session
from onnxq.splitting.loop_body import LOOPS, names_read

__all__ = ["kinds_of", "with_known_constants"]

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
     "RandomUniformLike"}
)  # fmt: skip
Array = Shaped[np.ndarray, "..."]


def kinds_of(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of all values that inference finds, by name."""
    shaped = onnx.shape_inference.infer_shapes(model).graph
    values = (*shaped.input, *shaped.value_info, *shaped.output)
    return {value.name: value.type.tensor_type.elem_type for value in values}


def with_known_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which what follows from constants and fixed shapes is a constant.

    Raises ExportError for a graph that draws random numbers, and RuntimeFailureError.
    """
    lift = common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)
    copy = ir.to_proto(lift(ir.from_proto(model)).model)
    known = {tensor.name for tensor in copy.graph.initializer}
    shapes, members = _fixed(copy), []
    for node in copy.graph.node:
        if node.op_type in _RANDOM:
            raise ExportError(
                "draws random numbers inside the graph",
                where=f"{node.op_type} `{node.name or node.output[0]}`",
                do="make what is drawn an input of the graph",
            )
        fixed = node.op_type == "Shape" and node.input[0] in shapes
        if fixed or (node.op_type not in LOOPS and known.issuperset(names_read([node]))):
            known.update(node.output)
            members.append(node)
    rest = [node for node in copy.graph.node if node not in members]
    made = {name for node in members for name in node.output if name}
    wanted = [n for n in dict.fromkeys(names_read(rest)) if n in made]
    wanted += [v.name for v in copy.graph.output if v.name in made and v.name not in wanted]
    arrays = _computed(copy, wanted) if wanted else {}
    del copy.graph.node[:]
    copy.graph.node.extend(rest)
    copy.graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in arrays.items())
    return copy


def _computed(model: onnx.ModelProto, names: list[str]) -> dict[str, Array]:
    """Values that do not depend on what the graph is fed, as ONNX Runtime computes them."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    kinds = kinds_of(part)
    del part.graph.output[:], part.graph.value_info[:]
    part.graph.output.extend(helper.make_tensor_value_info(n, kinds[n], None) for n in names)
    cut_to(part)
    session = Session(part.SerializeToString(), optimization="none")
    zeros = {
        value.name: np.zeros(
            [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim],
            helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in part.graph.input
    }
    return dict(session.run(zeros))


def _fixed(model: onnx.ModelProto) -> frozenset[str]:
    """Values of which every dimension is known."""
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    return frozenset(
        value.name
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
        and all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim)
    )
