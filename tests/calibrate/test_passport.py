"""What the passport says of planted defects, judged by numpy on the raw values."""

import numpy as np
import pytest

from onnxq.calibrate.estimators import EstimatorOptions
from onnxq.calibrate.passport import Calibrated, Evaluated, passport
from onnxq.calibrate.plans import choose
from onnxq.calibrate.preprocessing import moments_of
from onnxq.calibrate.readers import describe
from onnxq.qtypes import Range
from onnxq.recipe import CalibrateSection
from onnxq.samples import Samples

from .seen import choice_of, ranges_of, statistics_of

RANDOM = np.random.default_rng(0)
PICTURES = RANDOM.integers(0, 256, (60, 3, 6, 6)).astype(np.float32)
WEIGHTS = RANDOM.standard_normal((108, 20)).astype(np.float32)
OPTIONS = EstimatorOptions()


def network(x: np.ndarray) -> dict[str, np.ndarray]:
    """Values of every tensor, a row for every run."""
    flat = x.reshape(len(x), -1)
    hidden = np.maximum(flat @ WEIGHTS, 0)
    return {"x": flat, "h": hidden, "y": hidden.sum(axis=1, keepdims=True)}


def samples_of(x, name="s", **facts) -> Samples:
    return Samples(name, {"x": x}, **facts)


def calibrated(samples, method="minmax", *, histograms=False, options=OPTIONS, choice=None):
    statistics = statistics_of(network(samples.inputs["x"]), histograms=histograms)
    return Calibrated(
        statistics=statistics,
        ranges=ranges_of(statistics, method, options),
        choice=choice or choice_of(len(samples)),
        method=method,
        options=options,
        inputs=moments_of(samples),
    )


def evaluated(samples) -> Evaluated:
    return Evaluated(statistics_of(network(samples.inputs["x"])), samples, moments_of(samples))


def judged(calibration, evaluation, method="minmax", **more):
    calibration = calibration if isinstance(calibration, Samples) else samples_of(calibration)
    if not isinstance(evaluation, Samples):
        evaluation = samples_of(evaluation, "eval")
    return passport(calibrated(calibration, method, **more), ("y",), evaluated(evaluation))


# --- alike --------------------------------------------------------------------------------------


def test_two_draws_of_the_same_data_have_no_finding():
    x = RANDOM.uniform(0, 1, (240, 3, 6, 6)).astype(np.float32)
    seen = judged(x[:200], x[200:], "percentile", histograms=True)
    assert seen.findings == ()
    assert seen.is_stable is True
    assert seen.same_preprocessing is True
    assert seen.is_covered is None  # nothing is known of the samples
    assert seen.evaluated == 40
    assert seen.overlap_checked == ("content",)


def test_without_evaluation_stability_and_counts_are_all_that_is_said():
    samples = samples_of(PICTURES, groups=np.repeat(list("ab"), 30))
    choice = choice_of(60, bins={"group a": 30, "group b": 30})
    seen = passport(calibrated(samples, choice=choice))
    assert (seen.evaluated, seen.outside, seen.inputs, seen.overlap_checked) == (0, (), (), ())
    assert {row.tensor for row in seen.stability} == {"x", "h", "y"}
    assert [(c.cell, c.calibration, c.evaluation) for c in seen.coverage[0].cells] == [
        ("a", 30, None), ("b", 30, None),
    ]  # fmt: skip
    assert seen.same_preprocessing is seen.is_covered is None


# --- outside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_values_outside_are_those_that_numpy_counts_to_one_bucket(method):
    low = RANDOM.normal(0, 1, (40, 3, 6, 6)).astype(np.float32)
    high = RANDOM.normal(0, 1.4, (40, 3, 6, 6)).astype(np.float32)
    options = EstimatorOptions(coverage=0.99)
    histograms = method == "percentile"
    given = calibrated(samples_of(low), method, histograms=histograms, options=options)
    seen = passport(given, ("y",), evaluated(samples_of(high)))
    assert {row.tensor for row in seen.outside} == {"x", "h", "y"}
    for row in seen.outside:
        raw, held = network(high)[row.tensor], given.ranges[row.tensor]
        most = ((raw < held.low) | (raw > held.high)).mean()
        least = ((raw < held.low * (1 + 2**-7)) | (raw > held.high * (1 + 2**-7))).mean()
        assert least <= row.share <= most
        assert row.runs == ((raw < held.low) | (raw > held.high)).any(axis=1).mean()
        excess = max(held.low - raw.min(), raw.max() - held.high, 0)
        assert row.excess == pytest.approx(excess, rel=1e-6)
        assert row.steps == pytest.approx(excess / ((held.high - held.low) / 255), rel=1e-6)
        assert row.is_output == (row.tensor == "y")
    assert [row.share for row in seen.outside] == sorted(
        (row.share for row in seen.outside), reverse=True
    )


