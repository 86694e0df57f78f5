"""Rewrite: a plan becomes Q/DQ nodes. The one door to ``onnxruntime.quantization``."""

import inspect
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxq.errors import QuantizationError, RuntimeFailureError
from onnxq.qdq import QDQ, QUANTIZE
from onnxq.qtypes import AffineParameters, IntType
from onnxq.quantize.int4 import Packed, store_packed
from onnxq.quantize.plan import Plan
from onnxq.target import Target

try:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
except ImportError as fault:
    raise RuntimeFailureError(
        f"its quantizer cannot be used: {fault}",
        where=f"onnxruntime {getattr(onnxruntime, '__version__', '')}",
        do="install a version that is known to work; `onnxq doctor` names them",
    ) from fault

__all__ = ["ARGUMENTS", "insert_qdq", "refuse_unsuitable"]

ARGUMENTS = (  # of QDQQuantizer, those that are given by name
    "per_channel", "reduce_range", "weight_qType", "activation_qType", "tensors_range",
    "nodes_to_quantize", "nodes_to_exclude", "op_types_to_quantize", "extra_options",
)  # fmt: skip
_TYPES = {
    IntType.INT8: QuantType.QInt8,
    IntType.UINT8: QuantType.QUInt8,
    IntType.INT16: QuantType.QInt16,
    IntType.UINT16: QuantType.QUInt16,
}
_DEQUANTIZED = "_DequantizeLinear_Output"
_SHORTER = {
    "_QuantizeLinear_Output": ".q",
    "_QuantizeLinear_Input": ".f",
    _DEQUANTIZED: ".d",
    "_QuantizeLinear": ".q",
    "_DequantizeLinear": ".d",
    "_quantized_scale": ".s",
    "_quantized_zero_point": ".z",
    "_quantized": ".i",
    "_scale": ".s",
    "_zero_point": ".z",
}


