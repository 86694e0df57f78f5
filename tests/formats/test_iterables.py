import gc
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from onnxq.errors import DataError, PluginError
from onnxq.formats.content import Request
from onnxq.formats.iterables import samples_from
from onnxq.samples import Samples

from .readers import LABELS, X, facts, resident_mib, values

Z = np.arange(6, dtype=np.int64) * 10
KNOWN = {"x": facts("x", "float32", "b", 4)}
BOTH = KNOWN | {"z": facts("z", "int64", "b")}


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch):
    """Spooled data of a test lie in a folder of its own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def read(found, names=("x",), known=None, limit=None, **more) -> Samples:
    return samples_from(found, Request(names, known or {}, limit, **more), "my:function")


class Reader(CalibrationDataReader):
    """Batches of 4 and 2, as onnxruntime's examples yield them."""

    def __init__(self) -> None:
        self.batches = iter([{"x": X[:4], "z": Z[:4]}, {"x": X[4:], "z": Z[4:]}])

    def get_next(self):
        return next(self.batches, None)


class Windows(Dataset):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int):
        return torch.from_numpy(X[index]), int(LABELS[index])


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(torch.from_numpy(X))


def test_samples_are_handed_on_as_they_are():
    samples = Samples("s", {"x": X})
    assert read(samples) is samples


@pytest.mark.parametrize("array", [np.asarray, torch.from_numpy])
def test_a_mapping_of_arrays_is_read_in_place(array, temporary):
    found = read({"x": array(X), "labels": array(LABELS)})
    np.testing.assert_array_equal(values(found), X)
    assert found.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(values(read(array(X))), X)
    assert list(temporary.iterdir()) == []
    with pytest.raises(DataError, match="`y` is no input"):
        read({"x": X, "y": X})
    with pytest.raises(DataError, match="`x`: is no array"):
        read({"x": [X, X[:3]]})


def test_a_calibration_data_reader_of_onnxruntime_gives_batches():
    found = read(Reader(), ("x", "z"))
    np.testing.assert_array_equal(values(found), X)
    np.testing.assert_array_equal(values(found, "z"), Z)
    assert found.name == "my:function"


def test_a_data_set_gives_samples_with_labels():
    for known in (None, KNOWN):
        found = read(Windows(), known=known)
        np.testing.assert_array_equal(values(found), X)
        assert found.labels.tolist() == LABELS.tolist()
    np.testing.assert_array_equal(values(read(Stream())), X)
    tensors = TensorDataset(torch.from_numpy(X), torch.from_numpy(Z))
    np.testing.assert_array_equal(values(read(tensors, ("x", "z")), "z"), Z)


@pytest.mark.parametrize("batch_size", [1, 4, 6, None])
def test_a_data_loader_gives_batches_with_labels(batch_size):
    found = read(DataLoader(Windows(), batch_size=batch_size))
    np.testing.assert_array_equal(values(found), X)
    assert found.labels.tolist() == LABELS.tolist()


