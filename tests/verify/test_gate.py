"""What passes, what fails, and when nothing can be said."""

import numpy as np
import pytest

from onnxq.artifacts import Interval
from onnxq.errors import DataError, RecipeError
from onnxq.recipe import Gate, VerifySection
from onnxq.samples import Samples
from onnxq.target import load_target
from onnxq.verify.comparison import compare_models
from onnxq.verify.gate import AT_CHANCE, judge, judge_all, overall
from onnxq.verify.tasks import Classification, Regression

RNG = np.random.default_rng(0)
GROUPS = np.repeat([f"s{number}" for number in range(8)], 25)
TRUTH = RNG.normal(80, 15, 200)
FP32 = TRUTH + RNG.normal(0, 3, 200)
SAMPLES = Samples("windows", {"x": np.zeros((200, 1))}, TRUTH, GROUPS)


def variants(int8, fp32=FP32):
    return {"fp32": fp32, "rewritten": fp32, "int8": int8, "int8_other": int8}


def around(low, high):
    return Interval(low=low, high=high, method="t", units="groups", count=8)


def verdict(gate, point, interval):
    return judge(gate, "increase of mae (BPM)", point, interval).verdict


def test_the_bound_decides_where_the_bound_is_judged():
    gate = Gate(metric="mae", max_increase=2)
    assert verdict(gate, 1.0, around(0.5, 1.5)) == "passed"
    assert verdict(gate, 1.5, around(1.0, 2.0)) == "passed"
    assert verdict(gate, 3.0, around(2.1, 3.9)) == "failed"
    assert verdict(gate, 1.0, around(-1.0, 3.0)) == "inconclusive"
    assert verdict(gate, 2.5, around(1.5, 3.5)) == "inconclusive"


def test_the_point_decides_where_the_point_is_judged():
    gate = Gate(metric="mae", max_increase=2, judge="point")
    assert verdict(gate, 1.9, around(-9, 9)) == "passed"
    assert verdict(gate, 2.1, None) == "failed"


@pytest.mark.parametrize("point", [float("nan"), float("inf")])
@pytest.mark.parametrize("judged", ["point", "bound"])
def test_a_figure_that_is_not_finite_fails(point, judged):
    assert verdict(Gate(metric="mae", max_increase=2, judge=judged), point, None) == "failed"


def test_an_open_gate_says_how_much_data_would_settle_it():
    result = judge(Gate(metric="mae", max_increase=2), "", 1.0, around(-1.0, 3.0))
    assert result.needs == "about 17 more groups would settle it"  # t(24) / √25 ≤ t(7) / √8 / 2
    assert judge(Gate(metric="mae", max_increase=2), "", 1.0, None).needs


def gated(int8, *gates, task=None, fp32=FP32, samples=SAMPLES):
    section = VerifySection(gate=gates)
    return judge_all(section, task or Regression("BPM"), variants(int8, fp32), samples)


def test_a_worse_model_fails_and_an_equal_one_passes():
    gate = Gate(metric="mae", max_increase=2)
    assert gated(FP32 + 0.1, gate)[0].verdict == "passed"
    assert gated(FP32 + 20, gate)[0].verdict == "failed"


def test_a_distance_to_fp32_does_not_look_at_labels():
    mirrored = 2 * TRUTH - FP32  # as far from the truth as FP32, on the other side
    increase, distance = gated(
        mirrored, Gate(metric="mae", max_increase=2), Gate(metric="mae_to_fp32", max=2)
    )
    assert (increase.verdict, distance.verdict) == ("passed", "failed")
    assert increase.point == pytest.approx(0)
    assert distance.point == pytest.approx(np.abs(mirrored - FP32).mean())


def test_the_distance_of_a_classifier_is_its_rate_of_disagreement():
    labels = RNG.integers(0, 4, 200)
    fp32 = np.eye(4)[labels] + RNG.normal(0, 0.1, (200, 4))
    int8 = fp32.copy()
    int8[:30] = np.roll(int8[:30], 1, axis=1)
    (result,) = gated(
        int8,
        Gate(metric="top1_to_fp32", max=0.05),
        task=Classification(),
        fp32=fp32,
        samples=Samples("pictures", {"x": np.zeros((200, 1))}, labels),
    )
    assert result.point == pytest.approx(30 / 200)
    assert result.verdict == "failed"


def test_one_subject_settles_nothing():
    samples = Samples("windows", {"x": np.zeros((200, 1))}, TRUTH, np.full(200, "s0"))
    (result,) = gated(FP32, Gate(metric="mae", max_increase=2), samples=samples)
    assert result.verdict == "inconclusive"


def test_nan_predictions_fail_without_a_warning():
    int8 = FP32.copy()
    int8[3] = np.nan
    (result,) = gated(int8, Gate(metric="mae", max_increase=2))
    assert result.verdict == "failed"


def test_the_reason_spells_a_figure_that_is_no_number():
    int8 = FP32.copy()
    int8[3] = np.nan
    verdict, (reason,) = judged(int8)
    assert verdict == "failed"
    assert "is not a number, allowed 2" in reason
    assert "nan" not in reason


def test_metrics_that_cannot_be_gated_are_refused():
    with pytest.raises(RecipeError, match="no mean over samples"):
        gated(FP32, Gate(metric="rmse", max_increase=2))
    with pytest.raises(RecipeError, match="did you mean `mae`"):
        gated(FP32, Gate(metric="maee", max_increase=2))
    with pytest.raises(DataError, match="no labels"):
        gated(FP32, Gate(metric="mae", max_increase=2), samples=Samples("x", {"x": FP32}))


def test_a_share_with_a_limit_in_percent_is_refused():
    labels = RNG.integers(0, 4, 200)
    samples = Samples("pictures", {"x": np.zeros((200, 1))}, labels)
    scores = np.eye(4)[labels]
    with pytest.raises(RecipeError, match=r"write 0\.01"):
        gated(
            scores,
            Gate(metric="top1", max_increase=1),
            task=Classification(),
            fp32=scores,
            samples=samples,
        )


def judged(int8, fp32=FP32, limit=2.0, **options):
    comparison = compare_models(
        Regression("BPM"), variants(int8, fp32), SAMPLES, load_target("ort-x86")
    )
    results = gated(int8, Gate(metric="mae", max_increase=limit), fp32=fp32)
    return overall(results, comparison, **{"made_up": False, **options})


def test_the_file_is_judged_by_its_worst_gate():
    assert judged(FP32 + 0.1)[0] == "passed"
    failed, reasons = judged(FP32 + 20)
    assert failed == "failed"
    assert "allowed 2" in reasons[0]


def test_made_up_calibration_data_leave_a_file_unverified():
    assert judged(FP32, made_up=True)[0] == "unverified"


def test_an_fp32_model_at_chance_is_not_judged_unless_waived():
    shuffled = RNG.permutation(TRUTH)
    verdict, reasons = judged(shuffled, shuffled)
    assert verdict == "inconclusive"
    assert AT_CHANCE in reasons[0]
    assert judged(shuffled, shuffled, waived=[AT_CHANCE])[0] == "passed"
