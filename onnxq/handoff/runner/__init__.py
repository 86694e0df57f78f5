"""Stand-alone scripts that are copied into every bundle. onnxq never imports them."""