ROWS = {
    "array": (lambda: iter(X), KNOWN),
    "mapping": (lambda: ({"x": x} for x in X), KNOWN),
    "one-tuple": (lambda: ((x,) for x in X), KNOWN),
    "numbers": (lambda: (x.tolist() for x in X), KNOWN),
    "labelled": (lambda: zip(X, LABELS, strict=True), KNOWN),
    "nested": (lambda: ((({"x": x}), y) for x, y in zip(X, LABELS, strict=True)), KNOWN),
    "two inputs": (lambda: zip(X, Z, strict=True), BOTH),
    "two inputs, labelled": (lambda: zip(X, Z, LABELS, strict=True), BOTH),
    "two inputs, nested": (lambda: (((X[i], Z[i]), LABELS[i]) for i in range(6)), BOTH),
    "all by name": (
        lambda: ({"x": x, "z": z, "labels": y} for x, z, y in zip(X, Z, LABELS, strict=True)),
        BOTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", ROWS)
@pytest.mark.parametrize("with_facts", [True, False])
def test_a_generator_gives_samples_in_every_form_of_row(form, with_facts):
    rows, known = ROWS[form]
    found = read(rows(), tuple(known), known if with_facts else None)
    got = values(found)
    np.testing.assert_array_equal(got, X)
    if "z" in known:
        np.testing.assert_array_equal(values(found, "z"), Z)
    labelled = "label" in form or "nested" in form or "all" in form
    assert (found.labels is not None) is labelled
    if labelled:
        np.testing.assert_array_equal(found.labels, LABELS)


def test_a_generator_of_batches_is_known_by_the_graphs_rank():
    batches = [{"x": X[:4], "z": Z[:4], "labels": LABELS[:4]}, {"x": X[4:], "z": Z[4:]}]
    batches[1]["labels"] = LABELS[4:]
    found = read(iter(batches), ("x", "z"), BOTH)
    np.testing.assert_array_equal(values(found), X)
    assert found.labels.tolist() == LABELS.tolist()
    unknown = read(iter([X[:3], X[3:]]))
    assert unknown.inputs["x"].shape == (2, 3, 4)  # nothing is known: they are samples


def test_inputs_of_which_some_have_a_batch_axis_are_told():
    with pytest.raises(DataError, match=r"some inputs have a batch axis: `x` has 1 axes of 2"):
        read(iter([{"x": X[0], "z": Z[:1]}]), ("x", "z"), BOTH)


@pytest.mark.parametrize("limit", [1, 3, 4, 5, 6, 9])
def test_no_more_is_read_than_the_limit(limit):
    asked = []

    def rows():
        for index in range(6):
            asked.append(index)
            yield X[index]

    found = read(rows(), limit=limit)
    np.testing.assert_array_equal(values(found), X[:limit])
    assert len(asked) == min(limit, 6)
    batches = read(Reader(), ("x", "z"), limit=limit)
    np.testing.assert_array_equal(values(batches, "z"), Z[:limit])


def test_an_endless_generator_is_read_up_to_the_limit():
    def endless():
        while True:
            yield X[0], 1

    assert len(read(endless(), limit=20)) == 20


def test_rows_are_read_once_kept_on_disk_and_removed_when_done(temporary):
    found = read(iter(X))
    assert len(list(temporary.iterdir())) == 1
    first = found.digest
    part = found.take(np.array([2, 0]))
    assert read(iter(X)).digest == first
    del found
    gc.collect()
    np.testing.assert_array_equal(values(part), X[[2, 0]])
    del part
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_memory_stays_flat_whatever_a_generator_yields():
    before, most = resident_mib(), 0.0

    def rows():
        nonlocal most
        for index in range(100):
            yield np.full((3, 512, 512), index, np.float32)  # 3 MiB
            most = max(most, resident_mib())

    found = read(rows())
    assert most - before < 40
    assert [float(row["x"][0, 2, 511, 511]) for row in found.rows()] == list(range(100))


def test_progress_is_shown_with_what_is_known_of_the_total():
    shown = []

    def progress(items, what, total):
        shown.append((what, total))
        yield from items

    read(Windows(), progress=progress)
    read(DataLoader(Windows(), batch_size=2), progress=progress)
    read(iter(X), progress=progress, limit=5)
    read(iter(X), progress=progress)
    assert shown == [("reading my:function", total) for total in (6, 3, 5, 0)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], r"(?s)yields no row.*was read before"),
        ([{"x": X[0], "y": X[0]}], r"row 0: `y` is no input"),
        ([X[0], X[1, :3]], r"sample 1: `x` is float32 of shape \[3\], sample 0 float32"),
        ([X[0], X[1].astype(np.float64)], r"sample 1: `x` is float64"),
        ([{"x": X[0]}, {"x": X[1], "labels": 1}], r"row with x, labels after rows with x"),
        ([(X[0], X[1], X[2])], r"3 value\(s\) for the inputs x"),
        ([np.array([None, 3])], r"`x` holds Python objects"),
        ([{"labels": 3}], r"a batch of"),
        ([{"x": None}], r"holds Python objects"),
        ([{"x": [[1.0, 2.0], [3.0]]}], r"row 0, `x`: is no array: .*inhomogeneous"),
        ([torch.zeros(4, dtype=torch.bfloat16)], r"row 0: is no array: .*BFloat16"),
    ],
)
def test_rows_that_are_no_samples_are_told(rows, says):
    with pytest.raises(DataError, match=says):
        read(iter(rows))


def test_single_numbers_are_inputs_where_there_are_several():
    found = read(iter([(0.5, 3), (1.5, 4)]), ("a", "b"))
    assert (values(found, "a").tolist(), values(found, "b").tolist()) == ([0.5, 1.5], [3, 4])


@pytest.mark.parametrize("base", [Dataset, IterableDataset, object])
def test_what_fails_before_the_first_row_is_reported_too(base):
    class Broken(base):
        def __iter__(self):
            raise OSError("no camera")

        def __getitem__(self, index):
            raise OSError("no camera")

        def __len__(self) -> int:
            return 3

    with pytest.raises(PluginError, match="reading row 0 failed: OSError: no camera"):
        read(Broken())


def test_batches_whose_inputs_differ_in_length_are_told():
    class Uneven(Reader):
        def __init__(self) -> None:
            self.batches = iter([{"x": X[:4], "z": Z[:3]}])

    with pytest.raises(DataError, match=r"a batch of x \(4, 4\), z \(3,\)"):
        read(Uneven(), ("x", "z"))


def test_an_iterator_that_fails_is_reported_with_the_row(temporary):
    def rows():
        yield X[0]
        raise ZeroDivisionError("at the second")

    with pytest.raises(PluginError, match=r"reading row 1 failed: ZeroDivisionError: at the"):
        read(rows())

    def refuses():
        yield X[0]
        raise DataError("the camera is off")

    with pytest.raises(DataError, match="the camera is off"):
        read(refuses())
    gc.collect()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("label", [np.zeros((5, 5)), np.eye(3)[0], {"boxes": [1, 2]}])
def test_labels_that_are_no_single_number_are_left_out_and_that_is_said(label):
    found = read((x, label) for x in X)
    assert found.labels is None
    assert "`labels` are left out" in found.notes[0]


@pytest.mark.parametrize("found", [1, None, "a text", b"bytes"])
def test_what_yields_no_rows_is_refused_with_what_would_do(found):
    with pytest.raises(PluginError, match=r"(?s)returned .*return onnxq\.samples\.Samples.*torch"):
        read(found)


def test_torch_is_not_imported_for_those_who_do_without(monkeypatch):
    for name in [name for name in sys.modules if name == "torch" or name.startswith("torch.")]:
        monkeypatch.setitem(sys.modules, name, None)
    np.testing.assert_array_equal(values(read(iter(X))), X)
