"""The contract of the whole table: what every float step must hold, on networks of all kinds."""

from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from onnxq.errors import QuantizationError
from onnxq.graph import load_model
from onnxq.quantize.float_steps.observe import SampleExtremes
from onnxq.quantize.float_steps.table import FLOAT_STEPS, ON_SAMPLES
from onnxq.quantize.float_steps.types import Given
from onnxq.recipe import FloatStepName, QuantizeSection
from onnxq.samples import Samples

from . import float_nets
from .nets import outputs

NETS = [*float_nets.NAMED, *(f"random-{seed}" for seed in range(6))]


@pytest.fixture(scope="module", params=NETS)
def case(request, tmp_path_factory) -> float_nets.FloatNet:
    return float_nets.make(request.param, tmp_path_factory.mktemp(request.param))


def given(case: float_nets.FloatNet) -> Given:
    return Given(SampleExtremes(case.samples))


def after(name: str, case: float_nets.FloatNet, graph: ir.Model | None = None):
    return FLOAT_STEPS[name](graph or ir.from_proto(load_model(case.path)), given(case))


def text(graph: ir.Model) -> bytes:
    return ir.to_proto(graph).SerializeToString(deterministic=True)


def test_the_table_holds_the_steps_that_a_recipe_may_name():
    assert set(FLOAT_STEPS) == set(get_args(FloatStepName))
    with pytest.raises(ValidationError):
        QuantizeSection(float_steps=("equalise",))


@pytest.mark.parametrize("name", FLOAT_STEPS)
def test_a_step_leaves_the_graph_alone_that_it_is_given(case, name):
    graph = ir.from_proto(load_model(case.path))
    before = text(graph)
    after(name, case, graph)
    assert text(graph) == before


@pytest.mark.parametrize("name", FLOAT_STEPS)
def test_a_step_keeps_the_function_on_samples(case, name, tmp_path):
    ir.save(after(name, case).graph, tmp_path / "after.onnx")
    exact, got = (outputs(path, case.samples) for path in (case.path, tmp_path / "after.onnx"))
    for output, wanted in exact.items():
        np.testing.assert_allclose(got[output], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", sorted(set(FLOAT_STEPS) - {"absorb"}))
def test_a_step_that_only_scales_keeps_the_function_far_from_the_samples_too(case, name, tmp_path):
    ir.save(after(name, case).graph, tmp_path / "after.onnx")
    far = Samples("far", {k: v * np.float32(-7) for k, v in case.samples.inputs.items()})
    exact, got = (outputs(path, far) for path in (case.path, tmp_path / "after.onnx"))
    for output, wanted in exact.items():
        np.testing.assert_allclose(got[output], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", FLOAT_STEPS)
def test_a_second_time_a_step_finds_next_to_nothing_to_do(case, name):
    once = after(name, case).graph
    twice = after(name, case, once).graph
    first, second = (
        {n: v.const_value.numpy() for n, v in graph.graph.initializers.items()}
        for graph in (once, twice)
    )
    for constant, array in second.items():
        if array.dtype == np.float32:
            np.testing.assert_allclose(array, first[constant], rtol=0.02, atol=1e-5)


@pytest.mark.parametrize("name", FLOAT_STEPS)
def test_a_step_gives_the_same_bits_every_time(case, name):
    assert text(after(name, case).graph) == text(after(name, case).graph)


@pytest.mark.parametrize("name", FLOAT_STEPS)
def test_every_layer_that_could_be_a_source_is_on_record_once(case, name):
    stepped = after(name, case)
    named = [*(row.source for row in stepped.links), *(row.node for row in stepped.skipped)]
    assert len(named) == len(set(named))
    assert all(row.reason for row in stepped.skipped)
    nodes = {str(node.name) for node in stepped.graph.graph}
    assert nodes >= set(named)


@pytest.mark.parametrize("name", sorted(FLOAT_STEPS))
def test_only_steps_on_samples_ask_for_samples(case, name):
    graph = ir.from_proto(load_model(case.path))
    if name in ON_SAMPLES:
        with pytest.raises(QuantizationError, match=f"`{name}`.*samples"):
            FLOAT_STEPS[name](graph, Given())
    else:
        assert FLOAT_STEPS[name](graph, Given()).samples == 0
