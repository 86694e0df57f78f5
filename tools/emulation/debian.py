"""Debian packages of any suite and architecture, unpacked into a folder. Needs no root.

apt is given a state, a cache and a source list of its own, so that nothing of the system changes;
the mirror is the one that the system's apt is configured with, and apt checks its signatures.
"""

import getpass
import os
import pwd
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxq.store import sha256_of_file
from tools.emulation.commands import FETCHING, EmulationError, call, require

__all__ = ["host_architecture", "unpack"]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def host_architecture() -> str:
    """Debian's name of this machine's architecture. Raises EmulationError where there is none."""
    require("dpkg", "apt-get", "dpkg-deb")
    return call(["dpkg", "--print-architecture"], "ask for the architecture").strip()


def unpack(
    names: Sequence[str], into: Path, *, suite: str, architecture: str, alone: bool, work: Path
) -> dict[str, str]:
    """Unpack packages into ``into``, with all that they depend on unless ``alone``.

    ``work`` is an empty folder for apt's own files. Returns the SHA-256 of every package by its
    file name. Raises EmulationError if apt, its keyring or the mirror is missing.
    """
    require("apt-get", "dpkg-deb")
    if not _KEYRING.is_file():
        raise EmulationError(
            f"Debian's keyring is missing: {_KEYRING}",
            where="emulation",
            do="install the package debian-archive-keyring",
        )
    options = _private_apt(work, suite, architecture)
    purpose = f"read the package lists of Debian {suite}"
    call(["apt-get", *options, "update"], purpose, do=FETCHING)
    archives = work / "cache" / "archives"
    what = ["download"] if alone else ["--download-only", "install"]
    purpose = f"fetch {', '.join(names)} ({architecture}) from Debian {suite}"
    call(["apt-get", *options, *what, *names], purpose, folder=archives, do=FETCHING)
    found: dict[str, str] = {}
    for package in sorted(archives.glob("*.deb")):
        call(["dpkg-deb", "-x", package, into], f"unpack {package.name}")
        found[package.name] = sha256_of_file(package)
    return found


def _private_apt(work: Path, suite: str, architecture: str) -> list[str]:
    """Options with which apt-get keeps to ``work``; with an empty status file it lists every
    dependency, as nothing counts as installed."""
    for folder in ("state/lists/partial", "cache/archives/partial", "none"):
        (work / folder).mkdir(parents=True)
    (work / "status").touch()
    (work / "sources.list").write_text(
        f"deb [arch={architecture} signed-by={_KEYRING}] {_mirror()} {suite} main\n",
        encoding="utf-8",
    )
    settings: Mapping[str, object] = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": _user(),
        "APT::Update::Error-Mode": "any",  # else a mirror out of reach is no error
        "Debug::NoLocking": "true",
        "Dir::Etc::sourcelist": work / "sources.list",
        "Dir::Etc::sourceparts": work / "none",
        "Dir::Etc::preferencesparts": work / "none",
        "Dir::State": work / "state",
        "Dir::State::status": work / "status",
        "Dir::Cache": work / "cache",
        "Dir::Cache::archives": work / "cache" / "archives",
    }
    flags = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    return ["-qq", "-y", *flags]


def _mirror() -> str:
    """Where the system's apt gets Debian from. Raises EmulationError if it is told nowhere."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(COMPONENT) $(REPO_URI)"]
    lines = call([*command, "Created-By: Packages"], "ask apt for its mirrors").splitlines()
    entries = [line.split() for line in lines]
    for origin in (["Debian", "main"], ["main"]):  # the origin is known once lists were read
        for entry in entries:
            if entry[:-1] == origin:
                return entry[-1]
    raise EmulationError(
        "apt is configured with no mirror of Debian",
        where="emulation",
        do="run it on Debian, or run `apt-get update` first",
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a number without a name, as in containers
        return getpass.getuser()
