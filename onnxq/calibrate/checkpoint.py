"""Pieces of a collection on disk, so that a killed run costs no more than the piece it was at."""

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ValidationError

from onnxq.calibrate.archive import decode, encode
from onnxq.calibrate.resources import NOTE, PIECE, remove_pieces
from onnxq.calibrate.statistics import Statistics
from onnxq.errors import StaleRecordError
from onnxq.store import atomic_file, write_text

__all__ = ["BLOCKS", "Checkpoint", "blocks_of", "pieces"]

Interval = tuple[int, int]
_log = logging.getLogger(__name__)
BLOCKS = 8  # parts of the samples that are kept apart, to see how far ranges depend on them


class _Note(BaseModel):
    """What the pieces belong to."""

    fingerprint: str


class Checkpoint:
    """A folder of pieces of one collection, known by its fingerprint."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder, self._fingerprint = folder, fingerprint

    @property
    def _note(self) -> Path:
        return self._folder / NOTE

    def belongs(self) -> bool:
        """Whether the folder holds pieces of this collection."""
        try:
            note = _Note.model_validate_json(self._note.read_text(encoding="utf-8"))
        except (OSError, ValidationError):
            return False
        return note.fingerprint == self._fingerprint

    def begin(self, *, resume: bool | None) -> list[Interval]:
        """Intervals that are done already; none of them unless ``resume``.

        Where the folder is of another collection, ``resume=True`` raises StaleRecordError and None
        starts over. Pieces without a note are what a kill left of a removal, and are removed.
        """
        if self._note.exists() and (resume or (resume is None and self.belongs())):
            if not self.belongs():
                raise StaleRecordError(
                    "holds pieces of another calibration: its model, samples or options differ",
                    where=str(self._folder),
                    do="give the same model, data and options, or leave out --resume to start over",
                )
            done = sorted(self._intervals())
            _log.warning("going on from %d runs kept in %s", _runs(done), self._folder)
            return done
        if resume:
            _log.warning("nothing to go on from in %s: from the first sample on", self._folder)
        self.remove()
        write_text(self._note, _Note(fingerprint=self._fingerprint).model_dump_json())
        return []

    def save(self, interval: Interval, statistics: Statistics) -> None:
        """Put a piece on disk, whole or not at all."""
        with atomic_file(self._path(interval)) as temporary:
            temporary.write_bytes(encode(statistics))

    def load(self, interval: Interval) -> Statistics:
        """A piece that was saved. Raises StoreError if it is damaged."""
        path = self._path(interval)
        return decode(path.read_bytes(), str(path))

    def remove(self) -> None:
        """Delete all pieces: the collection is finished, or begins anew."""
        remove_pieces(self._folder)

    def _path(self, interval: Interval) -> Path:
        return self._folder / f"{interval[0]:08d}-{interval[1]:08d}.safetensors"

    def _intervals(self) -> Iterator[Interval]:
        for path in self._folder.iterdir():
            match = PIECE.fullmatch(path.name)
            if match:
                yield int(match[1]), int(match[2])


def blocks_of(runs: int) -> list[Interval]:
    """``runs`` in at most BLOCKS intervals of nearly equal length."""
    number = min(BLOCKS, runs)
    edges = [place * runs // number for place in range(number + 1)] if number else [0]
    return list(pairwise(edges))


def pieces(blocks: Sequence[Interval], done: Sequence[Interval], size: int) -> list[Interval]:
    """What is left to do, in intervals of at most ``size`` runs that cross no border of a block."""
    left = []
    for start, stop in blocks:
        place = start
        inside = [interval for interval in done if start <= interval[0] < stop]
        for a, b in [*inside, (stop, stop)]:
            left += [(n, min(n + size, a)) for n in range(place, a, size)]
            place = b
    return left


def _runs(intervals: Sequence[Interval]) -> int:
    return sum(stop - start for start, stop in intervals)
