from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError
from onnxq.sample_checks import check_samples, made_up_samples
from onnxq.samples import Samples

X = np.arange(24, dtype=np.float32).reshape(6, 4)
LABELS, GROUPS = np.arange(6.0), np.array(["a", "a", "b", "b", "c", "c"])


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


def test_timesteps_go_with_their_samples_and_are_part_of_the_content():
    steps = np.array([900, 700, 500, 300, 100, 0])
    samples = Samples("s", {"x": X}, timesteps=steps)
    assert samples.take(np.array([4, 1])).timesteps.tolist() == [100, 700]
    assert samples.thinned(2).timesteps.tolist() == [900, 0]
    assert samples.digest != Samples("s", {"x": X}, timesteps=steps[::-1]).digest
    with pytest.raises(DataError, match="timesteps 5"):
        Samples("s", {"x": X}, timesteps=steps[:5])


def test_a_batch_holds_the_rows_that_were_asked_for_and_no_batch_is_short():
    samples = Samples("s", {"x": X, "t": np.arange(6)}).take(np.array([5, 4, 3, 2, 1]))
    batch = samples.batch(1, 3)
    np.testing.assert_array_equal(batch["x"], X[[4, 3, 2]])
    assert batch["t"].tolist() == [4, 3, 2]
    rows = np.concatenate([samples.row(i)["x"] for i in (1, 2, 3)])
    np.testing.assert_array_equal(batch["x"], rows)
    for start, size in ((3, 3), (-1, 2), (0, 0), (0, 6)):
        with pytest.raises(DataError, match=r"holds 5 samples: no batch of"):
            samples.batch(start, size)


def test_preprocessing_stays_with_what_is_taken():
    samples = Samples("s", {"x": X}, preprocessing="x/255")
    assert samples.take(np.array([1])).preprocessing == "x/255"


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


FOUR = ValueFacts(name="x", dtype="float32", shape=(4, 2))
EIGHT_ROWS = Samples("s", {"x": np.zeros((8, 2), np.float32)})


def test_a_model_whose_batch_is_fixed_cannot_be_run_one_sample_at_a_time():
    with pytest.raises(DataError, match=r"(?s)fixed at 4.*one at a time.*batch of 1"):
        check_samples(EIGHT_ROWS, [FOUR])


def test_a_model_whose_batch_is_fixed_takes_that_batch_and_no_other():
    check_samples(EIGHT_ROWS, [FOUR], batch=4)
    with pytest.raises(DataError, match=r"(?s)fixed at 4.*2 at a time"):
        check_samples(EIGHT_ROWS, [FOUR], batch=2)
    free = FOUR.model_copy(update={"shape": ("n", 2)})
    check_samples(EIGHT_ROWS, [free], batch=2)


def test_an_input_without_batch_axis_is_told():
    scalar = FREE.model_copy(update={"name": "t", "shape": ()})
    with pytest.raises(DataError, match=r"(?s)input `t`: .*single number.*\(batch,\)"):
        check_samples(Samples("s", {"x": X, "t": np.zeros(6, np.float32)}), [FREE, scalar])


def test_what_the_model_takes_is_said_with_every_fault_of_names():
    other = ValueFacts(name="mask", dtype="int64", shape=("n", 16))
    both = {"x": X, "mask": np.zeros((6, 16), np.int64)}
    check_samples(Samples("s", both), [FREE, other])
    with pytest.raises(DataError, match=r"(?s)`extra` is no input.*exactly.*: x, mask"):
        check_samples(Samples("s", both | {"extra": X}), [FREE, other])
    with pytest.raises(DataError, match=r"(?s)`mask` is missing.*int64 of shape \(16\).*are: x"):
        check_samples(Samples("s", {"x": X}), [FREE, other])
    with pytest.raises(DataError, match=r"(?s)no sample.*each of: x, mask"):
        check_samples(Samples("s", {n: values[:0] for n, values in both.items()}), [FREE, other])