def insert_qdq(model: onnx.ModelProto, plan: Plan, target: Target) -> onnx.ModelProto:
    """A Q/DQ copy of the FP32 ``model`` that carries exactly the parameters of ``plan``.

    Weights that the plan gives 4 bits lie on their grids already, cut to its ends. Raises
    QuantizationError if the file would carry others, RuntimeFailureError if the installed
    onnxruntime has another quantizer.
    """
    refuse_unsuitable()
    work = onnx.ModelProto()
    work.CopyFrom(model)
    _put_on_grids(work, plan)
    op_types = {node.op_type for node in work.graph.node if node.name in plan.nodes}
    with _quiet_rewriter():
        quantizer = QDQQuantizer(
            work,
            per_channel=target.per_channel,
            reduce_range=False,
            weight_qType=_TYPES[target.weight_type],
            activation_qType=_TYPES[target.activation_type],
            tensors_range=_ranges(plan),
            nodes_to_quantize=list(plan.nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=sorted(op_types),
            extra_options={
                "TensorQuantOverrides": _overrides(plan),
                "ActivationSymmetric": False,
                # a Relu or Clip may go only where the grid ends at its bounds
                "QDQKeepRemovableActivations": target.activation_symmetric or target.power_of_two,
                "WeightSymmetric": True,
                "ForceQuantizeNoInputCheck": True,
                "QDQDisableWeightAdjustForInt32Bias": True,  # the plan has seen to it
            },
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        rewritten: onnx.ModelProto = quantizer.model.model
    _leave_inputs_exact(rewritten, plan)
    _prove_parameters(rewritten, plan)
    four = {name: each for name, each in plan.weights.items() if each.stored is IntType.INT4}
    packed = {f"{n}_quantized": Packed(f"{n}.i4", each.blocks) for n, each in four.items()}
    store_packed(rewritten, packed)
    return _slim(rewritten, keep={f"{name}_zero_point" for name in plan.weights})


def refuse_unsuitable() -> None:
    """Raise RuntimeFailureError if the installed onnxruntime's quantizer lacks an argument."""
    known = inspect.signature(QDQQuantizer).parameters
    missing = [f"`{name}`" for name in ARGUMENTS if name not in known]
    if missing:
        raise RuntimeFailureError(
            f"its QDQQuantizer has no argument {', '.join(missing)}",
            where=f"onnxruntime {onnxruntime.__version__}",
            do="install a version that is known to work; `onnxq doctor` names them",
        )


@contextmanager
def _quiet_rewriter() -> Iterator[None]:
    """Silence advice on pre-processing that the root logger would print: the graph is canonical."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)


def _ranges(plan: Plan) -> TensorsData:
    """Ranges for the rewriter's own book-keeping; the overrides rule the parameters."""
    return TensorsData(
        CalibrationMethod.MinMax,
        {
            name: TensorData(
                lowest=np.float32(parameters.range[0]), highest=np.float32(parameters.range[1])
            )
            for name, parameters in plan.activations.items()
        },
    )


def _overrides(plan: Plan) -> dict[str, list[dict[str, Any]]]:
    overrides: dict[str, list[dict[str, Any]]] = {
        name: [_override(parameters)] for name, parameters in plan.activations.items()
    }
    for name, weight in plan.weights.items():
        axis = {} if weight.axis is None else {"axis": weight.axis}
        overrides[name] = [
            _override(AffineParameters(float(scale), 0, IntType.INT8)) | axis  # of the grid ±7 too
            for scale in weight.scales
        ]
    return overrides


def _override(parameters: AffineParameters) -> dict[str, Any]:
    return {
        "quant_type": _TYPES[parameters.type],
        "scale": np.array(parameters.scale, np.float32),
        "zero_point": np.array(parameters.zero_point, parameters.type.value),
    }


def _put_on_grids(model: onnx.ModelProto, plan: Plan) -> None:
    """Weights in blocks become what their integers stand for: rounded to their channel's step they
    are whole multiples of their block's."""
    for tensor in model.graph.initializer:
        weight = plan.weights.get(tensor.name)
        if weight is not None and weight.blocks is not None:
            exact = weight.on_grid(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(exact, tensor.name))


def _leave_inputs_exact(model: onnx.ModelProto, plan: Plan) -> None:
    """What stays float takes the graph's inputs as they are given, not rounded to integers."""
    given = {f"{value.name}{_DEQUANTIZED}": value.name for value in model.graph.input}
    for node in model.graph.node:
        if node.name not in plan.nodes and node.op_type not in QDQ:
            node.input[:] = [given.get(name, name) for name in node.input]


def _prove_parameters(model: onnx.ModelProto, plan: Plan) -> None:
    """Raise unless every Q of an activation carries the scale and zero point of the plan."""
    arrays = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != QUANTIZE:
            continue
        tensor = node.input[0].removesuffix("_QuantizeLinear_Input")
        wanted = plan.activations.get(tensor)
        scale, zero_point = (onnx.numpy_helper.to_array(arrays[name]) for name in node.input[1:3])
        if wanted is None or scale != np.float32(wanted.scale) or zero_point != wanted.zero_point:
            raise QuantizationError(
                f"would get scale {scale} and zero point {zero_point}, planned: {wanted}",
                where=f"tensor `{tensor}`",
                do="report this graph: the plan and the rewriter disagree",
            )


def _slim(model: onnx.ModelProto, keep: Collection[str]) -> onnx.ModelProto:
    """Short names, equal scales and zero points stored once, nothing that is not needed.

    The zero points in ``keep``, those of weights, stay apart: with ``session.x64quantprecision=1``,
    the cure for saturating processors, ONNX Runtime 1.31 refuses two weights that share one.
    """
    renamed = _short_names(model)
    stored: dict[bytes, str] = {}
    kept: list[onnx.TensorProto] = []
    for tensor in model.graph.initializer:
        content = onnx.TensorProto()
        content.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), ""))
        key = content.SerializeToString(deterministic=True)
        if tensor.name not in keep and renamed.get(tensor.name, "").endswith((".s", ".z")):
            if key in stored:
                renamed[tensor.name] = stored[key]
                continue
            stored[key] = renamed[tensor.name]
        content.name = renamed.get(tensor.name, tensor.name)
        kept.append(content)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
        if node.op_type in QDQ:
            node.name = _shorter(node.name)
    model.producer_name, model.producer_version = "onnxq", ""
    del model.metadata_props[:]
    used = {node.domain for node in model.graph.node}
    imports = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(imports)
    return model


def _short_names(model: onnx.ModelProto) -> dict[str, str]:
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    names = {name for node in model.graph.node for name in (*node.input, *node.output) if name}
    renamed: dict[str, str] = {}
    taken = set(names)
    for name in sorted(names - fixed):
        short = _shorter(name)
        if short != name and short not in taken:
            renamed[name] = short
            taken.add(short)
    return renamed


def _shorter(name: str) -> str:
    for suffix, short in _SHORTER.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix) + short
    return name
