"""Where a collection runs and what it may take; and where it keeps what is unfinished."""

import shutil
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Resources", "forget_pieces", "pieces_of"]


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
    shutil.rmtree(pieces_of(kept), ignore_errors=True)
