from dataclasses import replace

import numpy as np
import pytest

from onnxq.calibrate.plans import Draw
from onnxq.calibrate.readers import SampleReader, describe, refuse_overlap
from onnxq.errors import LeakageError
from onnxq.samples import Samples

DRAW = Draw(np.array([0]), "random", 3, {"group a": 1}, {}, ())


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


# --- the record ---------------------------------------------------------------------------------


def test_the_record_of_a_draw_names_the_samples_of_the_source():
    labels, groups = np.arange(60.0), np.array(list("ab") * 30)
    samples = samples_of(labels, groups)
    choice = chosen_from(samples, 4, 1, 7)
    assert choice.indices == (4, 1, 7)
    assert choice.digests == tuple(samples.row_digests[i] for i in (4, 1, 7))
    assert choice.groups == ("a", "b")
    assert (choice.label_low, choice.label_high, choice.label_mean) == (1, 7, 4)
    assert (choice.plan, choice.seed, choice.asked, choice.bins) == ("random", 3, 3, {"group a": 1})


def test_notes_of_the_source_and_of_the_draw_are_both_in_the_record():
    samples = replace(samples_of(), notes=("recorded indoors",))
    draw = replace(DRAW, indices=np.array([0]), notes=("no class 3",))
    assert describe(samples, samples.take(draw.indices), draw).notes == (
        "recorded indoors", "no class 3",
    )  # fmt: skip


def test_text_labels_have_no_mean():
    choice = chosen_from(samples_of(np.array(["cat", "dog"] * 30)), 0, 1)
    assert choice.label_low is choice.label_high is choice.label_mean is None


# --- leakage ------------------------------------------------------------------------------------


def chosen_from(samples: Samples, *indices: int):
    picked = np.array(indices)
    return describe(samples, samples.take(picked), replace(DRAW, indices=picked))


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
