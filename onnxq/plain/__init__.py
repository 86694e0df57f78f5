"""The stages on plain files, for people who arrive with an ``.onnx`` and no recipe."""
