"""A recipe for the tiny system in a folder of its own, and the shell run in this process."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from onnxq.cli import main

sys.path.insert(0, str(Path(__file__).parent))
from tiny.system import trained


@dataclass
class Tiny:
    """A recipe that can be changed, written and run."""

    folder: Path
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def recipe(self) -> Path:
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(self.values, sort_keys=False))
        return path

    @property
    def build(self) -> Path:
        return self.folder / "build folder"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "net.safetensors"

    def arguments(self, *more: str) -> list[str]:
        return ["run", str(self.recipe), "--build-dir", str(self.build), *more]

    def record(self, stage: str, name: str) -> dict[str, Any]:
        return json.loads((self.build / stage / name).read_text())


@pytest.fixture(scope="session")
def weights() -> dict[str, Any]:
    return trained()


@pytest.fixture
def tiny(tmp_path: Path, weights: dict[str, Any]) -> Tiny:
    folder = tmp_path / "a folder"
    folder.mkdir()
    save_file(weights, folder / "net.safetensors")
    values = {
        "name": "tiny",
        "target": "ort-x86",
        "task": "tiny.system:brightness",
        "python_path": str(Path(__file__).parent),
        "export": {
            "network": "tiny.system:Net",
            "checkpoint": "net.safetensors",
            "inputs": [{"name": "picture", "shape": [1, 2, 8, 8], "domain": [0, 1]}],
            "outputs": [{"name": "brightness", "shape": [1, 1], "domain": [0, 100]}],
        },
        "data": {
            "calibration": {"source": "tiny.system:calibration"},
            "evaluation": {"source": "tiny.system:evaluation"},
        },
        "calibrate": {"samples": 64, "seed": 3, "stratify": {"by_group": True}},
        "verify": {
            "gate": [
                {"metric": "mae", "max_increase": 1.0},
                {"metric": "mae_to_fp32", "max": 1.0},
            ]
        },
    }
    return Tiny(folder, values)


def _not_json(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out, parse_constant=_not_json)


@pytest.fixture
def onnxq(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run the shell in this process; it must end by itself with a code."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run
