import pickle
import sys

import numpy as np
import pytest
import torch

from onnxq.errors import DataError, MissingExtraError

from .readers import GROUPS, LABELS, X, opened, resident_mib, values

T = torch.from_numpy(X)


@pytest.fixture
def saved(tmp_path):
    """Save a value and give its path."""

    def save(value: object, name: str = "a.pt"):
        torch.save(value, tmp_path / name)
        return tmp_path / name

    return save


def test_tensors_are_inputs_with_labels_and_groups_beside_them(saved):
    found = opened(saved({"x": T, "labels": torch.arange(6), "groups": GROUPS.tolist()}))
    np.testing.assert_array_equal(values(found), X)
    np.testing.assert_array_equal(found.labels, LABELS)
    np.testing.assert_array_equal(found.groups, GROUPS)


def test_a_single_tensor_is_the_only_inputs(saved):
    np.testing.assert_array_equal(values(opened(saved(T, "a.pth"))), X)
    with pytest.raises(DataError, match="one array for a model of 2 inputs"):
        opened(saved(T), ("x", "z"))


def test_lists_of_tensors_are_joined(saved):
    parts = [T[:2], T[2:3], T[3:]]
    found = opened(saved({"x": parts, "labels": [torch.tensor(float(i)) for i in range(6)]}))
    np.testing.assert_array_equal(values(found), X)
    assert found.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(found.inputs["x"][4], X[4])
    np.testing.assert_array_equal(values(opened(saved(parts))), X)
    with pytest.raises(IndexError):
        found.inputs["x"][6]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([T, T[:, :3]], r"`x`: part 1 holds float32 samples of shape \[3\], part 0 .*\[4\]"),
        ([T, T.double()], r"part 1 holds float64"),
        ([T, torch.tensor(1.0)], "part 1 is a single number"),
    ],
)
def test_parts_that_differ_are_told(saved, parts, says):
    with pytest.raises(DataError, match=says):
        opened(saved({"x": parts}))


def test_a_key_leads_into_nested_dictionaries(saved):
    path = saved({"train": {"data": {"x": T}}, "epoch": 3})
    np.testing.assert_array_equal(values(opened(path, key="train/data")), X)
    with pytest.raises(DataError, match=r"(?s)`train`: is a dict.*`key: train`"):
        opened(path)
    with pytest.raises(DataError, match="has no key `trian`; did you mean `train`"):
        opened(path, key="trian")


def test_views_and_transposed_tensors_give_their_own_rows(saved):
    wide = torch.arange(48.0).reshape(4, 12).T
    np.testing.assert_array_equal(values(opened(saved({"x": wide[::2]}))), wide[::2].numpy())


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, r"holds a int"),
        ({"x": None}, r"`x`: is a NoneType"),
        ({"x": []}, r"`x`: is a list"),
        ({"x": torch.zeros(2, 3, dtype=torch.bfloat16)}, r"(?s)bfloat16.*float32"),
        ({"y": T}, r"`y` is no input"),
    ],
)
def test_what_are_no_samples_is_told(saved, value, says):
    with pytest.raises(DataError, match=says):
        opened(saved(value))


class Evil:
    def __reduce__(self):
        return (print, ("run by unpickling",))


def test_code_in_a_file_is_never_run(saved, capsys):
    with pytest.raises(DataError, match=r"(?s)cannot be read.*never read"):
        opened(saved({"x": T, "evil": Evil()}))
    assert "run by" not in capsys.readouterr().out


def test_damaged_files_and_files_of_an_old_format_are_named(tmp_path, saved):
    whole = saved({"x": T}).read_bytes()
    for length in (0, 20, len(whole) // 2):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.pt: cannot be read"):
            opened(tmp_path / "cut.pt")
    torch.save({"x": T}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(DataError, match=r"old\.pt: cannot be read"):
        opened(tmp_path / "old.pt")


def test_a_large_file_is_mapped_and_sent_by_name(saved):
    path = saved({"x": torch.zeros(200, 3, 256, 256), "labels": torch.zeros(200)})
    before = resident_mib()
    found = opened(path)
    found.row(100)
    assert path.stat().st_size > 150e6
    assert resident_mib() - before < 30
    sent = pickle.dumps(found)
    assert len(sent) < 4000
    np.testing.assert_array_equal(pickle.loads(sent).row(7)["x"], found.row(7)["x"])


def test_without_torch_the_extra_is_named(saved, monkeypatch):
    path = saved({"x": T})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match=r"(?s)`torch`.*onnxq\[torch\]"):
        opened(path)
