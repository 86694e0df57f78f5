"""What ``onnxq export --propose-split`` prints."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from onnxq.cli.console import Screen
from onnxq.graph import load_model
from onnxq.recipe import SplitSection
from onnxq.runtime import Session
from onnxq.sample_checks import made_up_samples
from onnxq.splitting.manifest import PartsSession, write_parts
from onnxq.splitting.propose import propose

__all__ = ["say_proposals"]

_SAMPLES = 3


def say_proposals(path: Path, screen: Screen) -> list[dict[str, Any]]:
    """Print every cut of the canonical graph at ``path`` that gives the whole graph's numbers."""
    told = []
    for proposal in propose(load_model(path)):
        difference = _difference(path, proposal.split)
        lines = _lines(proposal.split)
        screen.say(f"  {proposal.reason}")
        screen.say(
            f"  run as parts on {_SAMPLES} random inputs, outputs differ by up to {difference:.1e}"
        )
        screen.say(yaml.safe_dump({"split": lines}, sort_keys=False, default_flow_style=None))
        told.append({"reason": proposal.reason, "split": lines, "max_absolute": difference})
    if not told:
        screen.say(
            "  no cut to propose: no body on many rows, no heads, no indices that are computed"
        )
    return told


def _difference(path: Path, split: SplitSection) -> float:
    model = load_model(path)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_parts(path, model, model, split.parts, Path(folder))
        parts = PartsSession(manifest, Path(folder), optimization="none")
        whole = Session(path, optimization="none")
        samples = made_up_samples(manifest.inputs, _SAMPLES, seed=0)
        return max(
            float(np.max(np.abs(array.astype(np.float64) - got[name]), initial=0.0))
            for row in samples.rows()
            for got in [parts.run(row)]
            for name, array in whole.run(row).items()
        )


def _lines(split: SplitSection) -> dict[str, Any]:
    """The section without what is at its default, as a person would write it."""
    return split.model_dump(mode="json", exclude_defaults=True)
