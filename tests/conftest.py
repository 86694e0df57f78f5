"""Shapes in signatures are checked by beartype while tests run."""

from jaxtyping import install_import_hook

install_import_hook("onnxq", "shape_checks.check")
