"""What made a record: the versions and the machine."""

import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from onnxq import __version__
from onnxq.artifacts import Provenance

__all__ = ["cpu_flags", "provenance", "versions"]

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


@cache
def cpu_flags() -> tuple[str, ...]:
    """The instruction sets of this processor that decide which integer kernels run."""
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimd", "asimddp", "i8mm"}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return (platform.machine(),)
    words = set(text.split())
    return (platform.machine(), *sorted(wanted & words))


def provenance(options: Mapping[str, object]) -> Provenance:
    """Facts of this run, with the ``options`` that were in force."""
    return Provenance(
        onnxq=__version__,
        packages=versions(),
        machine=f"{platform.system()} {platform.machine()}, Python {sys.implementation.name}",
        cpu_flags=cpu_flags(),
        options=dict(options),
    )
