"""Guests: how a Python script is started on another processor. Prepared once, in pieces.

The pieces lie side by side in one folder: the emulators, an aarch64 Python with its libraries, and
the aarch64 wheels. Each is made beside its place and moved there whole, with ``prepared.json``,
which says what it holds; a piece that is there is not made again.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from onnxq.store import atomic_folder
from tools.emulation.commands import FETCHING, EmulationError, call
from tools.emulation.debian import host_architecture, unpack

__all__ = ["ARM_CPUS", "X86_CPUS", "Guest", "arm_guests", "x86_guests"]

ARM_CPUS = ("cortex-a72", "cortex-a76")  # Raspberry Pi 4 (no dot product), Raspberry Pi 5
X86_CPUS = ("Haswell",)  # AVX2, no VNNI
_QEMU_SUITE = "trixie"  # QEMU 7 of bookworm dies at `import onnxruntime` on aarch64
_PYTHON_SUITE, _PYTHON = "bookworm", "3.11"
_PYTHON_PACKAGES = ("python3", "libstdc++6", "libgomp1")
_PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
_NOTE = "prepared.json"
_ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Guest:
    """``command`` starts Python on the processor ``cpu`` under ``environment``, nothing else being
    handed down. ``sources`` are the SHA-256 of what was fetched for it, by file name."""

    cpu: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    emulator: str
    packages: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)


def arm_guests(folder: Path, cpus: Sequence[str] = ARM_CPUS) -> tuple[Guest, ...]:
    """aarch64 Python with the versions of NumPy and ONNX Runtime that are installed here.

    Raises EmulationError if this is no x86-64 Debian, or what is needed cannot be fetched.
    """
    emulators, fetched = _emulators(folder)
    root, debs = _piece(folder / "root-arm64", [_PYTHON_SUITE, *_PYTHON_PACKAGES], _arm_root)
    packages = {name: metadata.version(name) for name in ("numpy", "onnxruntime")}
    wanted = [f"{name}=={version}" for name, version in packages.items()]
    site, wheels = _piece(
        folder / "site-arm64", [_PYTHON, *wanted], lambda into: _arm_site(into, wanted)
    )
    emulator, python = emulators / "qemu-aarch64", root / f"usr/bin/python{_PYTHON}"
    environment = _ENVIRONMENT | {"PYTHONPATH": str(site)}
    return tuple(
        Guest(
            cpu=cpu,
            command=(str(emulator), "-cpu", cpu, "-L", str(root), str(python)),
            environment=environment,
            emulator=_version(emulator),
            packages={"python": _PYTHON} | packages,
            sources=fetched | debs | wheels,
        )
        for cpu in cpus
    )


def x86_guests(folder: Path, cpus: Sequence[str] = X86_CPUS) -> tuple[Guest, ...]:
    """This very Python, its packages and all, on other x86-64 processors.

    Raises EmulationError if this is no x86-64 Debian, or QEMU cannot be fetched.
    """
    emulators, fetched = _emulators(folder)
    emulator = emulators / "qemu-x86_64"
    packages = {name: metadata.version(name) for name in ("numpy", "onnxruntime")}
    return tuple(
        Guest(
            cpu=cpu,
            command=(str(emulator), "-cpu", cpu, sys.executable),
            environment=_ENVIRONMENT | {"PATH": os.environ.get("PATH", os.defpath)},
            emulator=_version(emulator),
            packages={"python": f"{sys.version_info.major}.{sys.version_info.minor}"} | packages,
            sources=fetched,
        )
        for cpu in cpus
    )


def _emulators(folder: Path) -> tuple[Path, dict[str, str]]:
    architecture = host_architecture()
    if architecture != "amd64":
        raise EmulationError(
            f"this machine is {architecture}; the emulators are taken for x86-64",
            where="emulation",
            do="run the bundle's selftest.py on the device itself",
        )
    return _piece(folder / "emulators", [_QEMU_SUITE, "qemu-user"], _qemu)


def _piece(
    path: Path, wanted: Sequence[str], make: Callable[[Path], dict[str, str]]
) -> tuple[Path, dict[str, str]]:
    """The folder of one piece and the checksums of what it was made from; made if it must be."""
    place = path.resolve()
    note = place / _NOTE
    if note.is_file():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["wanted"] == list(wanted):
            return place, dict(known["sources"])
    with atomic_folder(place, ours=True) as temporary:
        sources = make(temporary)
        told = {"wanted": list(wanted), "sources": sources}
        (temporary / _NOTE).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return place, sources


def _qemu(into: Path) -> dict[str, str]:
    """Two of the package's programs; they are static and need nothing beside them."""
    with tempfile.TemporaryDirectory() as work:
        whole = Path(work) / "whole"
        sources = unpack(
            ["qemu-user"], whole, suite=_QEMU_SUITE, architecture="amd64", alone=True,
            work=Path(work) / "apt",
        )  # fmt: skip
        for program in ("qemu-aarch64", "qemu-x86_64"):
            shutil.copy2(whole / "usr" / "bin" / program, into / program)
    return sources


def _arm_root(into: Path) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as work:
        return unpack(
            _PYTHON_PACKAGES, into, suite=_PYTHON_SUITE, architecture="arm64", alone=False,
            work=Path(work),
        )  # fmt: skip


def _arm_site(into: Path, wanted: Sequence[str]) -> dict[str, str]:
    """Install wheels for aarch64; pip has to be told every tag, and what Python they are for."""
    report = into / "pip-report.json"
    tags = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--target", str(into), "--report", str(report), "--only-binary=:all:",
        "--implementation", "cp",
        "--python-version", _PYTHON, *tags, *wanted,
    ]  # fmt: skip
    call(command, f"fetch {', '.join(wanted)} for aarch64 by pip", do=FETCHING)
    installed = json.loads(report.read_text(encoding="utf-8"))["install"]
    report.unlink()  # it holds the address of the index
    return {
        f"{entry['metadata']['name']}-{entry['metadata']['version']}": entry["download_info"][
            "archive_info"
        ]["hashes"]["sha256"]
        for entry in installed
    }


def _version(emulator: Path) -> str:
    return call([emulator, "--version"], "start the emulator").splitlines()[0]
