"""Run the model of this folder. Needs numpy and onnxruntime, nothing else.

    python run.py INPUTS [-o outputs.npz] [--threads N] [--any-domain]

INPUTS is an .npz file with an array for each input, or a folder with a .npy file for each; an array
is called as its input, or ``input.<name>`` as in known_answers.npz. It holds one sample, or samples
along one more axis in front (along the first one, where that is fixed at 1). Type, shape and the
declared domain are checked. Every output holds the samples along its first axis.

Exit code 0: done. 2: not done; a line says why.
"""
# ruff: noqa: T201  (a stand-alone script: copied into every bundle, never imported by onnxq)

import argparse
import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # must precede the import
sys.dont_write_bytecode = True  # nothing is left in the bundle
try:
    import numpy as np
    import onnxruntime as ort
    from contract import BUNDLE_FILE, load, load_json, parts_of
except ImportError as fault:
    print(f"{fault}: `pip install -r requirements.txt` installs what is needed", file=sys.stderr)
    raise SystemExit(2) from fault

__all__ = ["LEVELS", "Runner"]

Array = np.ndarray[Any, np.dtype[Any]]
LEVELS = {"full": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL"}


class Runner:
    """The model of ``folder``, or its parts as pipeline.json orders them.

    ``level`` is a GraphOptimizationLevel by name; the one the model was judged at unless given.
    """

    def __init__(self, folder: str | Path, *, threads: int = 1, level: str | None = None) -> None:
        self.folder = Path(folder)
        self.contract = load(self.folder)
        how = load_json(self.folder / BUNDLE_FILE)["provenance"]["options"]
        options = ort.SessionOptions()
        chosen = level or LEVELS[how["optimization"]]
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, chosen)
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        for key, value in how["session_options"].items():
            options.add_session_config_entry(key, value)
        load_session = partial(ort.InferenceSession, providers=["CPUExecutionProvider"])
        self.parts = {n: load_session(str(p), options) for n, p in parts_of(self.folder).items()}
        pipeline = self.folder / "pipeline.json"
        self._steps = load_json(pipeline)["steps"] if pipeline.is_file() else None

    def run(self, inputs: Mapping[str, Array], *, any_domain: bool = False) -> dict[str, Array]:
        """All outputs for one sample. Raises KeyError for a missing input, ContractError for what
        the model may not be fed."""
        check = self.contract.check
        fed = {n: check(n, inputs[n], any_domain=any_domain) for n in self.contract.inputs}
        if self._steps is None:
            return self.run_part("", fed)
        from routing import run_steps

        values = run_steps(self._steps, fed, self.run_part)
        return {name: values[name] for name in self.contract.outputs}

    def run_part(self, part: str, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs of one part, by its own names."""
        session = self.parts[part]
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def main() -> int:
    """Parse, run, write; the exit code."""
    parser = argparse.ArgumentParser(description="Run the model of this folder.")
    parser.add_argument("inputs", type=Path, help=".npz file, or folder of .npy files")
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs.npz"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--any-domain", action="store_true", help="take values outside the domain")
    given = parser.parse_args()
    try:
        runner = Runner(Path(__file__).resolve().parent, threads=given.threads)
        samples = runner.contract.read(given.inputs)
        results = [runner.run(row, any_domain=given.any_domain) for row in samples]
        runner.contract.write(given.output, results)
    except Exception as fault:  # the runtime's exception types share no other base
        print(f"not done: {fault}", file=sys.stderr)
        return 2
    print(f"{given.output}: {len(results)} samples")
    return 0


if __name__ == "__main__":
    sys.exit(main())
