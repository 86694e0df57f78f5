"""Graphs as text, with their constants."""

import numpy as np
import onnx
import onnx.parser


def model_of(text: str, /, **constants: np.ndarray | np.generic) -> onnx.ModelProto:
    """The model of ``text`` with these initializers."""
    model = onnx.parser.parse_model(text)
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model
