"""What the tests of the formats share."""

import resource
from pathlib import Path

import numpy as np

from onnxq.artifacts import ValueFacts
from onnxq.samples import Samples
from onnxq.sources import open_source

X = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS, GROUPS = np.arange(6.0), np.array(["a", "a", "b", "b", "c", "c"])


def facts(name: str, dtype: str, *shape: int | str) -> ValueFacts:
    return ValueFacts(name=name, dtype=dtype, shape=shape)


def opened(path: Path, names: tuple[str, ...] = ("x",), **options: object) -> Samples:
    """Samples of a file or folder with keyword options."""
    return open_source(str(path), options, names)


def resident_mib() -> float:
    """What this process holds in memory now, mapped pages of files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def values(samples: Samples, name: str = "x") -> np.ndarray:
    """All rows of one input, without batch axis."""
    return np.concatenate([row[name] for row in samples.rows()])
