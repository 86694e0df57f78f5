"""Replay the known answers of this folder. Needs numpy and onnxruntime, nothing else.

    python check_answers.py

Exit code 0: the model gives every answer bit for bit. 1: it does not, or a file was changed.
2: it could not be checked (a file or a package is missing).
"""
# ruff: noqa: T201  (a stand-alone script: copied into every bundle, never imported there)

import hashlib
import json
import os
import sys
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # must precede the import

__all__ = ["main"]


def main(folder: Path) -> int:
    """Check the bundle in ``folder``; the exit code."""
    try:
        import numpy as np
        import onnxruntime as ort

        answers = np.load(folder / "known_answers.npz", allow_pickle=False)
        about = json.loads(str(answers["about"]))
        model = folder / about["model"]
        if hashlib.sha256(model.read_bytes()).hexdigest() != about["sha256"]:
            print(f"CHANGED: {model.name} is not the file that the answers were made with")
            return 1
    except (ImportError, OSError, KeyError, ValueError) as fault:
        print(f"could not check: {fault}")
        return 2
    if ort.__version__ != about["onnxruntime"]:
        print(f"note: answers are of onnxruntime {about['onnxruntime']}, this is {ort.__version__}")
    wrong = 0
    for kind, level in about["levels"].items():
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.intra_op_num_threads = about["intra_op_num_threads"]
        options.log_severity_level = 3
        for key, value in about["session_options"].items():
            options.add_session_config_entry(key, value)
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        for row in range(about["vectors"]):
            feed = {name: answers[f"input.{name}"][row] for name in about["inputs"]}
            given = session.run(about["outputs"], feed)
            for name, array in zip(about["outputs"], given, strict=True):
                wanted = answers[f"{kind}.{name}"][row]
                if array.dtype != wanted.dtype or array.tobytes() != wanted.tobytes():
                    wrong += 1
                    off = np.abs(array.astype(np.float64) - wanted.astype(np.float64)).max()
                    print(f"DIFFERS: vector {row}, `{name}`, {level}: by up to {off:.6g}")
        print(f"{level}: {about['vectors']} vectors replayed")
    if wrong:
        print(f"{wrong} answers differ. Another processor or onnxruntime may round otherwise:")
        print("compare the differences with one output step (contract.json), and the task's metric")
    else:
        print("every answer is bit for bit the same")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
