"""The stage: what is refused before or while running, and what the report says of the data."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from onnxq.artifacts import FusionAudit
from onnxq.errors import DataError
from onnxq.qtypes import IntType
from onnxq.quantize.convert import convert, converted_record
from onnxq.recipe import Gate, VerifySection
from onnxq.samples import Samples
from onnxq.verify.levels import compare_levels
from onnxq.verify.stage import Evidence, verify
from onnxq.verify.tasks import Classification, Regression

from .files import HEAD, X86, float_model, quantized

CLASSIFIER = (
    HEAD
    + """g (float[1,3,8,8] x) => (float[1,5] y) {
    [conv_1] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    [gap_1] b = GlobalAveragePool(a)
    [flat_1] c = Flatten(b)
    [gemm_1] y = Gemm(c, w2)
}"""
)
BRANCHED = CLASSIFIER.replace(
    "[gap_1] b = GlobalAveragePool(a)",
    "[conv_2] e = Conv<pads=[1,1,1,1]>(a, w3)\n    [add_1] d = Add(e, a)\n"
    "    [gap_1] b = GlobalAveragePool(d)",
)
SCALAR = (
    HEAD
    + """g (float[1,8] x) => (float y) {
    [gemm_1] a = Gemm(x, w)
    [mean_1] y = ReduceMean<keepdims=0>(a)
}"""
)
RNG = np.random.default_rng(0)
PICTURES = RNG.standard_normal((40, 3, 8, 8)).astype(np.float32)
CLASSES = RNG.integers(0, 5, 40)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Evidence:
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 5)}
    model = float_model(CLASSIFIER, shapes)
    fp32, int8, record = quantized(tmp_path_factory.mktemp("net"), model)
    return Evidence("net", fp32, fp32, int8, X86, quantized=record)


def run(evidence, folder, labels, *, task=None, x=PICTURES, groups=None):
    task = task or Classification()
    section = VerifySection(gate=(Gate(metric=task.metrics[0].name, max_increase=1e-3),))
    return verify(evidence, task, Samples("d.npz", {"x": x}, labels, groups), section, folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("task", [Classification(), Regression()])
def test_a_label_that_is_not_finite_is_named_by_its_sample(classifier, tmp_path, value, task):
    labels = CLASSES.astype(np.float32)
    labels[[7, 9]] = value
    with pytest.raises(DataError, match=rf"d.npz, sample 7: the label is {value} \(2 of 40"):
        run(classifier, tmp_path, labels, task=task)


@pytest.mark.parametrize(("task", "do"), [(Classification(), "number of"), (Regression(), "value")])
def test_labels_in_words_are_refused_in_words(classifier, tmp_path, task, do):
    labels = np.array(["cat", "dog"] * 20)
    with pytest.raises(DataError, match="no numbers; the first is cat") as raised:
        run(classifier, tmp_path, labels, task=task)
    assert do in raised.value.do


def test_an_output_without_a_batch_axis_is_refused_in_words(tmp_path):
    fp32, int8, record = quantized(tmp_path, float_model(SCALAR, {"w": (8, 5)}))
    evidence = Evidence("net", fp32, fp32, int8, X86, quantized=record)
    x = RNG.standard_normal((6, 8)).astype(np.float32)
    with pytest.raises(DataError, match=r"output `y`: is a single number .* no batch axis"):
        run(evidence, tmp_path / "out", np.arange(6.0), task=Regression(), x=x)


def test_an_output_with_another_first_axis_is_refused_in_words(tmp_path):
    text = (
        HEAD
        + """g (float[1,8] x) => (float[5] y) {
        [gemm_1] a = Gemm(x, w)
        [flat_1] y = Reshape(a, five)
    }"""
    )
    model = float_model(text, {"w": (8, 5)})
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([5]), "five"))
    fp32, int8, record = quantized(tmp_path, model)
    evidence = Evidence("net", fp32, fp32, int8, X86, quantized=record)
    x = RNG.standard_normal((6, 8)).astype(np.float32)
    with pytest.raises(DataError, match=r"has shape \[5\] for one sample"):
        run(evidence, tmp_path / "out", np.arange(6.0), task=Regression(), x=x)


@pytest.mark.parametrize("groups", [None, np.repeat(["a", "b"], 20)])
def test_the_report_says_if_no_groups_are_known(classifier, tmp_path, groups):
    report = run(classifier, tmp_path, CLASSES, groups=groups)
    said = [finding for finding in report.findings if "no groups are known" in finding.what]
    assert len(said) == (groups is None)
    told = "every sample counts as independent" in (tmp_path / "report.md").read_text("utf-8")
    assert told == (groups is None)


def test_the_operators_that_run_are_looked_up_under_the_targets_options(
    classifier, tmp_path, monkeypatch
):
    seen = []

    def spy(path, config):
        seen.append(config)
        return FusionAudit(nodes=())

    monkeypatch.setattr("onnxq.verify.stage.audit_fusion", spy)
    options = {"session.x64quantprecision": "1"}
    target = X86.model_copy(update={"session_options": options})
    run(replace(classifier, target=target), tmp_path, CLASSES)
    assert seen == [options]


@pytest.mark.parametrize("judged_as", ["runtime", "graph"])
def test_the_report_holds_the_distance_between_fused_and_unfused(classifier, tmp_path, judged_as):
    target = X86.model_copy(update={"judged_as": judged_as})
    report = run(replace(classifier, target=target), tmp_path, CLASSES)
    rows = [{"x": x[None]} for x in PICTURES]
    assert report.fused_against_unfused == compare_levels(classifier.int8, rows, {})
    told = (tmp_path / "report.md").read_text("utf-8")
    assert "INT8 as executed here against INT8 as the graph says, 40 samples: SQNR" in told


def test_the_report_says_why_a_node_is_executed_in_float_and_what_to_change(tmp_path):
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w3": (8, 8, 3, 3), "w2": (8, 5)}
    fp32, int8, record = quantized(tmp_path, float_model(BRANCHED, shapes))
    samples = Samples("d.npz", {"x": PICTURES})
    made = convert(int8, IntType.INT8, samples, tmp_path / "s8.onnx")
    signed = converted_record(record, made, "ort-x86")
    found = {}
    for name, path, about in (("u8", int8, record), ("s8", tmp_path / "s8.onnx", signed)):
        evidence = Evidence(name, fp32, fp32, path, X86, quantized=about)
        (tmp_path / name).mkdir()
        report = run(evidence, tmp_path / name, CLASSES)
        found[name] = {node.node: node.cause for node in report.executions if node.runs == "float"}
        told = (tmp_path / name / "report.md").read_text("utf-8")
        assert ("onnxq convert --target ort-x86" in told) == (name == "s8")
    signed_cause = "int8 activations on x86"
    assert found["u8"] == {}
    assert found["s8"] == dict.fromkeys(("conv_1", "conv_2", "add_1"), signed_cause)
