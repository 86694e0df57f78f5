"""What made a record: the versions and the machine."""

import platform
import sys
from collections.abc import Mapping
from importlib import metadata

from onnxq import __version__
from onnxq.artifacts import Provenance

__all__ = ["provenance", "versions"]

_PACKAGES = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "onnxsim", "torch")


def versions() -> dict[str, str]:
    """Versions of Python and of every package that decides what comes out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(options: Mapping[str, object], cpu_flags: tuple[str, ...] = ()) -> Provenance:
    """Facts of this run, with the ``options`` that were in force."""
    return Provenance(
        onnxq=__version__,
        packages=versions(),
        machine=f"{platform.system()} {platform.machine()}, Python {sys.implementation.name}",
        cpu_flags=cpu_flags,
        options=dict(options),
    )
