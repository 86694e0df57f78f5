"""Where a collection runs and what it may take; and where it keeps what is unfinished."""

import contextlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NOTE", "PIECE", "Resources", "forget_pieces", "pieces_of", "remove_pieces"]

NOTE = "collection.json"  # says what the pieces beside it belong to
PIECE = re.compile(r"(\d+)-(\d+)\.safetensors")
_UNFINISHED = re.compile(rf"\.({re.escape(NOTE)}|{PIECE.pattern})\..+")


@dataclass(frozen=True)
class Resources:
    """Nothing here changes a bit of the result.

    ``workers`` is the number of processes; ``ray`` the address of a Ray cluster that does the work
    instead. ``max_memory_mb`` bounds each process. A piece is finished and kept on disk about every
    ``checkpoint_seconds``; with ``resume`` a run goes on from the pieces of an interrupted one, and
    with None it does so if they are of the same collection, and starts over otherwise.
    """

    workers: int = 1
    ray: str | None = None
    max_memory_mb: float | None = None
    resume: bool | None = False
    checkpoint_seconds: float = 10.0


def pieces_of(kept: Path) -> Path:
    """Where pieces of an unfinished collection lie: beside the folder that its result will have."""
    return kept.with_name(kept.name + ".partial")


def forget_pieces(kept: Path) -> None:
    """Remove them, as the result is in its place."""
    remove_pieces(pieces_of(kept))


def remove_pieces(folder: Path) -> None:
    """Delete the pieces in ``folder``, and then the note: what is left by a kill in between is
    known to be of no collection. Files of others, and then the folder, stay."""
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()):
        if PIECE.fullmatch(path.name):
            path.unlink()
        elif _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    (folder / NOTE).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it is not empty
        folder.rmdir()
