import io
import zipfile
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError
from onnxq.sample_checks import check_samples, made_up_samples
from onnxq.samples import Samples, load_samples

X = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS, GROUPS = np.arange(6.0), np.array(["a", "a", "b", "b", "c", "c"])


def same(one: Samples, two: Samples) -> bool:
    return all(
        np.array_equal(a[name], b[name])
        for a, b in zip(one.rows(), two.rows(), strict=True)
        for name in a
    )


# --- files --------------------------------------------------------------------------------------


def test_every_kind_of_file_gives_back_what_was_put_in(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, labels=LABELS, groups=GROUPS)
    np.save(tmp_path / "a.npy", X)
    save_file({"x": X, "labels": LABELS}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.npy", "a.safetensors"):
        found = load_samples(tmp_path / name, ("x",))
        assert found.name == name
        assert same(found, Samples("x", {"x": X}))
    loaded = load_samples(tmp_path / "a.npz", ("x",))
    assert loaded.labels.tolist() == LABELS.tolist()
    assert loaded.groups.tolist() == GROUPS.tolist()
    assert load_samples(tmp_path / "a.safetensors", ("x",)).labels.tolist() == LABELS.tolist()


def test_an_npy_file_is_mapped_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", X)
    assert isinstance(load_samples(tmp_path / "a.npy", ("x",)).inputs["x"], np.memmap)


def test_one_array_does_not_do_for_two_inputs(tmp_path):
    np.save(tmp_path / "a.npy", X)
    with pytest.raises(DataError, match=r"(?s)2 inputs.*one array per input: x, z"):
        load_samples(tmp_path / "a.npy", ("x", "z"))


def test_pickled_objects_are_never_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "a.npy", np.array([print], dtype=object))
    for name in ("a.npz", "a.npy"):
        with pytest.raises(DataError, match=r"(?s)cannot be read.*never read"):
            load_samples(tmp_path / name, ("x",))


def test_a_truncated_archive_is_named(tmp_path):
    np.savez(tmp_path / "whole.npz", x=X)
    np.save(tmp_path / "whole.npy", X)
    save_file({"x": X}, tmp_path / "whole.safetensors")
    for kind in ("npz", "npy", "safetensors"):
        whole = (tmp_path / f"whole.{kind}").read_bytes()
        for length in (0, 5, len(whole) // 2, len(whole) - 10):
            (tmp_path / f"cut.{kind}").write_bytes(whole[:length])
            with pytest.raises(DataError, match="cannot be read") as caught:
                load_samples(tmp_path / f"cut.{kind}", ("x",))
            assert caught.value.where == str(tmp_path / f"cut.{kind}")


def test_an_archive_with_a_damaged_member_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, X)
        archive.writestr("x.npy", buffer.getvalue()[:-7])
    with pytest.raises(DataError, match="cannot be read"):
        load_samples(tmp_path / "a.npz", ("x",))


def test_an_array_that_no_input_takes_is_named_with_the_nearest(tmp_path):
    np.savez(tmp_path / "a.npz", clips=X)
    with pytest.raises(DataError, match=r"`clips` is no input.*did you mean `clip`"):
        load_samples(tmp_path / "a.npz", ("clip",))


@pytest.mark.parametrize("name", ["none.npz", "a.csv", "folder"])
def test_what_is_no_data_file_is_refused(tmp_path, name):
    (tmp_path / "a.csv").write_text("1,2")
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"no such file|cannot be read"):
        load_samples(tmp_path / name, ("x",))


# --- samples ------------------------------------------------------------------------------------


def test_numbers_of_rows_that_differ_are_told():
    with pytest.raises(DataError, match="numbers of rows differ: x 6, z 5"):
        Samples("s", {"x": X, "z": X[:5]})
    with pytest.raises(DataError, match="numbers of rows differ: x 6, labels 5"):
        Samples("s", {"x": X}, labels=LABELS[:5])


def test_samples_without_input_or_with_a_single_number_are_refused():
    with pytest.raises(DataError, match="no model input"):
        Samples("s", {})
    with pytest.raises(DataError, match="`x` is a single number"):
        Samples("s", {"x": np.array(1.0)})


@dataclass
class Counting:
    """A column that notes which rows were read."""

    read: list[int] = field(default_factory=list)
    shape: tuple[int, ...] = (1000, 2)
    dtype: np.dtype = np.dtype(np.float32)  # noqa: RUF009 - a dtype does not change

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        self.read.append(index)
        return np.full(2, index, np.float32)


def test_taking_samples_reads_none_and_later_only_what_is_asked_for():
    column = Counting()
    taken = Samples("s", {"x": column}).take(np.array([7, 3, 999]))
    assert (len(taken), taken.inputs["x"].shape, column.read) == (3, (3, 2), [])
    assert taken.row(1)["x"].tolist() == [[3.0, 3.0]]
    assert column.read == [3]


