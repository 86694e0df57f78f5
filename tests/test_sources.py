import sys

import numpy as np
import pytest
from PIL import Image

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError, PluginError
from onnxq.sample_checks import check_samples
from onnxq.sources import open_source

X = np.arange(24, dtype=np.float32).reshape(6, 4)
FACTS = (ValueFacts(name="x", dtype="float32", shape=("n", 4)),)
CODE = """
import numpy as np

X = np.arange(24, dtype=np.float32).reshape(6, 4)

def rows(count: int, plus: float = 0.0):
    for index in range(count):
        yield X[index] + np.float32(plus)

def batches():
    yield X[:4]
    yield X[4:]

class Reader:
    def __init__(self, count: int) -> None:
        self.rows = iter(X[:count])

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"x": row[None]}
"""


def rows_of(samples) -> np.ndarray:
    return np.concatenate([row["x"] for row in samples.rows()])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of sources, gone from Python again after the test."""
    (tmp_path / "my_rows.py").write_text(CODE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_rows", None)


# --- functions ----------------------------------------------------------------------------------


def test_a_generator_function_and_a_reader_class_are_sources(folder):
    made = open_source("my_rows:rows", {"count": 3, "plus": 1.0}, ("x",), folder)
    np.testing.assert_array_equal(rows_of(made), X[:3] + 1)
    read = open_source("my_rows:Reader", {"count": 5}, ("x",), folder)
    np.testing.assert_array_equal(rows_of(read), X[:5])


def test_batches_are_told_from_samples_where_the_graph_is_known(folder):
    made = open_source("my_rows:batches", {}, ("x",), folder, inputs=FACTS)
    np.testing.assert_array_equal(rows_of(made), X)
    check_samples(made, FACTS)


def test_a_function_that_lacks_an_option_is_told(folder):
    with pytest.raises(PluginError, match=r"takes \(count: int"):
        open_source("my_rows:rows", {}, ("x",), folder)


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none.npz", "a.csv", "a", "folder"])
def test_what_is_no_data_is_refused_with_the_kinds_there_are(tmp_path, name):
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "a").write_text("1,2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"(?s)no such file|cannot be read.*\.npy") as caught:
        open_source(str(tmp_path / name), {}, ("x",))
    assert caught.value.where == str(tmp_path / name)


def test_a_folder_of_two_kinds_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", X)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"both pictures and \.npy files"):
        open_source(str(tmp_path), {}, ("x",))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layuot": "plain"}, "unknown option `layuot`; did you mean `layout`"),
        ({"count": 1}, "unknown option `count`; known: `cast`, `inputs`, `layout`"),
        ({"key": "train"}, "unknown option `key`"),  # an .npz does not nest
        ({"cast": "perhaps"}, r"option `cast`: .*\(found 'perhaps'\)"),
        ({"inputs": ["x"]}, "option `inputs`"),
        ({"inputs": {"y": "x"}}, "`inputs` names the array `y`; known: `x`"),
    ],
)
def test_options_of_a_file_are_checked_word_by_word(tmp_path, options, says):
    np.savez(tmp_path / "a.npz", x=X)
    with pytest.raises(DataError, match=says):
        open_source(str(tmp_path / "a.npz"), options, ("x",))


def test_arrays_of_other_names_are_given_to_inputs_and_labels(tmp_path):
    np.savez(tmp_path / "a.npz", image=X, y=np.arange(6))
    path = str(tmp_path / "a.npz")
    for inputs in ({"image": "x", "y": "labels"}, ["image=x", "y=labels"]):
        found = open_source(path, {"inputs": inputs}, ("x",))
        np.testing.assert_array_equal(rows_of(found), X)
        assert found.labels.tolist() == list(range(6))
    with pytest.raises(DataError, match="two arrays are named `x`"):
        open_source(path, {"inputs": {"image": "x", "y": "x"}}, ("x",))
    with pytest.raises(DataError, match=r"(?s)`image` is no input.*inputs: \{array: input\}"):
        open_source(path, {}, ("x",))


def test_arrays_without_a_name_are_the_inputs_in_order_and_that_is_said(tmp_path):
    np.savez(tmp_path / "one.npz", X, labels=np.arange(6))
    found = open_source(str(tmp_path / "one.npz"), {}, ("x",))
    np.testing.assert_array_equal(rows_of(found), X)
    assert found.labels.tolist() == list(range(6))
    assert found.notes == ("arrays without a name, by position: arr_0 is `x`",)
    np.savez(tmp_path / "two.npz", X, X + 1)
    both = open_source(str(tmp_path / "two.npz"), {}, ("z", "x"))
    np.testing.assert_array_equal(rows_of(both), X + 1)
    for names in (("x",), ("x", "y", "z")):
        with pytest.raises(DataError, match="`arr_0` is no input"):
            open_source(str(tmp_path / "two.npz"), {}, names)


def test_a_path_that_is_relative_holds_in_another_folder(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    np.savez(tmp_path / "data" / "x.npz", x=X)
    np.save(tmp_path / "data" / "x.npy", X)
    monkeypatch.chdir(tmp_path)
    sources = ("data/x.npz", "data/x.npy", "data/")
    found = [open_source(source, {}, ("x",)) for source in sources]
    monkeypatch.chdir("/")
    for samples in found:
        np.testing.assert_array_equal(rows_of(samples), X)
    assert [samples.name for samples in found] == ["x.npz", "x.npy", "data"]
    monkeypatch.chdir(tmp_path / "data")
    assert open_source(".", {}, ("x",)).name == "data"


def test_folders_are_followed_through_links_and_hidden_ones_left_out(tmp_path):
    (tmp_path / "far").mkdir()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "far" / "a.png")
    (tmp_path / "near" / ".cache").mkdir(parents=True)
    np.save(tmp_path / "near" / ".cache" / "x.npy", X)
    (tmp_path / "near" / "class").symlink_to(tmp_path / "far")
    found = open_source(str(tmp_path / "near"), {}, ("x",))
    assert (len(found), found.labels.tolist()) == (1, [0])


def test_an_array_that_no_input_takes_is_named_with_the_nearest(tmp_path):
    np.savez(tmp_path / "a.npz", clips=X)
    with pytest.raises(DataError, match=r"`clips` is no input.*did you mean `clip`"):
        open_source(str(tmp_path / "a.npz"), {}, ("clip",))


def test_at_most_the_limit_is_given_and_numbers_stay_those_of_the_source(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, labels=np.arange(6))
    found = open_source(str(tmp_path / "a.npz"), {}, ("x",), limit=2)
    np.testing.assert_array_equal(rows_of(found), X[:2])
    assert found.labels.tolist() == [0, 1]
    assert len(open_source(str(tmp_path / "a.npz"), {}, ("x",), limit=9)) == 6


# --- types --------------------------------------------------------------------------------------


def cast(path, dtype: str, *, known: bool = True):
    facts = (FACTS[0].model_copy(update={"dtype": dtype}),)
    inputs = facts if known else ()
    return open_source(str(path), {"cast": True}, ("x",), inputs=inputs), facts


@pytest.mark.parametrize(
    ("found", "wanted"),
    [("float64", "float32"), ("float32", "float16"), ("int64", "float32"), ("float32", "int64"),
     ("uint8", "float32"), ("float32", "float64"), (">f4", "float32"), ("bool", "float32")],
)  # fmt: skip
def test_what_is_cast_on_demand_is_what_numpy_casts_and_is_said(tmp_path, found, wanted):
    np.savez(tmp_path / "a.npz", x=X.astype(found))
    samples, facts = cast(tmp_path / "a.npz", wanted)
    np.testing.assert_array_equal(rows_of(samples), X.astype(found).astype(wanted))
    assert f"`x` is converted from {np.dtype(found)} to {wanted} (`cast: true`)" in samples.notes
    check_samples(samples, facts)


def test_nothing_is_cast_or_said_where_the_type_is_right_already(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    assert cast(tmp_path / "a.npz", "float32")[0].notes == ()


@pytest.mark.parametrize(
    ("value", "found", "wanted"),
    [
        (0.5, "float32", "int64"),
        (np.nan, "float32", "int64"),
        (2**24 + 1, "int64", "float32"),
        (2**63 - 1, "int64", "float32"),
        (1e39, "float64", "float32"),
        (300, "int64", "uint8"),
        (-1, "int64", "uint8"),
    ],
)
def test_a_value_that_the_type_cannot_stand_for_is_named_with_its_sample(
    tmp_path, value, found, wanted
):
    x = X.astype(found)
    x[4, 1] = value
    np.savez(tmp_path / "a.npz", x=x)
    samples, _ = cast(tmp_path / "a.npz", wanted)
    samples.row(3)
    with pytest.raises(DataError, match=rf"input `x`: sample 4 holds .*no {wanted} value"):
        samples.row(4)


def test_a_nan_stays_one_for_the_checks_to_name(tmp_path):
    x = X.astype(np.float64)
    x[2, 1] = np.nan
    np.savez(tmp_path / "a.npz", x=x)
    samples, facts = cast(tmp_path / "a.npz", "float32")
    with pytest.raises(DataError, match="sample 2, input `x`: holds nan"):
        check_samples(samples, facts)


def test_a_cast_needs_to_know_the_type(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    with pytest.raises(DataError, match="`cast` needs to know the type of `x`"):
        cast(tmp_path / "a.npz", "float32", known=False)
