"""onnxq: a trained model becomes a verified INT8 ONNX model, or a reasoned no.

The stages are ``onnxq.export``, ``onnxq.calibrate``, ``onnxq.quantize``, ``onnxq.verify`` and
``onnxq.handoff``; ``onnxq.pipeline`` runs them in order. Importing this package loads none of
torch, onnx or onnxruntime.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
