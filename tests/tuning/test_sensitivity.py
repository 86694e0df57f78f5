"""Sensitivities against errors that numpy computes, a budget that adds up, and resumed runs."""

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from quantize.nets import calibrated, residual, weights

from onnxq.artifacts import decibels
from onnxq.errors import DataError
from onnxq.qtypes import IntType
from onnxq.recipe import QuantizeSection
from onnxq.samples import Samples
from onnxq.store import load_record
from onnxq.target import load_target
from onnxq.tuning.sensitivity import RECORD, TRIALS, Sensitivity, sensitivity
from onnxq.tuning.sensitivity_page import budget_parts, budget_table, ranked, sensitivity_page
from onnxq.tuning.subject import Subject
from onnxq.tuning.trials import Meter
from onnxq.verify.report.page import page_html, page_markdown

NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,4,6,6] x) => (float[1,5] y) {
    [conv_1] a = Conv(x, w1, b1)
    [relu_1] b = Relu(a)
    [conv_2] c = Conv(b, w2, b2)
    [gap_1] d = GlobalAveragePool(c)
    [flat_1] e = Flatten(d)
    [gemm_1] y = Gemm(e, w3)
}"""


def subject_of(net, labels=None) -> Subject:
    samples = Samples("given", net.samples.inputs, labels=labels)
    section = QuantizeSection()
    return Subject("net", net.path, net.ranges, load_target("ort-x86"), section, samples)


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    constants = {
        "w1": weights(8, 4, 3, 3), "b1": weights(8, seed=5), "w2": weights(6, 8, 3, 3, seed=2),
        "b2": weights(6, seed=6), "w3": weights(6, 5, seed=3),
    }  # fmt: skip
    net = calibrated(tmp_path_factory.mktemp("net"), NET, **constants)
    return subject_of(net, np.arange(len(net.samples)) % 5)


@pytest.fixture(scope="module")
def found(subject, tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    return folder, sensitivity(subject, folder, samples=6)


def outputs(model: onnx.ModelProto, samples: Samples) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return np.concatenate([session.run(None, row)[0] for row in samples.rows()]).astype(float)


def test_the_whole_error_is_that_of_the_file_that_would_ship(subject, found):
    samples = subject.samples.thinned(6)
    exact = outputs(subject.original, samples)
    got = outputs(subject.planned.draft.quantized(), samples)
    error = ((exact - got) ** 2).sum() / (exact**2).sum()
    assert found[1].error == pytest.approx(error, rel=1e-9, abs=2**-45)
    assert decibels(found[1].error) == pytest.approx(-10 * math.log10(error))


def test_only_the_weights_of_a_layer_are_those_that_numpy_rounds(subject, found):
    samples = subject.samples.thinned(6)
    planned = subject.planned.draft.plan.weights["w3"]
    assert planned.type is IntType.INT8
    model = onnx.ModelProto()
    model.CopyFrom(subject.original)
    for tensor in model.graph.initializer:
        if tensor.name == "w3":
            scales, values = planned.spread(2), onnx.numpy_helper.to_array(tensor)
            rounded = (np.clip(np.rint(values / scales), -127, 127) * scales).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded, "w3"))
    exact, got = outputs(subject.original, samples), outputs(model, samples)
    row = next(row for row in found[1].layers if row.layer == "gemm_1")
    error = ((exact - got) ** 2).sum() / (exact**2).sum()
    assert row.only_weights == pytest.approx(error, rel=1e-4)


def test_the_parts_of_the_budget_add_up_to_the_whole_error_to_the_last_bit(found):
    _, record = found
    assert sum(budget_parts(record)) == record.error
    for order in (record.layers, record.layers[::-1]):
        total = 0.0
        for row in order:
            total += (row.budget_weights or 0.0) + (row.budget_activations or 0.0)
        assert total == record.error
    assert record.error > 0
    together = budget_table(record).rows[-1]
    assert together.cells[-1] == "100"


def test_every_layer_has_its_parts_and_those_alone(found):
    _, record = found
    rows = {row.layer: row for row in record.layers}
    assert list(rows) == ["input `x`", "conv_1", "conv_2", "gap_1", "gemm_1"]
    assert rows["input `x`"].only_weights is None
    assert rows["gap_1"].budget_weights is None
    assert all(row.without is not None for row in rows.values())
    for row in rows.values():
        only_parts = [p for p in (row.only_weights, row.only_activations) if p is not None]
        if len(only_parts) == 1:
            assert row.only == only_parts[0]


def test_fisher_is_the_rise_of_the_loss_that_finite_differences_see(subject, found):
    _, record = found
    assert record.loss == "cross entropy of scores"
    samples, planned = subject.samples.thinned(6), subject.planned.draft.plan.weights["w3"]
    values = next(
        onnx.numpy_helper.to_array(t) for t in subject.original.graph.initializer if t.name == "w3"
    )
    scales = planned.spread(2)
    moved = np.clip(np.rint(values / scales), -127, 127) * scales - values
    features = onnx.ModelProto()
    features.CopyFrom(subject.original)
    del features.graph.output[:]
    features.graph.output.append(onnx.helper.make_tensor_value_info("e", 1, None))
    inner, scores = outputs(features, samples), outputs(subject.original, samples)
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    chances[np.arange(6), samples.labels] -= 1
    squares = np.mean([np.outer(f, p) ** 2 for f, p in zip(inner, chances, strict=True)], axis=0)
    row = next(row for row in record.layers if row.layer == "gemm_1")
    assert row.fisher == pytest.approx(0.5 * (squares * moved**2).sum(), rel=1e-3)


def test_a_second_run_measures_nothing_again_and_a_lost_trial_alone_anew(
    subject, found, monkeypatch
):
    folder, record = found
    counted = []
    measure = Meter.error

    def counting(meter, model):
        counted.append(1)
        return measure(meter, model)

    monkeypatch.setattr(Meter, "error", counting)
    assert sensitivity(subject, folder, samples=6).layers == record.layers
    assert not counted
    next((folder / TRIALS).glob("*.json")).unlink()
    assert sensitivity(subject, folder, samples=6).layers == record.layers
    assert len(counted) == 1
    assert load_record(Sensitivity, folder / RECORD).layers == record.layers


def test_other_samples_are_other_trials(subject, found, tmp_path):
    folder, record = found
    before = set((folder / TRIALS).iterdir())
    other = sensitivity(subject, folder, samples=4, modes=["only"])
    assert other.data_sha256 != record.data_sha256
    assert len(set((folder / TRIALS).iterdir()) - before) == 3 + len(record.layers)
    assert budget_parts(other) is None


def test_without_labels_there_is_no_fisher_and_the_record_says_why(tmp_path):
    record = sensitivity(subject_of(residual(tmp_path)), tmp_path / "out", samples=2)
    assert record.loss == "no loss: the samples have no labels"
    assert all(row.fisher is None for row in record.layers)
    assert sum(budget_parts(record)) == record.error


def test_no_sample_is_an_error(subject):
    with pytest.raises(DataError, match="no run"):
        Meter(subject.original, subject.samples.take(np.arange(0)), 1, 4)


def test_the_page_says_how_the_error_was_divided_and_needs_nothing_from_outside(found):
    _, record = found
    page = sensitivity_page(record)
    markup, text = page_html(page), page_markdown(page)
    assert "along the graph, and in each layer its weights before its activations" in text
    assert "without optimization" in text
    assert markup.count("<svg") == 3
    for outside in ("http://", "https://", "<script", "src="):
        assert outside not in markup
    assert all(f"<code>{row.layer}</code>" in markup for row in ranked(record))
