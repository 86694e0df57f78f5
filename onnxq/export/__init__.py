"""Take a trained network to a canonical FP32 ONNX graph, and prove that it is the same."""