def test_steps_on_a_symmetric_grid_are_of_127_to_each_side():
    options = EstimatorOptions(symmetric=True)
    seen = judged(PICTURES / 255, PICTURES / 200, options=options)
    row = next(row for row in seen.outside if row.tensor == "x")
    assert row.steps == pytest.approx((255 / 200 - 1) * 127, rel=1e-5)


def test_an_output_that_saturates_is_told_in_its_own_unit():
    seen = judged(PICTURES[:30], PICTURES[30:] * 1.4)
    outputs = [found for found in seen.findings if found.where == "y"]
    raw, high = network(PICTURES[30:] * 1.4)["y"], network(PICTURES[:30])["y"].max()
    (row,) = [row for row in seen.outside if row.is_output]
    assert (raw > high * (1 + 2**-7)).mean() <= row.share <= (raw > high).mean()
    assert row.runs == (raw > high).mean()  # the output is one number
    assert outputs[0].what == (
        f"the output saturates in {row.runs:.1%} of the runs of evaluation, by up to "
        f"{raw.max() - high:.4g} ({row.steps:.3g} steps of its grid)"
    )


def test_what_a_method_leaves_out_on_purpose_is_no_finding():
    x = RANDOM.normal(0, 1, (200, 3, 6, 6)).astype(np.float32)
    options = EstimatorOptions(coverage=0.95)
    given = calibrated(samples_of(x[:100]), "percentile", histograms=True, options=options)
    for name, known in given.ranges.items():
        raw = network(x[:100])[name]
        outside = float(((raw < known.low) | (raw > known.high)).mean())
        given.ranges[name] = known.model_copy(update={"outside_fraction": outside + 0.02})
    seen = passport(given, (), evaluated(samples_of(x[100:])))
    assert any(row.share > 0.02 for row in seen.outside)
    assert not [found for found in seen.findings if "outside" in found.what]


def test_a_dead_tensor_that_lives_in_evaluation_is_told():
    given = calibrated(samples_of(PICTURES * 0))
    assert given.ranges["h"].range == Range(0, 0)
    seen = passport(given, (), evaluated(samples_of(PICTURES)))
    (found,) = [f for f in seen.findings if "steps of the grid" in f.what]
    assert "3 of 3 tensors" in found.what


# --- coverage -----------------------------------------------------------------------------------


def drawn(samples, /, **section):
    """Samples by a plan, and the record of their choice."""
    draw = choose(samples, CalibrateSection.model_validate(section))
    chosen = samples.take(draw.indices)
    inputs = np.stack([chosen.inputs["x"][i] for i in range(len(chosen))])
    return samples_of(inputs), describe(samples, chosen, draw)


def test_calibration_of_one_class_only_leaves_the_others_uncovered():
    labels = np.repeat(["cat", "dog", "owl"], 20)
    chosen, choice = drawn(samples_of(PICTURES, labels=labels), samples=20, plan="first")
    evaluation = samples_of(PICTURES + 1, "eval", labels=np.tile(["cat", "dog", "owl"], 20))
    seen = judged(chosen, evaluation, choice=choice)
    assert seen.is_covered is False
    assert seen.coverage[0].missing == ("dog", "owl")
    assert [(c.cell, c.calibration, c.evaluation) for c in seen.coverage[0].cells] == [
        ("cat", 20, 20), ("dog", 0, 20), ("owl", 0, 20),
    ]  # fmt: skip
    (found,) = [f for f in seen.findings if "no sample of" in f.what]
    assert found.what == (
        "calibration has no sample of 2 of the 3 label classes in evaluation: dog, owl "
        "(40 of 60 samples)"
    )


@pytest.mark.parametrize("section", [{"stratify": {"by_label": True}}, {"plan": "random"}])
def test_calibration_of_every_class_covers_them(section):
    labels = np.repeat(["cat", "dog", "owl"], 20)
    chosen, choice = drawn(samples_of(PICTURES, labels=labels), samples=20, **section)
    evaluation = samples_of(PICTURES + 1, "eval", labels=np.tile(["cat", "dog", "owl"], 20))
    assert judged(chosen, evaluation, choice=choice).is_covered is True


def test_timesteps_that_were_never_calibrated_are_named():
    steps = np.repeat([951, 501, 1], 20)
    chosen, choice = drawn(samples_of(PICTURES, timesteps=steps), samples=30, plan="first")
    seen = judged(chosen, samples_of(PICTURES + 1, "eval", timesteps=steps), choice=choice)
    (coverage,) = seen.coverage
    assert (coverage.word, coverage.missing) == ("timestep", ("1",))
    assert "1 of the 3 timesteps in evaluation: 1 (20 of 60 samples)" in seen.findings[0].what


