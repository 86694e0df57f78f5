import numpy as np

from benchmarks.calibration_job import Rows
from benchmarks.networks import NETWORKS, write_samples


def test_rows_are_those_that_numpy_reads(tmp_path):
    write_samples(tmp_path / "3.npz", NETWORKS["transformer"], 3)
    expected = np.load(tmp_path / "3.npz")["input"]
    np.testing.assert_array_equal(
        np.concatenate([row["input"] for row in Rows(tmp_path / "3.npz")]), expected
    )


def test_rows_of_a_file_by_numpy_are_given_one_a_call_and_then_none(tmp_path):
    expected = np.random.default_rng(0).standard_normal((2, 4, 5)).astype(np.float32)
    np.savez(tmp_path / "2.npz", input=expected)
    reader = Rows(tmp_path / "2.npz")
    for row in expected:
        np.testing.assert_array_equal(reader.get_next()["input"], row[np.newaxis])
    assert reader.get_next() is None
