"""An ONNX graph run differentiably in torch: the graph that ships is the graph that is trained.

Needs the extra ``torch``; nothing of onnxq imports this package until a step asks for it.
"""

from onnxq.quantize.torch_graph.fused import IntegerNodes
from onnxq.quantize.torch_graph.graph import TorchGraph
from onnxq.quantize.torch_graph.registry import NEWEST_OPSET, OLDEST_OPSET, supported_operators

__all__ = ["NEWEST_OPSET", "OLDEST_OPSET", "IntegerNodes", "TorchGraph", "supported_operators"]
