import pickle

import numpy as np
import pytest

from onnxq.errors import DataError
from onnxq.sources import open_source

from .readers import GROUPS, LABELS, X, facts, opened, values


def put(folder, **arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)


def test_one_file_per_input(tmp_path):
    put(tmp_path, x=X, z=X + 1, labels=LABELS, groups=GROUPS, timesteps=np.arange(6))
    found = opened(tmp_path, ("x", "z"))
    np.testing.assert_array_equal(values(found, "z"), X + 1)
    assert (found.labels.tolist(), found.groups.tolist()) == (LABELS.tolist(), GROUPS.tolist())
    assert found.timesteps.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.name == tmp_path.name


def test_one_file_per_sample_in_the_order_of_their_numbers(tmp_path):
    put(tmp_path, **{f"s{i}": np.full(3, i, np.float32) for i in range(12)}, labels=np.arange(12))
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "._s1.npy").write_bytes(b"x")
    found = opened(tmp_path)
    assert values(found)[:, 0].tolist() == list(range(12))
    assert found.labels.tolist() == list(range(12))
    assert found.inputs["x"].shape == (12, 3)
    assert len(pickle.dumps(found)) < 4000


def test_one_folder_per_input_with_one_file_per_sample(tmp_path):
    for name, plus in (("x", 0), ("z", 1)):
        put(tmp_path / name, **{str(i): X[i] + plus for i in range(6)})
    put(tmp_path, labels=LABELS)
    found = opened(tmp_path, ("x", "z"))
    np.testing.assert_array_equal(values(found, "x"), X)
    np.testing.assert_array_equal(values(found, "z"), X + 1)
    assert found.labels.tolist() == LABELS.tolist()


def test_samples_of_two_folders_are_told_if_they_are_not_the_same(tmp_path):
    put(tmp_path / "x", a=X[0], b=X[1])
    put(tmp_path / "z", a=X[0], c=X[1])
    with pytest.raises(DataError, match=r"b\.npy is not in both x/ and z/"):
        opened(tmp_path, ("x", "z"))


def test_a_batch_axis_of_one_is_dropped_where_the_graph_is_known(tmp_path):
    put(tmp_path, a=X[:1], b=X[1:2])
    known = (facts("x", "float32", 1, 4),)
    found = open_source(str(tmp_path), {}, ("x",), inputs=known)
    np.testing.assert_array_equal(values(found), X[:2])
    assert "batch axis of 1 is dropped" in found.notes[0]
    assert opened(tmp_path).inputs["x"].shape == (2, 1, 4)


def test_a_sample_of_another_shape_is_named_when_it_is_read(tmp_path):
    put(tmp_path, a=X[0], b=X[1, :3], c=X[2].astype(np.float64))
    found = opened(tmp_path)
    np.testing.assert_array_equal(found.row(0)["x"][0], X[0])
    for index, name in ((1, "b"), (2, "c")):
        with pytest.raises(DataError, match=rf"{name}\.npy: holds .*, a\.npy float32 of shape"):
            found.row(index)


def test_a_damaged_sample_is_named(tmp_path):
    put(tmp_path, a=X[0], b=X[1])
    found = opened(tmp_path)
    (tmp_path / "b.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.npy: cannot be read"):
        found.row(1)


def test_a_damaged_input_is_named(tmp_path):
    put(tmp_path, x=X, z=X)
    (tmp_path / "z.npy").write_bytes((tmp_path / "z.npy").read_bytes()[:-3])
    with pytest.raises(DataError, match=r"z\.npy: cannot be read: is cut off"):
        opened(tmp_path, ("x", "z"))


@pytest.mark.parametrize("names", [("x",), ("x", "z"), ("p", "q")])
def test_a_folder_in_no_known_form_is_told_which_forms_there_are(tmp_path, names):
    put(tmp_path, x=X, other=X)
    with pytest.raises(DataError) as caught:
        opened(tmp_path, names)
    said = str(caught.value)
    for part in ("(other, x)", "per graph input", "per sample", "folder per input", "labels.npy"):
        assert part in said


def test_files_beside_folders_are_in_no_known_form(tmp_path):
    put(tmp_path / "x", a=X[0])
    put(tmp_path, z=X)
    with pytest.raises(DataError, match=r"z, x/"):
        opened(tmp_path, ("x", "z"))


def test_files_in_folders_of_folders_are_in_no_known_form(tmp_path):
    put(tmp_path / "a" / "b", x=X)
    with pytest.raises(DataError, match=r"deeper than one folder"):
        opened(tmp_path)


def test_a_folder_of_another_name_than_an_input_is_told(tmp_path):
    put(tmp_path / "xx", a=X[0])
    with pytest.raises(DataError, match="`xx` is no input"):
        opened(tmp_path)
