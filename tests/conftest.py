"""Shapes in signatures are checked by beartype while tests run; a busy machine fails no test."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("onnxq", "shape_checks.check")
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
