import resource

import numpy as np
import pytest
import torch

from models.rppg.processed import processed_windows
from onnxq.errors import DataError

SHAPE = (8, 3, 36, 36, 3)


def test_rows_and_labels_are_those_of_the_file(tmp_path):
    samples = torch.rand(5, *SHAPE)
    path = tmp_path / "ubfc_processed.pt"
    torch.save({"samples": samples, "labels": torch.arange(60.0, 65.0), "num_samples": 5}, path)
    read = processed_windows(path)
    np.testing.assert_array_equal(read.inputs["input"][3], samples[3].numpy())
    assert read.labels.tolist() == [60, 61, 62, 63, 64]
    assert read.groups is None
    assert "does not name the subjects" in read.notes[0]


def test_only_the_rows_that_are_read_are_loaded(tmp_path):
    path, rows = tmp_path / "big.pt", 1000  # 373 MB
    torch.save({"samples": torch.zeros(rows, *SHAPE), "labels": torch.full((rows,), 70.0)}, path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    read = processed_windows(path)
    assert read.inputs["input"][rows - 1].shape == SHAPE
    touched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert touched * resource.getpagesize() < path.stat().st_size / 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "instead of a dictionary"),
        ({"labels": torch.zeros(3)}, "keys labels"),
        ({"samples": torch.zeros(2, 3), "labels": torch.zeros(2)}, "float32 of shape"),
        ({"samples": torch.zeros(2, *SHAPE), "labels": torch.zeros(3)}, "labels of shape"),
        ({"samples": torch.zeros(1, *SHAPE), "labels": torch.tensor([torch.nan])}, "not finite"),
    ],
)
def test_foreign_files_are_named(tmp_path, content, message):
    path = tmp_path / "foreign.pt"
    torch.save(content, path)
    with pytest.raises(DataError, match=message):
        processed_windows(path)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        processed_windows(tmp_path / "absent.pt")
    (tmp_path / "damaged.pt").write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        processed_windows(tmp_path / "damaged.pt")
