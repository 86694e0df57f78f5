"""The search for a cheaper precision: verdicts against plain onnxruntime, the front, resumption."""

from itertools import product

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from quantize.nets import calibrated, weights

from onnxq.artifacts import Budgets, PlanTrial
from onnxq.errors import DataError
from onnxq.quantize.stage import quantize
from onnxq.recipe import QuantizeSection
from onnxq.samples import Samples
from onnxq.target import load_target
from onnxq.tuning.bench import PlanBench, Request
from onnxq.tuning.judging import Judge
from onnxq.tuning.plans import MixedPlan, recipe_lines, refused_bits
from onnxq.tuning.subject import Subject
from onnxq.tuning.tune import front, tune
from onnxq.tuning.tune_page import tuning_page
from onnxq.verify.report.page import page_html, page_markdown
from onnxq.verify.tasks import Classification

NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,4,6,6] x) => (float[1,5] y) {
    [conv_1] a = Conv(x, w1, b1)
    [relu_1] b = Relu(a)
    [conv_2] c = Conv(b, w2, b2)
    [gap_1] d = GlobalAveragePool(c)
    [flat_1] e = Flatten(d)
    [gemm_1] y = Gemm(e, w3)
}"""
X86 = load_target("ort-x86")
NO_BUDGET = Budgets()


def wanted(limit: float, budgets: Budgets = NO_BUDGET) -> Request:
    return Request("top1", "share", limit, "bound", budgets, trial_samples=4)


def scores(path, samples: Samples, level) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(None, row)[0] for row in samples.rows()])


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A network and samples that its FP32 form gets right."""
    constants = {
        "w1": weights(16, 4, 3, 3), "b1": weights(16, seed=5), "w2": weights(24, 16, 3, 3, seed=2),
        "b2": weights(24, seed=6), "w3": weights(24, 5, seed=3),
    }  # fmt: skip
    net = calibrated(tmp_path_factory.mktemp("net"), NET, **constants)
    x = np.random.default_rng(11).standard_normal((240, 4, 6, 6)).astype(np.float32)
    bare = Samples("held back", {"x": x})
    exact = scores(net.path, bare, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    held = Samples("held back", {"x": x}, labels=exact.argmax(1))
    subject = Subject("net", net.path, net.ranges, X86, QuantizeSection(), net.samples, held)
    return subject, Judge(net.path, held, Classification(), "top1")


def int8(subject, folder, section=None) -> "tuple":
    path = folder / "int8.onnx"
    section = section or QuantizeSection()
    samples = subject.samples if section.steps else None
    record = quantize(subject.model, subject.calibration, X86, section, path, samples=samples)
    return path, record


def test_the_increase_is_that_of_plain_onnxruntime(case, tmp_path):
    subject, judge = case
    path, _ = int8(subject, tmp_path, QuantizeSection(weights="int4"))
    found = judge.judge(path, X86, limit=0.0)
    got = scores(path, judge.samples, ort.GraphOptimizationLevel.ORT_ENABLE_ALL).argmax(1)
    wrong = (got != judge.samples.labels)[: found.samples]
    assert found.increase == pytest.approx(wrong.mean())
    assert found.interval.low <= found.increase <= found.interval.high
    assert judge.truth == "labels"


def test_what_is_settled_early_is_run_on_fewer_samples(case, tmp_path):
    subject, judge = case
    path, _ = int8(subject, tmp_path)
    generous = judge.judge(path, X86, limit=0.9)
    assert (generous.verdict, generous.samples) == ("passed", 30)
    everything = judge.judge(path, X86, limit=1e-9)
    assert everything.samples == 240
    assert everything.verdict in {"not settled", "failed"}
    by_point = judge.judge(path, X86, limit=0.9, by="point")
    assert by_point.verdict == "passed"


def test_without_labels_fp32_is_the_truth(case, tmp_path):
    subject, judge = case
    bare = Samples("bare", judge.samples.inputs)
    other = Judge(subject.model, bare, Classification(), "top1")
    assert other.truth == "FP32"
    path, _ = int8(subject, tmp_path)
    both = [each.judge(path, X86, limit=1e-9).increase for each in (judge, other)]
    assert both[0] == pytest.approx(both[1])
    with pytest.raises(DataError, match="fewer than two"):
        Judge(subject.model, bare.take(np.arange(1)), Classification(), "top1")


def test_with_room_enough_everything_takes_4_bits_and_the_lines_make_that_very_file(case, tmp_path):
    subject, judge = case
    found = tune(subject, judge, wanted(0.9), tmp_path / "out")
    assert found.chosen == "4 bits in 3 of 3"
    trial = next(trial for trial in found.trials if trial.name == found.chosen)
    assert trial.nodes == dict.fromkeys(["conv_1", "conv_2", "gemm_1"], "int4")
    section = QuantizeSection.model_validate(yaml.safe_load(found.lines)["quantize"])
    path, _ = int8(subject, tmp_path, section)
    assert path.stat().st_size == trial.size_bytes
    assert trial.size_bytes == min(t.size_bytes for t in found.trials)
    markup, text = page_html(tuning_page(found)), page_markdown(tuning_page(found))
    assert found.advice in text
    assert f"```\n{found.lines.rstrip()}\n```" in text
    assert "<script" not in markup
    assert "https://" not in markup


def test_a_narrow_limit_keeps_8_bits_where_they_are_needed(case, tmp_path):
    subject, judge = case
    limit = 0.12
    found = tune(subject, judge, wanted(limit), tmp_path / "out")
    passed = [trial for trial in found.trials if trial.verdict == "passed"]
    failed = [trial for trial in found.trials if trial.verdict != "passed"]
    assert passed
    assert failed
    assert all(trial.interval.high <= limit for trial in passed if trial.samples == 240)
    chosen = next(trial for trial in found.trials if trial.name == found.chosen)
    assert chosen.size_bytes == min(trial.size_bytes for trial in passed)


def test_an_interrupted_search_goes_on_where_it_was(case, tmp_path, monkeypatch):
    subject, judge = case
    calls = []
    measured = PlanBench._measured

    def stopping(bench, plan, key, work):
        calls.append(plan.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measured(bench, plan, key, work)

    monkeypatch.setattr(PlanBench, "_measured", stopping)
    with pytest.raises(KeyboardInterrupt):
        tune(subject, judge, wanted(0.12), tmp_path / "out")
    kept = sorted((tmp_path / "out/plans").iterdir())
    assert len(kept) == 2
    assert all([file.name for file in folder.iterdir()] == ["trial.json"] for folder in kept)
    resumed = tune(subject, judge, wanted(0.12), tmp_path / "out")
    assert len(calls) == 1 + len({trial.key for trial in resumed.trials})
    monkeypatch.setattr(PlanBench, "_measured", None)
    assert tune(subject, judge, wanted(0.12), tmp_path / "out").trials == resumed.trials


def test_a_budget_that_no_plan_keeps_is_named(case, tmp_path):
    subject, judge = case
    found = tune(subject, judge, wanted(0.9, Budgets(max_bytes=10)), tmp_path / "out")
    assert found.chosen is None
    assert found.lines == ""
    assert "--max-bytes" in found.advice
    every = tune(subject, judge, wanted(0.9, Budgets(min_hardware_macs=1.0)), tmp_path / "all")
    chosen = next(trial for trial in every.trials if trial.name == every.chosen)
    assert chosen.hardware_macs == 1.0


def test_a_limit_that_8_bits_miss_gives_the_costliest_layers_more_bits(case, tmp_path, monkeypatch):
    subject, judge = case
    asked = []

    def harsh(judge, file, target, limit, by="bound", progress=None):
        from onnxq.graph import load_model
        from onnxq.tuning.judging import Judged

        floats = sum(
            node.op_type in {"Conv", "Gemm"} and node.input[1] in {"w1", "w2", "w3"}
            for node in load_model(file).graph.node
        )
        asked.append(floats)
        return Judged("passed" if floats >= 2 else "failed", 0.1 - 0.01 * floats, None, 240)

    monkeypatch.setattr(Judge, "judge", harsh)
    found = tune(subject, judge, wanted(0.05), tmp_path / "out")
    chosen = next(trial for trial in found.trials if trial.name == found.chosen)
    assert sum(bits == "float" for bits in chosen.nodes.values()) == 2
    assert set(asked) >= {0, 1, 2}


def test_the_front_holds_what_nothing_beats():
    random = np.random.default_rng(0)
    trials = [
        PlanTrial(key=str(i), name=str(i), nodes={}, steps=(), verdict="passed",
                  size_bytes=int(size), increase=float(worse))
        for i, (size, worse) in enumerate(random.integers(0, 9, (40, 2)))
    ]  # fmt: skip
    beaten = {
        one.name
        for one, other in product(trials, trials)
        if other.size_bytes <= one.size_bytes
        and other.increase <= one.increase
        and (other.size_bytes, other.increase) != (one.size_bytes, one.increase)
    }
    assert set(front(trials)) == {trial.name for trial in trials} - beaten


def test_what_a_target_has_no_place_for_is_not_tried(case):
    refused = refused_bits(load_target("stm32n6@2.2"), QuantizeSection())
    assert set(refused) >= {"int16"}
    assert all(refused.values())
    assert not refused_bits(X86, QuantizeSection())


def test_a_plan_as_recipe_lines_is_the_plan_again():
    given = QuantizeSection(weights="int4", block=32, saturation="ignore")
    plan = MixedPlan("p", {"a": "int4", "b": "int16", "c": "float"}, ("bias",))
    section = plan.section(given)
    again = QuantizeSection.model_validate(yaml.safe_load(recipe_lines(section))["quantize"])
    assert again == section
    assert section.weights == "int8"
    assert section.saturation == "ignore"
    assert MixedPlan("q").section(given).block is None
