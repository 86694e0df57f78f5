import logging
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from onnxq.errors import ExportError, PluginError
from onnxq.export.clean import clean
from onnxq.export.from_torch import (
    build_network,
    export_network,
    run_network,
    unused_parameters,
)
from onnxq.export.opset import opset_of
from onnxq.runtime import Session

from .networks import DeadTime, FixedBatch, Mixed, SmallPulse, operators, random, randomized

HERE = "export.networks"
PATCHES = {"input": random(1, 4, 2, 8, 8, 3)}
FEATURES = {"x": random(1, 4, 5, 5)}


def test_a_network_is_built_in_evaluation_mode():
    network = build_network(f"{HERE}:small_pulse", {}, None)
    assert not network.training


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("not_a_network", "returned a str"),
        ("failing", "RuntimeError: no such variant"),
        ("smal_pulse", "did you mean `small_pulse`"),
    ],
)
def test_what_makes_no_network_is_a_plugin_error(reference, said):
    with pytest.raises(PluginError, match=said):
        build_network(f"{HERE}:{reference}", {}, None)


@pytest.mark.parametrize(
    ("network", "batch"), [(SmallPulse, "one"), (SmallPulse, "free"), (Mixed, "free")]
)
def test_the_graph_computes_what_torch_computes_at_every_opset(network, batch):
    row = PATCHES if network is SmallPulse else FEATURES
    module = randomized(network())
    model = export_network(module, row, ["out"], opset=17, batch=batch)
    assert opset_of(model) == 18
    for opset in (13, 17, 18):
        cleaned, _ = clean(model, opset)
        assert opset_of(cleaned) == opset
        assert [value.name for value in cleaned.graph.input] == list(row)
        assert [value.name for value in cleaned.graph.output] == ["out"]
        session = Session(cleaned.SerializeToString(), optimization="none")
        for count in (1,) if batch == "one" else (1, 5):
            feeds = {name: random(count, *array.shape[1:], seed=3) for name, array in row.items()}
            expected = run_network(module, feeds, ["out"])["out"]
            np.testing.assert_allclose(session.run(feeds)["out"], expected, rtol=1e-5, atol=1e-5)


def test_a_newer_opset_comes_from_the_exporter_itself():
    model = export_network(randomized(Mixed()), FEATURES, ["out"], opset=20, batch="one")
    assert opset_of(model) == 20


def test_channels_last_pooling_leaves_neither_mean_nor_gather():
    model = export_network(randomized(SmallPulse()), PATCHES, ["out"], opset=17, batch="free")
    cleaned, _ = clean(model, 17)
    assert operators(cleaned) == [
        *("Transpose", "Reshape", "Conv", "Relu", "MaxPool", "GlobalAveragePool"),
        *("Reshape", "Transpose", "Conv", "Relu", "Reshape", "Gemm", "Sigmoid", "Mul", "Add"),
    ]


def test_layers_take_their_norms_in():
    model = export_network(randomized(Mixed()), FEATURES, ["out"], opset=17, batch="one")
    cleaned, steps = clean(model, 17)
    assert operators(cleaned) == ["ConvTranspose", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert any("2 BatchNormalization" in step for step in steps)


def test_the_exporter_says_nothing_and_leaves_logging_as_it_was(capfd):
    logger = logging.getLogger("torch.onnx")
    before = (logger.handlers, logger.propagate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_network(randomized(Mixed()), FEATURES, ["out"], opset=13, batch="one")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert (logger.handlers, logger.propagate) == before


def test_a_network_of_one_batch_size_cannot_be_exported_free():
    with pytest.raises(ExportError, match="batch"):
        export_network(FixedBatch(), {"x": random(1, 4)}, ["y"], opset=17, batch="free")
    export_network(FixedBatch(), {"x": random(1, 4)}, ["y"], opset=17, batch="one")


def test_a_network_that_fails_on_its_declared_inputs_is_named_with_their_shapes():
    with pytest.raises(ExportError, match=r"x \[1, 3, 5, 5\]"):
        run_network(Mixed().eval(), {"x": random(1, 3, 5, 5)}, ["y"])


def test_every_output_must_be_named():
    with pytest.raises(ExportError, match="has 1 outputs; the recipe names 2"):
        run_network(Mixed().eval(), FEATURES, ["y", "z"])


class Several(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": x.sum(1), "double": x * 2}


def test_the_outputs_of_a_dict_come_in_its_order():
    found = run_network(Several(), {"x": random(2, 3)}, ["a", "b"])
    assert [array.shape for array in found.values()] == [(2,), (2, 3)]


def test_parameters_of_a_dead_branch_are_found_even_if_frozen():
    network = DeadTime()
    network.time.bias.requires_grad_(False)
    row = {"x": random(1, 4), "time": random(1, 1)}
    assert unused_parameters(network, row) == ("time.weight", "time.bias")
    assert not network.time.bias.requires_grad
    assert unused_parameters(randomized(SmallPulse()), PATCHES) == ()
