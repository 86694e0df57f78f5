"""Learned roundings and ranges, judged by the error of the file as onnxruntime executes it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from onnxq.errors import QuantizationError
from onnxq.graph import constant_of, load_model
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.training import ranges
from onnxq.quantize.training.adaround import learn_rounding, logits_of, soft_rounding
from onnxq.quantize.training.ranges import learn_ranges
from onnxq.recipe import AdaRoundSection, RangesSection
from onnxq.runtime import Session
from tests.quantize.nets import HEAD, Net, calibrated, weights
from tests.quantize.test_steps import draft_of, evidence_of


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    """One Gemm of 4 to 2 on correlated inputs: every rounding of its 8 weights can be tried."""
    text = HEAD + "g (float[1,4] x) => (float[1,2] y) { [gemm_1] y = Gemm<transB=1>(x, w, b) }"
    mixed = weights(64, 2, size=1.0) @ weights(2, 4, seed=3, size=1.0) + weights(64, 4, seed=4)
    weight = weights(2, 4, seed=1) * np.float32(0.02)
    weight[:, 0] = (1, -1)  # the largest weight makes the steps of the others coarse
    folder = tmp_path_factory.mktemp("gemm")
    return calibrated(folder, text, inputs={"x": mixed}, w=weight, b=weights(2, seed=2))


def error(draft: Draft, evidence: Evidence, net: Net) -> float:
    """Squared error of the file on the runs held back, as onnxruntime executes it."""
    sessions = [
        Session(load_model(net.path).SerializeToString(), optimization="none"),
        Session(draft.quantized().SerializeToString(), optimization="none"),
    ]
    rows = [evidence.run(run) for run in evidence.held_back()]
    exact, found = (np.concatenate([s.run(row)["y"] for row in rows]) for s in sessions)
    return float(np.square(exact - found).sum())


def test_what_is_learned_brings_the_file_nearer_to_fp32_than_plain_rounding(net):
    draft, evidence = draft_of(net, "ort-x86"), evidence_of(net)
    refined, line = learn_rounding(
        draft, evidence, AdaRoundSection(iterations=400, learning_rate=0.02)
    )
    assert error(refined, evidence, net) < 0.9 * error(draft, evidence, net)
    assert "by block: 1 of 1 blocks" in line


def test_learned_weights_lie_on_the_grid(net):
    draft = draft_of(net, "ort-x86")
    refined, _ = learn_rounding(draft, evidence_of(net), AdaRoundSection(iterations=60, by="layer"))
    steps = constant_of(refined.graph.graph.initializers["w"]) / draft.plan.weights["w"].spread(2)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


def test_the_rectified_sigmoid_reaches_both_ends_and_has_an_inverse():
    assert soft_rounding(torch.tensor([-10.0, 0.0, 10.0])).tolist() == [0.0, 0.5, 1.0]
    shares = torch.linspace(0, 1, 11)
    torch.testing.assert_close(soft_rounding(logits_of(shares)), shares)


def test_iterations_end_when_all_weights_are_decided(net):
    options = AdaRoundSection(iterations=600, learning_rate=0.3, warm_up=0.05)
    _, line = learn_rounding(draft_of(net, "ort-x86"), evidence_of(net), options)
    assert int(line.split(" iterations")[0].split()[-1]) < 600


def test_an_error_that_becomes_no_number_stops_and_names_the_block(net, monkeypatch):
    monkeypatch.setattr(ranges._Ranges, "penalty", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(QuantizationError, match=r"gemm_1.*iteration 0"):
        learn_ranges(draft_of(net, "ort-x86"), evidence_of(net), RangesSection())


def test_ranges_that_are_too_wide_shrink(net):
    draft = draft_of(net, "ort-x86")
    wide = dict(draft.plan.activations)
    wide["y"] = replace(wide["y"], scale=4 * wide["y"].scale)
    draft = replace(draft, plan=replace(draft.plan, activations=wide))
    options = RangesSection(iterations=400, learning_rate=0.01)
    refined, _ = learn_ranges(draft, evidence_of(net), options)
    assert refined.plan.activations["y"].scale < 0.7 * wide["y"].scale
    assert refined.plan.activations["y"].zero_point == wide["y"].zero_point


def test_a_graph_whose_output_stays_float_is_learned_too(tmp_path):
    text = (
        HEAD
        + """g (float[1,4] x) => (float[1,2] y) {
        [gemm_1] a = Gemm<transB=1>(x, w, b)
        [erf_1] y = Erf(a)
    }"""
    )
    net = calibrated(tmp_path, text, w=weights(2, 4), b=weights(2, seed=2))
    _, line = learn_ranges(draft_of(net, "ort-x86"), evidence_of(net), RangesSection(iterations=20))
    assert "of 1 blocks" in line
