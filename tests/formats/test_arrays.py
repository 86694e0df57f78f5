import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy
from safetensors.numpy import save_file

from onnxq.errors import DataError, StoreError
from onnxq.samples import Samples

from .readers import GROUPS, LABELS, X, opened, resident_mib, values

KINDS = {
    "npy": np.save,
    "npz": lambda path, x: np.savez(path, x=x),
    "packed.npz": lambda path, x: np.savez_compressed(path, x=x),
    "safetensors": lambda path, x: save_file({"x": np.ascontiguousarray(x)}, path),
}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Spooled data of a test lie in a folder of its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path / "tmp"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "x",
    [
        X,
        np.asfortranarray(np.arange(60.0).reshape(5, 3, 4)),
        np.arange(7, dtype=np.int64),
        np.zeros((3, 2, 2), np.uint8),
        np.array([[True], [False]]),
        np.ones((2, 3), np.float16),
        np.arange(6, dtype=">f4").reshape(3, 2),
        np.zeros((0, 4), np.float32),
        np.zeros((3, 0), np.float32),
    ],
    ids=["plain", "fortran", "1-D", "bytes", "bool", "half", "big-endian", "none", "empty"],
)
def test_every_kind_of_file_gives_back_what_was_put_in(tmp_path, kind, x):
    if kind == "safetensors":
        x = x.astype(x.dtype.newbyteorder("="))  # it has no other
    KINDS[kind](tmp_path / f"a.{kind}", x)
    found = opened(tmp_path / f"a.{kind}")
    column = found.inputs["x"]
    assert (found.name, column.shape, column.dtype) == (f"a.{kind}", x.shape, x.dtype)
    assert len(found) == len(x)
    for index in range(len(x)):
        np.testing.assert_array_equal(column[index], x[index])
        assert column[index].flags.aligned
    with pytest.raises(IndexError):
        column[len(x)]


def test_labels_groups_and_timesteps_lie_beside_the_inputs(tmp_path):
    beside = {"labels": LABELS, "groups": GROUPS, "timesteps": np.arange(6)}
    np.savez(tmp_path / "a.npz", x=X, **beside)
    np.savez_compressed(tmp_path / "b.npz", x=X, **beside)
    for name in ("a.npz", "b.npz"):
        found = opened(tmp_path / name)
        assert list(found.inputs) == ["x"]
        for fact, wanted in beside.items():
            np.testing.assert_array_equal(getattr(found, fact), wanted)
    save_file({"x": X, "labels": LABELS}, tmp_path / "a.safetensors")
    assert opened(tmp_path / "a.safetensors").labels.tolist() == LABELS.tolist()
    np.savez(tmp_path / "c.npz", x=X, labels=X)
    with pytest.raises(DataError, match=r"`labels` has shape \[6, 4\]"):
        opened(tmp_path / "c.npz")


def test_an_input_that_is_named_labels_is_an_input(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, labels=LABELS)
    found = opened(tmp_path / "a.npz", ("x", "labels"))
    assert list(found.inputs) == ["x", "labels"]
    assert found.labels is None


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_no_row_is_read_before_it_is_asked_for(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    KINDS[kind](path, X)
    found = opened(path)
    whole = path.read_bytes()
    place = whole.index(X[3].tobytes())
    path.write_bytes(whole[:place] + (X[3] + 100).tobytes() + whole[place + X[3].nbytes :])
    np.testing.assert_array_equal(found.row(3)["x"][0], X[3] + 100)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_a_file_that_is_cut_off_or_removed_while_it_is_read_is_an_error_in_words(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    KINDS[kind](path, X)
    found = opened(path)
    os.truncate(path, path.read_bytes().index(X[2].tobytes()))
    np.testing.assert_array_equal(found.row(1)["x"][0], X[1])
    with pytest.raises(DataError, match=r"cannot be read any more.*shorter"):
        found.row(2)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        found.row(1)


# --- larger than memory -------------------------------------------------------------------------

ROW = 3 * 512 * 512
HUGE = 30_000_000_000 // (4 * ROW)  # 30 GB of float32 pictures of 3 MB
PROBE = """
import sys
import numpy as np
from onnxq.sources import open_source
samples = open_source(sys.argv[1], {}, ("x",))
chosen = samples.take(np.random.default_rng(0).permutation(len(samples))[:16])
total = sum(float(row["x"].sum()) for row in chosen.rows())
status = open("/proc/self/status").read()  # ru_maxrss would be that of the test before exec
print(len(samples), total, status.split("VmHWM:")[1].split()[0])
"""


def header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    npy.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": False, "shape": shape}
    )  # fmt: skip
    return buffer.getvalue()


def sparse_npy(path: Path) -> None:
    head = header("<f4", (HUGE, 3, 512, 512))
    path.write_bytes(head)
    os.truncate(path, len(head) + HUGE * ROW * 4)


def sparse_npz(path: Path) -> None:
    """An archive of one stored member, of whose data nothing is written (zip64)."""
    head = header("<f4", (HUGE, 3, 512, 512))
    size = len(head) + HUGE * ROW * 4
    with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            member.write(head)
        entry = archive.infolist()[0]
        data = entry.header_offset + 30 + len("x.npy") + 20  # the zip64 extra takes 20 bytes
        entry.file_size = entry.compress_size = size
        archive.start_dir = data + size  # the directory follows the hole


@pytest.mark.parametrize("make", [sparse_npy, sparse_npz])
def test_of_a_file_larger_than_memory_only_the_rows_that_are_read_are_in_memory(tmp_path, make):
    path = tmp_path / f"huge.{make.__name__.removeprefix('sparse_')}"
    make(path)
    on_disk = path.stat().st_blocks * 512
    assert path.stat().st_size > 29.9e9
    assert on_disk < 1e6, "this file system keeps no sparse files: run the test on one that does"
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(path)], capture_output=True, text=True, check=True
    )
    count, total, peak_kib = done.stdout.split()
    assert (int(count), float(total)) == (HUGE, 0.0)
    assert int(peak_kib) / 1024 < 500


