"""Commands of the system, and the error that says which of them, or what else, is missing."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxq.errors import OnnxqError

__all__ = ["FETCHING", "EmulationError", "call", "require"]

FETCHING = (
    "needed once: the package mirrors that apt and pip are configured with, within reach, and room "
    "for 300 MB"
)

_SHOWN = 400  # characters of what a failed command said


class EmulationError(OnnxqError):
    """Another processor cannot be emulated here: a program, a package or the network is missing."""


def require(*programs: str) -> None:
    """Raise EmulationError for the first program that is not there."""
    for program in programs:
        if shutil.which(program) is None:
            raise EmulationError(
                f"the program `{program}` is missing",
                where="emulation",
                do="run it on Debian 12 or later, x86-64, where apt-get and dpkg-deb are",
            )


def call(
    command: Sequence[str | Path],
    purpose: str,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    do: str = "",
) -> str:
    """What a command prints. Raises EmulationError with ``purpose`` and the end of what it said;
    ``do`` is the way out."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env=None if environment is None else dict(environment),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-_SHOWN:] or "it said nothing"
        raise EmulationError(
            f"could not {purpose}: `{Path(command[0]).name}` ended with {done.returncode}: {said}",
            where="emulation",
            do=do,
        )
    return done.stdout
