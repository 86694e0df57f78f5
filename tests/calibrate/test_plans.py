"""What a plan draws, and what it says of that which it could not draw."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from onnxq.calibrate.facets import joined_bins
from onnxq.calibrate.plans import choose
from onnxq.errors import DataError
from onnxq.recipe import CalibrateSection, Stratify
from onnxq.samples import Samples

from .seen import choice_of

EDGES = (25.0, 50.0, 75.0)


def samples_of(count=60, **facts) -> Samples:
    x = np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    return Samples("s", {"x": x}, **facts)


def draw(samples, count, seed=0, plan="random", **stratify):
    section = CalibrateSection(samples=count, seed=seed, plan=plan, stratify=Stratify(**stratify))
    return choose(samples, section)


def even_until_used_up(held: Counter, drawn: Counter) -> bool:
    most = max(drawn.values())
    return all(drawn[cell] >= min(number, most - 1) for cell, number in held.items())


# --- what every plan keeps ----------------------------------------------------------------------


PLANS = st.fixed_dictionaries(
    {
        "held": st.integers(1, 60),
        "share": st.floats(0, 1),
        "content": st.integers(0, 2**32 - 1),
        "classes": st.integers(1, 9),
        "steps": st.integers(1, 1000),
        "label": st.sampled_from([{}, {"by_label": True}, {"label_edges": (2.5, 5.5)}]),
        "by_group": st.booleans(),
        "by_timestep": st.booleans(),
        "timestep_bins": st.integers(2, 20),
    }
)


def made(plan):
    """Samples, how many to take, and how."""
    random, held = np.random.default_rng(plan["content"]), plan["held"]
    samples = samples_of(
        held,
        labels=random.integers(0, plan["classes"], held),
        groups=random.choice(list("abcde"), held),
        timesteps=random.integers(0, plan["steps"], held),
    )
    asked = {name: plan[name] for name in ("by_group", "by_timestep", "timestep_bins")}
    return samples, max(1, round(plan["share"] * held)), plan["label"] | asked


@settings(max_examples=60, deadline=None)
@given(PLANS, st.integers(0, 2**32 - 1))
def test_no_sample_is_taken_twice_and_the_seed_decides(planned, seed):
    samples, count, stratify = made(planned)
    first = draw(samples, count, seed, **stratify)
    assert len(set(first.indices.tolist())) == count
    again = draw(samples, count, seed, **stratify)
    np.testing.assert_array_equal(first.indices, again.indices)
    assert (first.bins, first.notes) == (again.bins, again.notes)


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_what_is_drawn_is_counted_by_label_timestep_and_group(planned):
    samples, count, stratify = made(planned)
    drawn = draw(samples, count, **stratify)
    for kind in ("label", "timestep", "group"):
        numbers = [n for key, n in drawn.bins.items() if key.partition(" ")[0] == kind]
        assert sum(numbers) == count
    groups = Counter(f"group {g}" for g in samples.groups[drawn.indices])
    assert {k: n for k, n in drawn.bins.items() if k.startswith("group ") and n} == groups


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_outermost_cells_take_turns_until_they_are_used_up(planned):
    samples, count, stratify = made(planned)
    taken = draw(samples, count, **stratify).indices
    if "by_label" in stratify:
        cells = samples.labels
    elif "label_edges" in stratify:
        cells = np.digitize(samples.labels, stratify["label_edges"])
    elif stratify["by_group"] and not stratify["by_timestep"]:
        cells = samples.groups
    else:
        return
    assert even_until_used_up(Counter(cells.tolist()), Counter(cells[taken].tolist()))


@settings(max_examples=60, deadline=None)
@given(PLANS)
def test_within_an_outer_cell_its_inner_cells_take_turns(planned):
    samples, count, _ = made(planned)
    taken = draw(samples, count, by_label=True, by_group=True).indices
    for label in set(samples.labels[taken].tolist()):
        inside = samples.labels == label
        of_taken = samples.labels[taken] == label
        assert even_until_used_up(
            Counter(samples.groups[inside].tolist()),
            Counter(samples.groups[taken][of_taken].tolist()),
        )


def test_another_seed_takes_other_samples():
    drawn = {tuple(draw(samples_of(), 10, seed).indices.tolist()) for seed in range(20)}
    assert len(drawn) == 20


def test_the_order_is_shuffled_so_that_no_bin_comes_first():
    labels = np.repeat([0.0, 1.0], 30)
    taken = draw(samples_of(labels=labels), 60, label_edges=(0.5,)).indices
    assert labels[taken].tolist() != [0.0, 1.0] * 30


# --- each plan ----------------------------------------------------------------------------------


def test_without_a_plan_samples_are_drawn_at_random():
    drawn = draw(samples_of(), 10)
    assert (drawn.plan, drawn.bins, drawn.notes) == ("random", {}, ())


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_bins_take_turns_until_they_are_used_up(data):
    labels = np.array(data.draw(st.lists(st.floats(0, 100), min_size=4, max_size=60)))
    count = data.draw(st.integers(1, len(labels)))
    drawn = draw(samples_of(len(labels), labels=labels), count, label_edges=EDGES)
    assert drawn.plan == "stratified by label bin, shuffled"
    cells = np.digitize(labels, EDGES)
    assert even_until_used_up(Counter(cells.tolist()), Counter(cells[drawn.indices].tolist()))


@pytest.mark.parametrize("labels", [np.tile([3, 1, 2], 20), np.tile(["cat", "dog", "owl"], 20)])
def test_classes_of_integers_and_of_text_are_drawn_evenly(labels):
    drawn = draw(samples_of(labels=labels), 30, by_label=True)
    assert drawn.plan == "stratified by label class, shuffled"
    assert set(Counter(labels[drawn.indices].tolist()).values()) == {10}
    assert drawn.bins == {f"label {name}": 10 for name in sorted(set(labels.tolist()))}


def test_bins_are_even_and_within_a_bin_its_groups_are_even():
    labels = np.repeat([40.0, 70.0, 100.0], 20)
    groups = np.tile(np.repeat(["p", "q"], 10), 3)
    drawn = draw(samples_of(labels=labels, groups=groups), 18, label_edges=(60, 90), by_group=True)
    assert drawn.plan == "stratified by label bin and group, shuffled"
    taken = drawn.indices
    cells = Counter(zip(labels[taken].tolist(), groups[taken].tolist(), strict=True))
    assert set(cells.values()) == {3}
    assert len(cells) == 6
    assert drawn.bins == {
        "label < 60": 6, "label [60, 90)": 6, "label ≥ 90": 6, "group p": 9, "group q": 9,
    }  # fmt: skip
    assert drawn.edges == {"label": (60, 90)}


STEPS = np.repeat(np.arange(951, 0, -50), 256)  # as a 20-step sampler leaves them, newest first


def test_a_draw_over_20_steps_of_256_rows_covers_every_step_evenly():
    drawn = draw(samples_of(len(STEPS), timesteps=STEPS), 200, by_timestep=True)
    assert drawn.plan == "stratified by timestep, shuffled"
    counts = np.unique(STEPS[drawn.indices], return_counts=True)[1]
    assert counts.tolist() == [10] * 20
    assert drawn.bins == {f"timestep {step}": 10 for step in range(1, 952, 50)}


def test_many_timesteps_are_put_into_bins_of_equal_width():
    steps = np.random.default_rng(1).integers(0, 1000, 5000)
    drawn = draw(samples_of(5000, timesteps=steps), 100, by_timestep=True, timestep_bins=10)
    assert drawn.plan == "stratified by timestep bin, shuffled"
    edges = np.linspace(steps.min(), steps.max(), 11)[1:-1]
    assert drawn.edges["timestep"] == pytest.approx(edges)
    assert np.bincount(np.digitize(steps[drawn.indices], edges)).tolist() == [10] * 10


# --- the first ones -----------------------------------------------------------------------------


def test_the_first_samples_are_taken_as_they_lie_with_a_warning_of_what_they_leave_out():
    groups = np.repeat(["p", "q"], len(STEPS) // 2)
    drawn = draw(samples_of(len(STEPS), timesteps=STEPS, groups=groups), 200, plan="first")
    assert drawn.indices.tolist() == list(range(200))
    assert drawn.plan == "the first 200"
    warning, *left_out = drawn.notes
    assert "the first 200 of 5120 samples were taken as they lie" in warning
    assert "no cross-section" in warning
    assert left_out == [
        "the first 200 samples hold 1 of 20 timesteps",
        "the first 200 samples hold 1 of 2 groups",
    ]
    assert drawn.bins["timestep 951"] == 200
    assert drawn.bins["timestep 1"] == 0


def test_all_samples_in_their_order_need_no_warning():
    assert draw(samples_of(), 60, plan="first").notes == ()


# --- what could not be filled -------------------------------------------------------------------


def test_a_bin_without_samples_is_noted():
    drawn = draw(samples_of(labels=np.full(60, 70.0)), 5, label_edges=(60, 90, 120))
    assert drawn.notes == ("no calibration sample has a label in [90, 120)",)
    assert drawn.bins == {"label [60, 90)": 5, "label [90, 120)": 0}


def test_bins_that_hold_less_than_their_share_are_noted_with_what_they_hold():
    labels = np.repeat([30.0, 60.0, 90.0], [35, 100, 100])
    drawn = draw(samples_of(235, labels=labels), 200, label_edges=EDGES)
    assert drawn.notes == (
        "1 of 3 label bins hold fewer samples than their share of 66, and the others make up for "
        "it: [25, 50) 35",
    )
    assert sorted(drawn.bins.values()) == [35, 82, 83]


def test_classes_and_timesteps_for_which_there_was_no_room_are_noted():
    drawn = draw(samples_of(labels=np.tile(np.arange(6), 10)), 4, by_label=True)
    (note,) = drawn.notes
    left_out = [key.removeprefix("label ") for key, number in drawn.bins.items() if not number]
    assert note == f"4 samples leave out 2 of 6 label classes: {', '.join(left_out)}"


def test_five_bins_of_35_are_no_200_samples():
    labels = np.repeat([50.0, 70.0, 90.0, 110.0, 140.0], 35)
    with pytest.raises(
        DataError, match="holds 175 samples, 200 were asked for; 5 label bins of 35"
    ):
        draw(samples_of(175, labels=labels), 200, label_edges=(40, 60, 80, 100, 120, 160))
    with pytest.raises(DataError, match=r"61 were asked for; 2 label classes: 0 20, 1 40"):
        draw(samples_of(labels=np.repeat([0, 1], [20, 40])), 61, by_label=True)


def test_too_few_samples_are_told_with_how_many_there_are():
    with pytest.raises(DataError, match=r"(?s)holds 60 samples, 61 were asked for.*ask for 60"):
        draw(samples_of(), 61)


@pytest.mark.parametrize(
    ("facts", "stratify", "says"),
    [
        ({}, {"label_edges": (1,)}, "no labels"),
        ({}, {"by_label": True}, "no labels"),
        ({}, {"by_timestep": True}, "no timesteps"),
        ({}, {"by_group": True}, "no groups"),
        ({"labels": np.ones(60)}, {"by_label": True}, "float64 numbers, no classes"),
        ({"labels": np.array(["a", "b"] * 30)}, {"label_edges": (1,)}, "are no numbers"),
        ({"labels": np.full(60, np.nan)}, {"label_edges": (1,)}, r"s, sample 0: the label is nan"),
        ({"timesteps": np.full(60, np.inf)}, {"by_timestep": True}, "the timestep is inf"),
    ],
)
def test_a_plan_needs_what_it_stratifies_by(facts, stratify, says):
    with pytest.raises(DataError, match=says):
        draw(samples_of(**facts), 5, **stratify)


def test_labels_that_are_not_known_of_every_sample_do_not_hinder_another_plan():
    labels = np.where(np.arange(60) < 3, np.nan, 1.0)
    drawn = draw(samples_of(labels=labels, groups=np.tile(["p", "q"], 30)), 4, by_group=True)
    assert drawn.bins == {"group p": 2, "group q": 2}


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"stratify": {"label_edges": (1, 2), "by_label": True}}, "either `label_edges`"),
        ({"stratify": {"label_edges": (2, 1)}}, "must rise"),
        ({"plan": "first", "stratify": {"by_group": True}}, "leave out `stratify`"),
    ],
)
def test_plans_that_contradict_themselves_are_refused(section, says):
    with pytest.raises(ValidationError, match=says):
        CalibrateSection.model_validate(section)


# --- several draws ------------------------------------------------------------------------------


def test_bins_of_several_choices_are_added_where_they_are_the_same_bins():
    left = choice_of(
        4,
        bins={"label < 5": 3, "label ≥ 5": 1, "timestep 1": 4, "group a": 4},
        edges={"label": (5.0,)},
    )
    right = choice_of(
        2, bins={"label ≥ 5": 2, "timestep < 7": 2, "group b": 2},
        edges={"label": (5.0,), "timestep": (7.0,)},
    )  # fmt: skip
    bins = {"label < 5": 3, "label ≥ 5": 3, "group a": 4, "group b": 2}
    assert joined_bins([left, right]) == (bins, {"label": (5.0,)})
    assert joined_bins([right, left]) == (bins, {"label": (5.0,)})
    unknown = choice_of(1, bins={"group c": 1})
    assert joined_bins([left, unknown]) == ({"group a": 4, "group c": 1}, {})