def test_reading_every_row_of_a_file_leaves_memory_as_it_was(tmp_path):
    path = tmp_path / "a.npy"
    head = header("<f4", (100, 3, 512, 512))
    path.write_bytes(head)
    os.truncate(path, len(head) + 100 * ROW * 4)
    found = opened(path)
    before = resident_mib()
    most = max(resident_mib() for row in found.rows() if not row["x"].any())
    assert most - before < 30  # the file's 300 MiB, if it were mapped


def test_columns_are_sent_to_another_process_without_their_data(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((100, 1000), np.float32))
    np.savez_compressed(tmp_path / "b.npz", x=np.zeros((100, 1000), np.float32))
    for name in ("a.npz", "b.npz"):
        found = opened(tmp_path / name)
        sent = pickle.dumps(found)
        assert len(sent) < 4000
        received: Samples = pickle.loads(sent)
        assert received.digest == found.digest
        del received
        assert found.row(99)["x"].shape == (1, 1000)  # the copy has not removed the spooled data


# --- compressed archives ------------------------------------------------------------------------


def test_compressed_arrays_are_unpacked_once_said_and_removed_when_done(tmp_path, temporary):
    np.savez_compressed(tmp_path / "a.npz", x=X, labels=LABELS)
    found = opened(tmp_path / "a.npz")
    assert len(list(temporary.iterdir())) == 1
    assert "`x`, `labels` compressed" in found.notes[0]
    (tmp_path / "a.npz").unlink()
    part = found.take(np.array([1, 2]))
    del found
    np.testing.assert_array_equal(values(part), X[1:3])
    del part
    assert list(temporary.iterdir()) == []


LIFE = """
import gc, os, sys
from onnxq.sources import open_source
samples = open_source(sys.argv[1], {}, ("x",))
child = os.fork()
if child == 0:
    del samples
    gc.collect()
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
print(samples.row(1)["x"][0, 0])
raise RuntimeError("the run fails")
"""


def test_spooled_data_outlive_a_forked_worker_and_not_the_run(tmp_path, temporary):
    np.savez_compressed(tmp_path / "a.npz", x=X)
    done = subprocess.run(
        [sys.executable, "-c", LIFE, str(tmp_path / "a.npz")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"{X[1, 0]}\n"
    assert "the run fails" in done.stderr
    assert list(temporary.iterdir()) == []


def test_nothing_is_said_or_spooled_for_arrays_that_are_stored_as_they_are(tmp_path, temporary):
    np.savez(tmp_path / "a.npz", x=X)
    assert opened(tmp_path / "a.npz").notes == ()
    assert list(temporary.iterdir()) == []


def test_a_temporary_folder_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", x=X)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"(?s)temporary data cannot be written.*TMPDIR"):
        opened(tmp_path / "a.npz")


# --- damage -------------------------------------------------------------------------------------


def test_one_array_does_not_do_for_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match=r"(?s)2 inputs.*one array per input: x, z"):
        opened(tmp_path / "a.npy", ("x", "z"))


def test_pickled_objects_are_never_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    np.savez_compressed(tmp_path / "b.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "a.npy", np.array([print], dtype=object))
    for name in ("a.npz", "b.npz", "a.npy"):
        with pytest.raises(DataError, match=r"(?s)cannot be read.*never read"):
            opened(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_named(tmp_path, kind):
    path = tmp_path / f"whole.{kind}"
    KINDS[kind](path, X)
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 10):
        cut = tmp_path / f"cut.{kind}"
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match="cannot be read") as caught:
            opened(cut)
        assert caught.value.where == str(cut)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_with_a_damaged_member_is_named(tmp_path, compression):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        buffer = io.BytesIO()
        np.save(buffer, X)
        archive.writestr("x.npy", buffer.getvalue()[:-7])
    with pytest.raises(DataError, match="cannot be read"):
        opened(tmp_path / "a.npz")


@pytest.mark.parametrize("members", [["x.npy", "x.npy"], ["x.npy", "readme.txt"]])
def test_an_archive_that_numpy_has_not_written_is_refused(tmp_path, members):
    buffer = io.BytesIO()
    np.save(buffer, X)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in members:
            if name in archive.namelist():
                with pytest.warns(UserWarning, match="Duplicate name"):
                    archive.writestr(name, buffer.getvalue())
            else:
                archive.writestr(name, buffer.getvalue())
    with pytest.raises(DataError, match=f"member `{members[1]}`"):
        opened(tmp_path / "a.npz")


def test_a_type_that_numpy_does_not_know_is_named(tmp_path):
    import torch
    from safetensors.torch import save_file as save_tensors

    save_tensors({"x": torch.zeros(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=r"(?s)`x` is BF16.*F32"):
        opened(tmp_path / "a.safetensors")