def test_label_bins_of_evaluation_are_those_of_the_plan():
    chosen, choice = drawn(
        samples_of(PICTURES, labels=np.repeat([50.0, 70.0], 30)),
        samples=10,
        stratify={"label_edges": [40, 60, 80, 100]},
    )
    labels = np.linspace(45, 120, 60)
    seen = judged(chosen, samples_of(PICTURES + 1, "eval", labels=labels), choice=choice)
    (coverage,) = seen.coverage
    held = np.histogram(labels, [40, 60, 80, 100, 121])[0].tolist()
    assert [(c.cell, c.evaluation) for c in coverage.cells] == list(
        zip(["[40, 60)", "[60, 80)", "[80, 100)", "≥ 100"], held, strict=True)
    )
    assert coverage.missing == ("[80, 100)", "≥ 100")
    assert coverage.beyond == ((labels < 50) | (labels > 70)).sum()
    assert any("labels in evaluation lie outside those" in f.what for f in seen.findings)


def test_whole_numbers_are_the_same_class_whatever_their_type():
    chosen, choice = drawn(samples_of(PICTURES, labels=np.tile([0, 1], 30)), samples=10)
    evaluation = samples_of(PICTURES + 1, "eval", labels=np.tile([0.0, 1.0], 30))
    assert judged(chosen, evaluation, choice=choice).is_covered is True


def test_classes_have_no_lowest_and_highest_and_too_many_of_them_cannot_be_covered():
    chosen, choice = drawn(samples_of(PICTURES, labels=np.arange(60)), samples=10)
    evaluation = samples_of(PICTURES + 1, "eval", labels=np.arange(60) + 40)
    seen = judged(chosen, evaluation, choice=choice)
    assert len(seen.coverage[0].missing) >= 50
    assert (seen.coverage[0].beyond, seen.is_covered) == (0, None)
    assert not [f for f in seen.findings if "label" in f.what]


def test_groups_that_are_kept_apart_are_as_they_should_be():
    chosen, choice = drawn(samples_of(PICTURES, groups=np.repeat(["p", "q"], 30)), samples=10)
    evaluation = samples_of(PICTURES + 1, "eval", groups=np.repeat(["r", "s"], 30))
    seen = judged(chosen, evaluation, choice=choice)
    assert seen.coverage[0].missing == ()
    assert seen.overlap_checked == ("content", "group")
    assert [(c.cell, c.calibration > 0, c.evaluation) for c in seen.coverage[0].cells] == [
        ("p", True, 0), ("q", True, 0), ("r", False, 30), ("s", False, 30),
    ]  # fmt: skip


def test_overlap_with_random_numbers_was_not_checked():
    seen = judged(PICTURES, PICTURES, choice=choice_of(60, made_up=True))
    assert seen.overlap_checked == ()


# --- preprocessing ------------------------------------------------------------------------------


def test_moments_are_those_of_numpy_in_double_precision():
    x = RANDOM.normal(1e4, 1, (7, 5, 3)).astype(np.float32)
    found = moments_of(Samples("s", {"x": x, "t": np.arange(7)}))
    assert found["x"].mean == pytest.approx(x.astype(np.float64).mean(), rel=1e-14)
    assert found["x"].std == pytest.approx(x.astype(np.float64).std(), rel=1e-9)
    assert (found["t"].count, found["t"].mean, found["t"].std) == (7, 3, 2)


NATURAL = {
    "raw": lambda x: x,
    "divided by 255": lambda x: x / 255,
    "centred": lambda x: x - 128,
    "from -1 to 1": lambda x: x / 127.5 - 1,
    "of ImageNet": lambda x: (x / 255 - 0.45) / 0.225,
}


@pytest.mark.parametrize("calibration", NATURAL)
@pytest.mark.parametrize("evaluation", NATURAL)
def test_any_two_ways_of_preprocessing_are_told_apart(calibration, evaluation):
    left, right = (NATURAL[way] for way in (calibration, evaluation))
    seen = judged(left(PICTURES[:30]), right(PICTURES[30:]))
    assert seen.same_preprocessing is (calibration == evaluation)
    (row,) = seen.inputs
    raw = right(PICTURES[30:]).astype(np.float64)
    assert row.evaluation_mean == pytest.approx(raw.mean(), rel=1e-6, abs=1e-6)
    assert row.evaluation_std == pytest.approx(raw.std(), rel=1e-6)
    named = [found for found in seen.findings if "preprocess both" in found.do]
    assert bool(named) is (calibration != evaluation)


def test_constant_inputs_are_compared_without_dividing_by_zero():
    same = judged(PICTURES * 0 + 3, PICTURES * 0 + 3)
    assert (same.inputs[0].shift, same.inputs[0].ratio) == (0, 1)
    assert same.same_preprocessing
    assert judged(PICTURES * 0, PICTURES * 0 + 3).same_preprocessing is False
    assert judged(PICTURES * 0, PICTURES).same_preprocessing is False


# --- stability ----------------------------------------------------------------------------------


def test_few_samples_of_a_heavy_tailed_network_are_told_with_the_worst_tensor():
    gains = np.random.default_rng(3).lognormal(0, 1, (4, 1, 1, 1)).astype(np.float32)
    seen = judged(PICTURES[:4] * gains, PICTURES[4:])
    assert seen.is_stable is False
    (found,) = [f for f in seen.findings if "other samples would move" in f.what]
    assert found.where == seen.stability[0].tensor
    assert "more than 4 samples" in found.do
