"""Attributes that say what ONNX assumes anyway → nothing; a small file is half attributes."""

import onnx
import onnx_ir as ir

__all__ = ["drop_defaults"]


def drop_defaults(model: ir.Model) -> int:
    """Drop every attribute of an ONNX operator that equals the default of its definition.

    ``strides`` and the like, whose default depends on the rank, stay.
    """
    opset = model.opset_imports.get("", 1)
    dropped = 0
    for node in model.graph:
        if node.domain or not onnx.defs.has(node.op_type, opset):
            continue
        known = onnx.defs.get_schema(node.op_type, opset).attributes
        for name, attribute in tuple(node.attributes.items()):
            default = known[name].default_value if name in known else None
            if default is None or not default.type:
                continue
            value = onnx.helper.get_attribute_value(ir.to_proto(attribute))
            if value == onnx.helper.get_attribute_value(default):
                del node.attributes[name]
                dropped += 1
    return dropped
