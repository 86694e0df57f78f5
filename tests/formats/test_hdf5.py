import pickle
import sys

import h5py
import numpy as np
import pytest

from onnxq.errors import DataError, MissingExtraError

from .readers import GROUPS, LABELS, X, opened, values


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = X
        file["labels"] = LABELS
        file["groups"] = list(map(str, GROUPS))
    return tmp_path / "a.h5"


def test_datasets_are_inputs_with_labels_and_words_beside_them(path):
    found = opened(path)
    np.testing.assert_array_equal(values(found), X)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.groups, GROUPS)
    with pytest.raises(IndexError):
        found.inputs["x"][6]


def test_compressed_chunks_are_read_a_row_at_a_time(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file.create_dataset("x", data=X, chunks=(4, 2), compression="gzip")
    np.testing.assert_array_equal(opened(tmp_path / "a.hdf5").inputs["x"][5], X[5])


def test_a_key_leads_to_a_group_of_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/data/x"] = X
        file["test/data/x"] = X + 1
    np.testing.assert_array_equal(values(opened(tmp_path / "a.h5", key="test/data")), X + 1)
    with pytest.raises(DataError, match=r"(?s)has no group `trian`; did you mean `train`"):
        opened(tmp_path / "a.h5", key="trian")
    with pytest.raises(DataError, match=r"(?s)`test` is a group.*`key: test`"):
        opened(tmp_path / "a.h5")


def test_the_column_is_sent_to_another_process_and_opens_the_file_there(path):
    found = opened(path)
    found.row(0)
    np.testing.assert_array_equal(values(pickle.loads(pickle.dumps(found))), X)


def test_what_is_no_hdf5_file_is_named(tmp_path, path):
    whole = path.read_bytes()
    for name, content in (("none.h5", b""), ("text.h5", b"hello"), ("cut.h5", whole[:700])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: cannot be read"):
            opened(tmp_path / name)


def test_without_h5py_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"(?s)`h5py`.*onnxq\[hdf5\]"):
        opened(path)
