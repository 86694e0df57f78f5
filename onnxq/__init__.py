"""onnxq: a trained model becomes a verified INT8 ONNX model, or a reasoned no.

The stages are ``onnxq.export``, ``onnxq.calibrate``, ``onnxq.quantize``, ``onnxq.verify`` and
``onnxq.handoff``; ``onnxq.pipeline`` runs them in order. Importing this package loads none of
torch, onnx or onnxruntime; it sets ``ORT_DISABLE_TELEMETRY=1`` unless the variable is set already,
because ONNX Runtime 1.31 opens a telemetry store under ``~/.cache`` when it is imported.
"""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
