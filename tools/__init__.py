"""Tools of the project that no user of onnxq needs."""