def test_samples_that_were_taken_twice_still_know_their_place_in_the_source():
    taken = Samples("s", {"x": X}, labels=LABELS, groups=GROUPS).take(np.array([5, 3, 1]))
    again = taken.take(np.array([2, 0]))
    assert [again.number(i) for i in range(2)] == [1, 5]
    assert again.labels.tolist() == [1.0, 5.0]
    assert again.groups.tolist() == ["a", "c"]
    np.testing.assert_array_equal(again.row(0)["x"][0], X[1])


@given(st.integers(0, 5), st.integers(0, 3))
def test_digests_are_equal_if_and_only_if_the_content_is(row, column):
    one = Samples("one", {"x": X}, LABELS, GROUPS)
    changed = X.copy()
    changed[row, column] += 1
    two = Samples("two", {"x": changed}, LABELS, GROUPS)
    assert one.digest == Samples("other name", {"x": X.copy()}, LABELS, GROUPS).digest
    assert one.digest != two.digest
    differ = [a != b for a, b in zip(one.row_digests, two.row_digests, strict=True)]
    assert differ == [index == row for index in range(6)]


def test_digests_tell_labels_groups_types_and_names_apart():
    variants = [
        Samples("s", {"x": X}),
        Samples("s", {"z": X}),
        Samples("s", {"x": X.astype(np.float64)}),
        Samples("s", {"x": X.reshape(6, 2, 2)}),
        Samples("s", {"x": X}, labels=LABELS),
        Samples("s", {"x": X}, labels=LABELS + 1),
        Samples("s", {"x": X}, groups=GROUPS),
        Samples("s", {"x": X[::-1]}),
        Samples("s", {"x": X}, fingerprint="f"),
        Samples("s", {"x": X[:1]}, labels=np.array([1]), groups=np.array([23])),
        Samples("s", {"x": X[:1]}, labels=np.array([12]), groups=np.array([3])),
    ]
    assert len({samples.digest for samples in variants}) == len(variants)


def test_what_is_taken_has_a_digest_of_its_own_in_spite_of_a_fingerprint():
    whole = Samples("s", {"x": X}, fingerprint="f")
    assert whole.take(np.array([0, 1])).digest != whole.take(np.array([0, 2])).digest


# --- whether they fit ---------------------------------------------------------------------------

FREE = ValueFacts(name="x", dtype="float32", shape=(1, 4))
UNIT = ValueFacts(name="x", dtype="float32", shape=("n", 4), domain=(0.0, 30.0))


def test_samples_that_fit_are_let_through():
    check_samples(Samples("s", {"x": X}), [FREE])
    check_samples(Samples("s", {"x": X}), [UNIT])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named_by_sample_input_and_place(bad):
    values = X.copy()
    values[4, 2] = bad
    with pytest.raises(DataError, match=r"s, sample 4, input `x`: holds .* at \[2\]"):
        check_samples(Samples("s", {"x": values}), [FREE])
    shuffled = Samples("s", {"x": values}).take(np.array([5, 4, 0]))
    with pytest.raises(DataError, match="sample 4,"):
        check_samples(shuffled, [FREE])


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ({"x": X[:, :3]}, r"shape \[3\], the model takes \[4\]"),
        ({"x": X[:, np.newaxis]}, r"shape \[1, 4\].*"),
        ({"x": X.astype(np.float64)}, "is float64, the model takes float32"),
        ({"x": X, "y": X}, "`y` is no input"),
        ({"y": X}, "`y` is no input"),
        ({"x": X[:0]}, "holds no sample"),
    ],
)
def test_samples_of_another_form_are_refused(samples, says):
    with pytest.raises(DataError, match=says):
        check_samples(Samples("s", samples), [FREE])


def test_a_missing_input_is_named():
    other = FREE.model_copy(update={"name": "z"})
    with pytest.raises(DataError, match="input `z` is missing"):
        check_samples(Samples("s", {"x": X}), [FREE, other])


def test_values_outside_the_declared_domain_are_refused():
    narrow = UNIT.model_copy(update={"domain": (0.0, 1.0)})
    with pytest.raises(DataError, match=r"sample 0.*from 0 to 3 leave the declared domain"):
        check_samples(Samples("s", {"x": X}), [narrow])


def test_made_up_samples_fit_their_facts_and_say_what_they_are():
    made = made_up_samples([UNIT], 5, seed=1)
    check_samples(made, [UNIT])
    assert made.made_up
    assert len(made) == 5
    assert made.digest == made_up_samples([UNIT], 5, seed=1).digest
    assert made.digest != made_up_samples([UNIT], 5, seed=2).digest


def test_a_model_whose_batch_is_fixed_cannot_be_run_one_sample_at_a_time():
    value = ValueFacts(name="x", dtype="float32", shape=(4, 2))
    with pytest.raises(DataError, match="fixed at 4"):
        check_samples(Samples("s", {"x": np.zeros((8, 2), np.float32)}), [value])
