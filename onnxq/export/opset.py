"""A graph at another opset: upwards by onnx's converter, downwards where nothing newer is used."""

import onnx

from onnxq.errors import ExportError, ModelError
from onnxq.graph import newer_opset

__all__ = ["OLDEST", "convert_opset", "opset_of"]

OLDEST = 13  # the first opset whose QuantizeLinear knows channels


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that the graph is written in."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return versions[0] if versions else 1


def convert_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A copy of the graph at ``opset``. Raises ExportError that names the node in the way.

    onnx's own converter has no way down for most operators, though all that changed is often an
    attribute that stands at its default. Downwards, therefore, every node is kept whose attributes
    and inputs the older operator knows too. What the result computes is for parity to say.
    """
    present = opset_of(model)
    if opset > present:
        return _upgraded(model, opset)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if opset == present:
        return copy
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in copy.graph.node:
        if node.domain in ("", "ai.onnx"):
            _downgrade(node, present, opset, constants)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return _checked(copy, present, opset)


def _upgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return newer_opset(model, opset)
    except ModelError as fault:
        raise _failure(opset_of(model), opset, fault.what.partition(": ")[2]) from fault


def _checked(model: onnx.ModelProto, present: int, opset: int) -> onnx.ModelProto:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as fault:
        raise _failure(present, opset, str(fault).strip().splitlines()[0]) from fault
    return model


def _failure(present: int, opset: int, reason: str) -> ExportError:
    return ExportError(
        f"cannot be brought from opset {present} to opset {opset}: {reason}",
        where="export.opset",
        do=f"set `opset` in the recipe to {present}, if the target allows it",
    )


def _downgrade(
    node: onnx.NodeProto, present: int, opset: int, constants: dict[str, onnx.TensorProto]
) -> None:
    """Make a node legal at an older opset, in place."""
    new = onnx.defs.get_schema(node.op_type, present)
    try:
        old = onnx.defs.get_schema(node.op_type, opset)
    except onnx.defs.SchemaError:
        raise _failure(
            present, opset, f"{node.op_type} (`{node.name}`) is new in {new.since_version}"
        ) from None
    if old.since_version == new.since_version:
        return
    if node.op_type.startswith("Reduce") and len(node.input) > old.max_input:
        _axes_to_attribute(node, constants)
    if node.op_type == "Split" and len(node.input) == 1:
        _drop(node, "num_outputs")
    for attribute in tuple(node.attribute):
        if attribute.name in old.attributes:
            continue
        default = new.attributes[attribute.name].default_value
        value = onnx.helper.get_attribute_value(attribute)
        if not default.type or value != onnx.helper.get_attribute_value(default):
            what = f"`{attribute.name}` of {node.op_type} (`{node.name}`)"
            raise _failure(
                present, opset, f"{what} is new in {_since(node, attribute.name, opset)}"
            )
        _drop(node, attribute.name)
    if len(node.input) > old.max_input:
        raise _failure(
            present,
            opset,
            f"{node.op_type} (`{node.name}`) took fewer inputs before opset {new.since_version}",
        )


def _since(node: onnx.NodeProto, attribute: str, known: int) -> int:
    """The first opset after ``known`` whose operator has the attribute."""
    version = known
    while attribute not in onnx.defs.get_schema(node.op_type, version).attributes:
        version += 1
    return version


def _axes_to_attribute(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    axes = constants.get(node.input[1])
    if axes is not None:
        values = onnx.numpy_helper.to_array(axes).tolist()
        node.attribute.append(onnx.helper.make_attribute("axes", values))
        del node.input[1:]


def _drop(node: onnx.NodeProto, name: str) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
