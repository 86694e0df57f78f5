"""Run one model on rows of inputs, on whatever processor this is. Needs numpy and onnxruntime only.

    python run_model.py MODEL INPUTS.npz OUTPUTS.npz [KEY=VALUE]...

An input holds its rows along a new first axis; so do the outputs. ``KEY=VALUE`` are session
configuration entries. The graph is optimized as far as ONNX Runtime can; one thread.
"""

import os
import sys

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must precede the import

import numpy as np
import onnxruntime as ort

__all__ = ["main"]


def main(model: str, inputs: str, outputs: str, *entries: str) -> None:
    """Read, run, write."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    for entry in entries:
        key, _, value = entry.partition("=")
        options.add_session_config_entry(key, value)
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    with np.load(inputs, allow_pickle=False) as archive:
        columns = {name: archive[name] for name in archive.files}
    count = min(map(len, columns.values()))
    names = [value.name for value in session.get_outputs()]
    rows = [
        session.run(names, {name: column[row] for name, column in columns.items()})
        for row in range(count)
    ]
    found = {str(place): np.stack(values) for place, values in enumerate(zip(*rows, strict=True))}
    np.savez(outputs, allow_pickle=False, names=np.array(names), **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
