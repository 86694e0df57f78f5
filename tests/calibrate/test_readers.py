from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate.readers import SampleReader, choose, describe, refuse_overlap
from onnxq.errors import DataError, LeakageError
from onnxq.recipe import Stratify
from onnxq.samples import Samples

NONE = Stratify()


def samples_of(labels=None, groups=None, count=60, name="s") -> Samples:
    x = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    return Samples(name, {"x": x}, labels=labels, groups=groups)


# --- the reader ---------------------------------------------------------------------------------


def test_the_reader_hands_out_every_sample_once_then_none_and_starts_over():
    samples = samples_of(count=3)
    reader = SampleReader(samples)
    for _ in range(2):
        rows = [reader.get_next() for _ in range(4)]
        assert rows[3] is None
        assert [row["x"].shape for row in rows[:3]] == [(1, 2)] * 3
        np.testing.assert_array_equal(
            np.concatenate([r["x"] for r in rows[:3]]), samples.inputs["x"]
        )
        reader.rewind()
    assert len(reader) == 3


# --- the choice ---------------------------------------------------------------------------------


@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_no_sample_is_taken_twice_and_the_seed_decides(count, seed):
    samples = samples_of()
    first, plan, notes = choose(samples, count, seed, NONE)
    assert len(set(first.tolist())) == count
    assert (plan, notes) == ("random", ())
    np.testing.assert_array_equal(first, choose(samples, count, seed, NONE)[0])


def test_another_seed_takes_other_samples():
    samples = samples_of()
    drawn = {tuple(choose(samples, 10, seed, NONE)[0].tolist()) for seed in range(20)}
    assert len(drawn) == 20


@settings(max_examples=50)
@given(st.data())
def test_bins_take_turns_until_they_are_used_up(data):
    labels = np.array(data.draw(st.lists(st.floats(0, 100), min_size=4, max_size=60)))
    edges = (25.0, 50.0, 75.0)
    count = data.draw(st.integers(1, len(labels)))
    samples = samples_of(labels=labels, count=len(labels))
    taken, plan, _ = choose(samples, count, 0, Stratify(label_edges=edges))
    assert plan == "stratified by label bin, shuffled"
    held = Counter(np.digitize(labels, edges).tolist())
    drawn = Counter(np.digitize(labels[taken], edges).tolist())
    most = max(drawn.values())
    for number, available in held.items():
        assert drawn[number] >= min(available, most - 1)


@settings(max_examples=50)
@given(st.data())
def test_groups_take_turns_until_they_are_used_up(data):
    groups = np.array(data.draw(st.lists(st.sampled_from("abcde"), min_size=4, max_size=60)))
    count = data.draw(st.integers(1, len(groups)))
    taken, plan, _ = choose(
        samples_of(groups=groups, count=len(groups)), count, 1, Stratify(by_group=True)
    )
    assert plan == "stratified by group, shuffled"
    held, drawn = Counter(groups.tolist()), Counter(groups[taken].tolist())
    assert all(drawn[g] >= min(n, max(drawn.values()) - 1) for g, n in held.items())


def test_bins_are_even_and_within_a_bin_its_groups_are_even():
    labels = np.repeat([40.0, 70.0, 100.0], 20)
    groups = np.tile(np.repeat(["p", "q"], 10), 3)
    taken, plan, _ = choose(
        samples_of(labels, groups), 18, 0, Stratify(label_edges=(60, 90), by_group=True)
    )
    assert plan == "stratified by label bin and group, shuffled"
    cells = Counter(zip(labels[taken].tolist(), groups[taken].tolist(), strict=True))
    assert set(cells.values()) == {3}
    assert len(cells) == 6


def test_a_bin_without_samples_is_noted():
    labels = np.full(60, 70.0)
    _, _, notes = choose(samples_of(labels), 5, 0, Stratify(label_edges=(60, 90, 120)))
    assert notes == ("no calibration sample has a label in [90, 120)",)


def test_the_order_is_shuffled_so_that_no_bin_comes_first():
    labels = np.repeat([0.0, 1.0], 30)
    taken, _, _ = choose(samples_of(labels), 60, 0, Stratify(label_edges=(0.5,)))
    assert labels[taken].tolist() != [0.0, 1.0] * 30


def test_too_few_samples_are_told_with_how_many_there_are():
    with pytest.raises(DataError, match=r"(?s)holds 60 samples, 61 were asked for.*ask for 60"):
        choose(samples_of(), 61, 0, NONE)


@pytest.mark.parametrize(
    ("stratify", "says"),
    [(Stratify(label_edges=(1,)), "no labels"), (Stratify(by_group=True), "no groups")],
)
def test_a_plan_needs_what_it_stratifies_by(stratify, says):
    with pytest.raises(DataError, match=says):
        choose(samples_of(), 5, 0, stratify)


def test_the_record_of_a_choice_names_the_samples_of_the_source():
    labels, groups = np.arange(60.0), np.array(list("ab") * 30)
    samples = samples_of(labels, groups)
    indices = np.array([4, 1, 7])
    chosen = samples.take(indices)
    choice = describe(samples, chosen, ("random", 3, indices))
    assert choice.indices == (4, 1, 7)
    assert choice.digests == tuple(samples.row_digests[i] for i in (4, 1, 7))
    assert choice.groups == ("a", "b")
    assert (choice.label_low, choice.label_high, choice.label_mean) == (1, 7, 4)


# --- leakage ------------------------------------------------------------------------------------


def chosen_from(samples: Samples, *indices: int):
    picked = np.array(indices)
    return describe(samples, samples.take(picked), ("random", 0, picked))


def test_a_shared_group_is_leakage():
    calibration = samples_of(groups=np.array(["s1"] * 30 + ["s2"] * 30), name="cal")
    fresh = np.random.default_rng(9).standard_normal((4, 2)).astype(np.float32)
    evaluation = Samples("eval", {"x": fresh}, groups=np.array(["s2", "s3", "s3", "s3"]))
    with pytest.raises(LeakageError, match=r"share 1 group\(s\): s2") as caught:
        refuse_overlap(chosen_from(calibration, 0, 59), evaluation)
    assert caught.value.where == "cal / eval"
    refuse_overlap(chosen_from(calibration, 0, 1), evaluation)


def test_a_shared_sample_is_leakage_whatever_its_place():
    calibration = samples_of(name="cal")
    x = np.random.default_rng(9).standard_normal((4, 2)).astype(np.float32)
    x[2] = calibration.inputs["x"][17]
    evaluation = Samples("eval", {"x": x})
    with pytest.raises(LeakageError, match="calibration sample 17 is evaluation sample 2"):
        refuse_overlap(chosen_from(calibration, 5, 17), evaluation)
    refuse_overlap(chosen_from(calibration, 5, 16), evaluation)
