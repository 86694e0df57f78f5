import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from onnxq.artifacts import FileFacts, Finding
from onnxq.errors import BuildLockedError, StaleRecordError, StoreError
from onnxq.store import (
    Build,
    atomic_file,
    atomic_folder,
    digest_of,
    load_record,
    save_record,
    sha256_of_file,
    sha256_of_source,
    write_text,
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files and folders --------------------------------------------------------------------------


def test_a_file_appears_whole_and_alone(tmp_path):
    with atomic_file(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "deep" / "a.txt").exists()
        assert temporary.suffix == ".txt"
    assert names_in(tmp_path / "deep") == ["a.txt"]
    assert (tmp_path / "deep" / "a.txt").read_text() == "whole"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")

    def fail() -> None:
        with atomic_file(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_folder_takes_the_place_of_the_old_one_with_nothing_of_it_left(tmp_path):
    for content, before in (("one", ""), ("two", "one.txt")):
        with atomic_folder(tmp_path / "stage", before) as folder:
            (folder / f"{content}.txt").write_text(content)
    assert names_in(tmp_path) == ["stage"]
    assert names_in(tmp_path / "stage") == ["two.txt"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "stage") as folder:
        (folder / "a").write_text("old")

    def fail() -> None:
        with atomic_folder(tmp_path / "stage", "a") as folder:
            (folder / "b").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names_in(tmp_path) == ["stage"]
    assert names_in(tmp_path / "stage") == ["a"]


def test_a_path_through_a_file_is_refused_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"(?s)file.*give another output path|File exists"):
        write_text(tmp_path / "file" / "a.txt", "x")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EACCES, "make the folder writable"),
        (errno.EROFS, "read-only"),
        (errno.EDQUOT, "quota"),
    ],
)
def test_a_disk_that_refuses_is_a_store_error_with_the_way_out(tmp_path, monkeypatch, number, says):
    write_text(tmp_path / "a.txt", "old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match=says) as caught:
        write_text(tmp_path / "a.txt", "new")
    monkeypatch.undo()
    assert caught.value.where == str(tmp_path / "a.txt")
    assert names_in(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_full_disk_leaves_the_stage_unfinished(tmp_path):
    """/dev/full stands in for a disk: every write to it fails with ENOSPC."""
    with Build(tmp_path / "b") as build:

        def write(folder: Path) -> None:
            with Path("/dev/full").open("w") as full:
                full.write("x" * 100_000)

        with pytest.raises(StoreError, match="No space left"):
            build.write_stage("export", "key", write)
        assert not build.is_current("export", "key")
        assert not build.stage("export").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_a_store_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="make the folder writable"):
        write_text(tmp_path / "a.txt", "x")


def test_proc_is_a_folder_where_nothing_can_be_written():
    with pytest.raises(StoreError):
        write_text(Path("/proc/onnxq/a.txt"), "x")


# --- digests ------------------------------------------------------------------------------------


def test_a_digest_does_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


def test_the_digest_of_sources_changes_with_content_and_name(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    first = sha256_of_source(tmp_path)
    (tmp_path / "a.pyc").write_text("compiled")
    assert sha256_of_source(tmp_path) == first
    (tmp_path / "a.py").write_text("x = 2")
    assert sha256_of_source(tmp_path) != first
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert sha256_of_source(tmp_path) != first


def test_the_digest_of_a_missing_file_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="No such file"):
        sha256_of_file(tmp_path / "none")


# --- records ------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path):
    record = Finding(where="a", what="b")
    save_record(record, tmp_path / "r.json")
    assert load_record(Finding, tmp_path / "r.json") == record


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"where": "a", "extra": 1}'])
def test_a_record_of_another_kind_is_stale(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(StaleRecordError, match="no FileFacts of this version"):
        load_record(FileFacts, tmp_path / "r.json")


def test_a_missing_record_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="No such file"):
        load_record(FileFacts, tmp_path / "r.json")


# --- the build folder ---------------------------------------------------------------------------


def fill(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "a.txt").write_text("a")
    (folder / "inner" / "b.txt").write_text("b")


