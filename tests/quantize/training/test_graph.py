"""The draft in torch, judged by ONNX Runtime without optimization and by plain arithmetic."""

import numpy as np
import pytest
import torch

from onnxq.quantize.round_trip import prove_round_trip
from onnxq.quantize.training.blocks import blocks_of
from onnxq.quantize.training.graph import TrainingGraph, round_through
from onnxq.runtime import Session
from tests.quantize.nets import TARGETS, Net, residual, weights
from tests.quantize.test_steps import draft_of


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return residual(tmp_path_factory.mktemp("residual"), inputs={"x": weights(32, 3, 8, 8, size=1)})


def batch(net: Net, count: int = 8) -> dict[str, torch.Tensor]:
    return {
        "x": torch.from_numpy(
            np.concatenate([row["x"] for row in list(net.samples.rows())[:count]])
        )
    }


@pytest.mark.parametrize("target", TARGETS)
def test_it_computes_what_the_file_computes(net, target):
    draft = draft_of(net, target)
    session = Session(draft.quantized().SerializeToString(), optimization="none")
    wanted = np.concatenate([session.run(row)["y"] for row in list(net.samples.rows())[:8]])
    with torch.no_grad():
        found = TrainingGraph(draft)(batch(net))["y"].numpy()
    step = draft.plan.activations["y"].scale
    assert (np.abs(found - wanted) < 0.5 * step).mean() > 0.99
    assert np.abs(found - wanted).max() < 1.5 * step


def test_every_weight_bias_and_scale_gets_a_gradient(net):
    graph = TrainingGraph(draft_of(net, "ort-x86"))
    graph(batch(net))["y"].square().mean().backward()
    for group in (graph.weights, graph.biases, graph.scales):
        assert group
        for name, parameter in group.items():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0, name


def test_an_untouched_graph_gives_the_same_integers_back(net):
    draft = draft_of(net, "ort-x86")
    one, two = (
        {t.name: t for t in d.quantized().graph.initializer}
        for d in (draft, TrainingGraph(draft).draft())
    )
    assert {name: t.raw_data for name, t in one.items()} == {
        name: t.raw_data for name, t in two.items()
    }


def test_what_was_learned_is_what_the_file_computes_code_for_code(net):
    graph = TrainingGraph(draft_of(net, "ort-x86"))
    optimizer = torch.optim.Adam(graph.parameters(), lr=1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        graph(batch(net))["y"].square().mean().backward()
        optimizer.step()
    model = graph.draft().quantized()
    rows = list(net.samples.rows())[:4]
    given = {name: tensor.detach().numpy() for name, tensor in graph.stand_ins().items()}
    proof = prove_round_trip(model, rows, graph.graph, given)
    assert proof.is_proven, proof


def test_scales_behind_operators_that_move_values_stay_one(net):
    graph = TrainingGraph(draft_of(net, "ort-x86"))
    with torch.no_grad():
        for scale in graph.scales.values():
            scale.mul_(1.25)
    plan = graph.draft().plan
    moved = {"e": "f", "g1": "h"}  # MaxPool, Flatten
    for before, after in moved.items():
        assert plan.activations[before].scale == plan.activations[after].scale
    assert plan.activations["e"].scale != plan.activations["b"].scale


def test_rounding_passes_gradients_straight_through():
    steps = torch.tensor([0.5, 1.5, -2.4], requires_grad=True)
    rounded = round_through(steps)
    assert rounded.tolist() == [0.0, 2.0, -2.0]
    (rounded * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert steps.grad is not None
    assert steps.grad.tolist() == [1.0, 2.0, 3.0]


def test_a_block_alone_computes_what_it_computes_in_the_graph(net):
    draft = draft_of(net, "ort-x86")
    graph = TrainingGraph(draft)
    (block,) = blocks_of(draft)
    with torch.no_grad():
        found = graph.block(block, batch(net), rounded=True)
        whole = graph(batch(net))
    assert torch.equal(found["y"], whole["y"])
