"""Models side by side: FP32 and its quantized forms on the same samples."""
