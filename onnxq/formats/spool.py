"""Temporary files for data that cannot be read in place: compressed, or made by a function."""

import contextlib
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from onnxq.errors import StoreError

__all__ = ["Spool"]


class Spool:
    """A temporary folder that is removed when nothing holds this object any more, or at exit.

    Columns that read from it hold it. Sent to another process, it stays the sender's to remove.
    """

    def __init__(self) -> None:
        with _storing():
            self.folder = Path(tempfile.mkdtemp(prefix="onnxq-samples-"))
        weakref.finalize(self, _remove, self.folder, os.getpid())

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """The folder to write to. Raises StoreError if the disk is full or cannot be written."""
        with _storing():
            yield self.folder


def _remove(folder: Path, owner: int) -> None:
    """Remove the folder, but not from a process that was forked from the owner."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _storing() -> Iterator[None]:
    try:
        yield
    except OSError as fault:
        raise StoreError(
            f"temporary data cannot be written: {fault.strerror or fault}",
            where=tempfile.gettempdir(),
            do="free some space there, or name a larger folder in the variable TMPDIR",
        ) from fault
