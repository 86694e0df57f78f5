import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError, ParityError
from onnxq.export.parity import compare_outputs, input_sets, require
from onnxq.recipe import Tolerance
from onnxq.samples import Samples

IMAGE = ValueFacts(name="x", dtype="float32", shape=(1, 3, 4, 4), domain=(-1.0, 3.0))
TOLERANCE = Tolerance()


def check(reference, other, tolerance=TOLERANCE):
    return compare_outputs("a → b", "random", [{"y": reference}], [{"y": other}], tolerance)


def test_random_rows_lie_in_the_declared_domain_and_are_the_same_every_time():
    rows = input_sets([IMAGE], None, 3)["random"]
    values = np.stack([row["x"] for row in rows])
    assert len(rows) > 1
    assert values.shape[1:] == IMAGE.shape
    assert values.dtype == np.float32
    assert -1 <= values.min() < -0.5
    assert 2.5 < values.max() <= 3
    again = input_sets([IMAGE], None, 3)["random"]
    assert np.array_equal(values, np.stack([row["x"] for row in again]))


def test_edges_are_both_ends_the_middle_zero_and_a_checkerboard():
    low, high, middle, zero, board = (r["x"] for r in input_sets([IMAGE], None, 0)["edges"])
    assert [np.unique(a).tolist() for a in (low, high, middle, zero)] == [[-1], [3], [1], [0]]
    assert set(np.unique(board)) == {-1, 3}
    assert np.all(board[..., 1:] != board[..., :-1])
    assert np.all(board[..., 1:, :] != board[..., :-1, :])


def test_real_rows_are_spread_over_the_samples():
    data = np.arange(100, dtype=np.float64)[:, None] * np.ones((1, 2))
    value = ValueFacts(name="x", dtype="float32", shape=("batch", 2))
    rows = input_sets([value], Samples("s", {"x": data}), 0)["real"]
    assert rows[0]["x"][0, 0] == 0
    assert rows[-1]["x"][0, 0] == 99
    assert rows[0]["x"].dtype == np.float32
    assert rows[0]["x"].shape == (1, 2)


def test_without_samples_there_is_no_real_set():
    assert set(input_sets([IMAGE], None, 0)) == {"random", "edges"}


def test_random_numbers_given_as_samples_are_not_real():
    made_up = Samples("s", {"x": np.zeros((5, 3, 4, 4))}, made_up=True)
    assert "real" not in input_sets([IMAGE], made_up, 0)


def test_a_free_batch_is_tried_with_more_than_one_sample():
    value = ValueFacts(name="x", dtype="float32", shape=("batch", 2))
    sizes = {len(row["x"]) for row in input_sets([value], None, 0)["random"]}
    assert sizes == {1, 3}


def test_integers_stay_integers_in_their_domain():
    value = ValueFacts(name="t", dtype="int64", shape=(1,), domain=(0, 9))
    for rows in input_sets([value], None, 0).values():
        for row in rows:
            assert row["t"].dtype == np.int64
            assert 0 <= row["t"][0] <= 9


def test_samples_that_do_not_fit_the_graph_are_refused():
    with pytest.raises(DataError, match=r"shape \[1, 3\]"):
        input_sets([IMAGE], Samples("s", {"x": np.zeros((5, 3))}), 0)
    with pytest.raises(DataError, match="`x`"):
        input_sets([IMAGE], Samples("s", {"z": np.zeros((5, 3))}), 0)


def test_the_numbers_are_those_of_the_worst_row():
    reference = [{"y": np.array([1.0, 2.0])}, {"y": np.array([4.0, 0.0])}]
    other = [{"y": np.array([1.0, 2.0])}, {"y": np.array([4.0, 0.1])}]
    result = compare_outputs("a → b", "real", reference, other, TOLERANCE)
    assert result.samples == 2
    assert result.max_absolute == pytest.approx(0.1)
    assert result.max_relative == pytest.approx(0.1 / 4)
    assert 0.9 < result.cosine < 1
    assert not result.passed


@given(arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)))
def test_equal_outputs_are_no_distance_apart(values):
    result = check(values, values)
    assert (result.max_absolute, result.max_relative, result.cosine) == (0, 0, 1)
    assert result.passed


@pytest.mark.parametrize(
    ("magnitude", "difference", "passed"),
    [(1.0, 9e-5, True), (1.0, 2e-4, False), (1000.0, 9e-3, True), (1000.0, 2e-2, False)],
)
def test_either_limit_is_enough(magnitude, difference, passed):
    assert check(np.array([magnitude]), np.array([magnitude + difference])).passed is passed


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_what_is_not_finite_on_one_side_fails(broken):
    result = check(np.array([1.0, 2.0]), np.array([1.0, broken]))
    assert result.max_absolute == np.inf
    assert not result.passed


def test_what_is_not_finite_on_both_sides_is_the_same():
    values = np.array([np.nan, np.inf, 1.0])
    assert check(values, values.copy()).passed


def test_another_shape_fails():
    assert not check(np.zeros((1, 2)), np.zeros((2, 1))).passed


def test_one_bad_output_among_good_ones_fails():
    reference, other = {"a": np.ones(3), "b": np.ones(3)}, {"a": np.ones(3), "b": np.zeros(3)}
    assert not compare_outputs("a → b", "random", [reference], [other], TOLERANCE).passed


def test_a_failure_shows_hop_set_numbers_limits_and_culprit():
    with pytest.raises(ParityError) as caught:
        require(check(np.array([1.0]), np.array([1.5])), TOLERANCE, "folded 3 BatchNormalization")
    text = str(caught.value)
    for part in ("a → b", "random", "0.5", "0.0001", "1e-05", "folded 3 BatchNormalization"):
        assert part in text
    assert caught.value.exit_code == 1
