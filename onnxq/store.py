"""Disk, and nothing else: atomic files and folders, digests, the lock, the record of a stage."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from onnxq.artifacts import FileFacts
from onnxq.errors import BuildLockedError, StaleRecordError, StoreError

__all__ = [
    "Build",
    "atomic_file",
    "atomic_folder",
    "digest_of",
    "facts_of_file",
    "load_record",
    "save_record",
    "sha256_of_file",
    "sha256_of_source",
    "write_text",
]

NOTES = ".stages"
_Model = TypeVar("_Model", bound=BaseModel)
_REMEDIES = {
    errno.ENOSPC: "free some space on the disk, or give another --build-dir",
    errno.EDQUOT: "your quota is used up: free some space, or give another --build-dir",
    errno.EACCES: "make the folder writable, or give another output path",
    errno.EPERM: "make the folder writable, or give another output path",
    errno.EROFS: "the file system is read-only: give another output path",
    errno.ENOTDIR: "a part of the path is a file: give another output path",
    errno.EISDIR: "the path is a folder: give a file name",
}


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with _storing(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def facts_of_file(path: Path) -> FileFacts:
    """Name, content and size of a file. Raises StoreError."""
    with _storing(path):
        size = path.stat().st_size
    return FileFacts(name=path.name, sha256=sha256_of_file(path), size_bytes=size)


def sha256_of_source(*paths: Path) -> str:
    """SHA-256 over source files; a folder stands for every file below it but compiled ones."""
    total = hashlib.sha256()
    for path in paths:
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*.*") if f.is_file())
        files = [file for file in files if file.suffix != ".pyc"]
        for file in files:
            total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def digest_of(facts: Mapping[str, object]) -> str:
    """SHA-256 of a mapping that JSON can hold, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _storing(path: Path) -> Iterator[None]:
    """Turn an OSError about ``path`` into a StoreError that says what to do."""
    try:
        yield
    except OSError as fault:
        where = str(fault.filename or path)
        do = _REMEDIES.get(fault.errno or 0, "check the path")
        raise StoreError(os.strerror(fault.errno or errno.EIO), where=where, do=do) from fault


def _temporary_folder(path: Path) -> Path:
    """A folder beside ``path`` for what will take its place, named after this process.

    What a killed process of this machine has left there is removed.
    """
    mine = f".{path.name}.{platform.node()}-"
    for leftover in path.parent.glob(f"{glob.escape(mine)}*"):
        owner = leftover.name.removeprefix(mine).partition("-")[0]
        if owner.isdecimal() and not _is_alive(int(owner)):
            shutil.rmtree(leftover, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{mine}{os.getpid()}-", dir=path.parent))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path`` when the block ends well, and vanishes when it fails.

    The suffix is kept, as some writers choose their format by it. Raises StoreError.
    """
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = _temporary_folder(path)
        temporary = folder / path.name
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def atomic_folder(path: Path, replaces: str = "", *, ours: bool = False) -> Iterator[Path]:
    """A temporary folder that takes the place of ``path`` when the block ends well.

    A folder that is there already is replaced if it is empty or holds the file ``replaces``, the
    record by which an earlier result of ours is known, or if the caller knows it to be ``ours``;
    a person's own folder never is.
    Raises StoreError.
    """
    if not ours:
        _refuse_foreign_folder(path, replaces)
    with _storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_folder(path)
        retired = temporary.with_name(temporary.name + ".old")
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            temporary.chmod(0o755)
            if path.exists():
                path.rename(retired)
            temporary.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(retired, ignore_errors=True)


def _refuse_foreign_folder(path: Path, replaces: str) -> None:
    with _storing(path):
        foreign = path.is_dir() and any(path.iterdir())
    if foreign and not (replaces and (path / replaces).is_file()):
        raise StoreError(
            "holds files that are no earlier result of this command, and would be replaced whole",
            where=str(path),
            do="give an empty or a new folder",
        )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises StoreError."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_record(record: BaseModel, path: Path) -> None:
    """Write a record as JSON, atomically. Raises StoreError."""
    write_text(path, record.model_dump_json(indent=2) + "\n")


def load_record(kind: type[_Model], path: Path) -> _Model:
    """Read a record. Raises StoreError if it is missing, StaleRecordError if it does not fit."""
    with _storing(path):
        text = path.read_text(encoding="utf-8")
    try:
        return kind.model_validate_json(text)
    except ValidationError as fault:
        raise StaleRecordError(
            f"is no {kind.__name__} of this version of onnxq ({fault.error_count()} faults)",
            where=str(path),
            do="run the stage that makes it again",
        ) from fault


class _StageNote(BaseModel):
    """What a finished stage was made from, and the digest of every file it wrote."""

    key: str
    files: dict[str, str]


class Build:
    """A build folder, ``<folder>/<stage>/…``, held by one run at a time.

    Use as a context manager; entering raises BuildLockedError if another run is inside.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock: int | None = None

    def __enter__(self) -> "Build":
        with _storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            owner = os.read(descriptor, 32).decode() or "unknown"
            os.close(descriptor)
            raise BuildLockedError(
                f"another run (process {owner}) works in this build folder",
                where=str(self.folder),
                do="wait for it, or give this run another --build-dir",
            ) from fault
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._lock = descriptor
        self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _sweep(self) -> None:
        """Remove what a killed run left half-written; we hold the lock, so nobody writes it now."""
        for leftover in (*self.folder.glob(".*.*"), *(self.folder / NOTES).glob(".*.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)

    def stage(self, name: str) -> Path:
        """Folder of a finished stage."""
        return self.folder / name

    def _note(self, name: str) -> Path:
        """Where it is noted what a stage was made from; beside its folder, not inside."""
        return self.folder / NOTES / f"{name}.json"

    def is_current(self, name: str, key: str) -> bool:
        """True if the stage was finished from inputs of digest ``key`` and its files are whole."""
        folder = self.stage(name)
        try:
            note = _StageNote.model_validate_json(self._note(name).read_text())
        except (OSError, ValidationError):
            return False
        return note.key == key and all(
            (folder / file).is_file() and sha256_of_file(folder / file) == digest
            for file, digest in note.files.items()
        )

    def forget(self, name: str) -> None:
        """Make the stage run again whatever it was made from; its files stay until then."""
        with _storing(self._note(name)):
            self._note(name).unlink(missing_ok=True)

    def write_stage(
        self, name: str, key: str, write: Callable[[Path], object], record: str = ""
    ) -> Path:
        """Let ``write`` fill an empty folder, then put it in the stage's place, whole or not; what
        it returns is not looked at.

        ``record`` is the file by which an earlier folder of this stage is known.
        The note is removed first and written last, so that a stage killed at any moment runs again.
        """
        ours = self._note(name).exists()
        self.forget(name)
        with atomic_folder(self.stage(name), record, ours=ours) as folder:
            write(folder)
            files = {
                str(file.relative_to(folder)): sha256_of_file(file)
                for file in sorted(folder.rglob("*"))
                if file.is_file()
            }
        note = _StageNote(key=key, files=files)
        write_text(self._note(name), note.model_dump_json(indent=2))
        return self.stage(name)