def test_a_stage_is_current_for_its_own_key_only(tmp_path):
    with Build(tmp_path) as build:
        assert not build.is_current("export", "key")
        build.write_stage("export", "key", fill)
        assert build.is_current("export", "key")
        assert not build.is_current("export", "other")
    with Build(tmp_path) as again:
        assert again.is_current("export", "key")
        again.forget("export")
        assert not again.is_current("export", "key")
        assert (again.stage("export") / "a.txt").is_file()


@pytest.mark.parametrize("harm", ["changed", "removed"])
def test_a_stage_whose_file_was_tampered_with_is_not_current(tmp_path, harm):
    with Build(tmp_path) as build:
        build.write_stage("export", "key", fill)
        file = build.stage("export") / "inner" / "b.txt"
        file.write_text("c") if harm == "changed" else file.unlink()
        assert not build.is_current("export", "key")


def test_a_note_that_cannot_be_read_means_the_stage_runs_again(tmp_path):
    with Build(tmp_path) as build:
        build.write_stage("export", "key", fill)
        (tmp_path / ".stages" / "export.json").write_text("{")
        assert not build.is_current("export", "key")


def test_a_stage_that_fails_keeps_its_old_files_and_is_not_current(tmp_path):
    def fail(folder: Path) -> None:
        raise ValueError("in the middle")

    with Build(tmp_path) as build:
        build.write_stage("export", "key", fill)
        with pytest.raises(ValueError, match="in the middle"):
            build.write_stage("export", "key", fail)
        assert not build.is_current("export", "key")
        assert (build.stage("export") / "a.txt").read_text() == "a"
        assert names_in(tmp_path) == [".lock", ".stages", "export"]


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


HOLD = """
    import sys, time
    from pathlib import Path
    from onnxq.store import Build
    with Build(Path(sys.argv[1])) as build:
        def write(folder):
            (folder / "half.txt").write_text("half")
            print("writing", flush=True)
            time.sleep(60)
        build.write_stage("export", "key", write)
"""


def wait_for_writing(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"


def test_a_second_run_is_refused_and_told_the_process_of_the_first(tmp_path):
    with child(HOLD, tmp_path) as first:
        try:
            wait_for_writing(first)
            with (
                pytest.raises(BuildLockedError, match=f"process {first.pid}") as caught,
                Build(tmp_path),
            ):
                pass
            assert "--build-dir" in caught.value.do
        finally:
            first.kill()
    with Build(tmp_path):  # free again
        pass


def test_a_killed_run_leaves_nothing_that_is_taken_for_done_and_the_next_sweeps(tmp_path):
    with Build(tmp_path) as build:
        build.write_stage("export", "key", fill)
    with child(HOLD, tmp_path) as run:
        wait_for_writing(run)
        run.send_signal(signal.SIGKILL)
    assert any(name.startswith(".export.") for name in names_in(tmp_path))
    with Build(tmp_path) as build:
        assert names_in(tmp_path) == [".lock", ".stages", "export"]
        assert not build.is_current("export", "key")
        build.write_stage("export", "key", fill, "a.txt")
        assert build.is_current("export", "key")


def test_a_note_left_half_written_is_swept_too(tmp_path):
    half = tmp_path / ".stages" / ".export.json.abc123"
    half.mkdir(parents=True)
    with Build(tmp_path):
        assert not half.exists()


def test_a_build_folder_that_is_a_file_is_a_store_error(tmp_path):
    (tmp_path / "build").write_text("")
    with pytest.raises(StoreError), Build(tmp_path / "build"):
        pass


def test_a_persons_own_folder_is_never_replaced(tmp_path):
    own = tmp_path / "thesis"
    own.mkdir()
    (own / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="no earlier result"), atomic_folder(own, "report.json"):
        pytest.fail("the work must not begin")
    with Build(tmp_path) as build, pytest.raises(StoreError, match="no earlier result"):
        build.write_stage("thesis", "key", lambda folder: None, "report.json")
    assert (own / "thesis.tex").read_text() == "years of work"


def test_an_earlier_result_is_replaced_whole(tmp_path):
    for content in ("first", "second"):
        with atomic_folder(tmp_path / "out", "record.json") as folder:
            (folder / "record.json").write_text(content)
            (folder / content).touch()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["record.json", "second"]
