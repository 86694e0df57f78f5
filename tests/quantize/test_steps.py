"""Refine steps: which run, in what order, what they must gain, and what the record says of it."""

from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import ValidationError

from onnxq.errors import QuantizationError
from onnxq.graph import load_model
from onnxq.progress import silent
from onnxq.quantize import steps
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.plan import make_plan
from onnxq.quantize.stage import quantize
from onnxq.quantize.steps import REFINE_STEPS, refine
from onnxq.recipe import AdaRoundSection, QuantizeSection, RangesSection, Step
from onnxq.samples import Samples
from onnxq.target import load_target
from onnxq.verify.audit import audit

from .nets import TARGETS, Int8, Net, outputs, residual, weights

QUICK = QuantizeSection(
    adaround=AdaRoundSection(iterations=20), ranges=RangesSection(iterations=20)
)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    return residual(tmp_path_factory.mktemp("residual"), inputs={"x": weights(64, 3, 8, 8, size=1)})


def draft_of(net: Net, target: str) -> Draft:
    graph, chosen = ir.from_proto(load_model(net.path)), load_target(target)
    return Draft(graph, make_plan(graph, chosen, net.ranges.ranges, {}), chosen)


def evidence_of(net: Net) -> Evidence:
    return Evidence(load_model(net.path), net.samples, 1, silent)


def test_the_table_holds_the_steps_that_a_recipe_may_name():
    assert set(REFINE_STEPS) | {"finetune"} == set(
        get_args(Step)
    )  # which comes last, and judges itself
    with pytest.raises(ValidationError):
        QuantizeSection(steps=("biass",))


@pytest.mark.parametrize("name", REFINE_STEPS)
def test_a_step_leaves_the_draft_alone_that_it_is_given(net, name):
    draft = draft_of(net, "ort-x86")
    before = ir.to_proto(draft.graph).SerializeToString(deterministic=True)
    scales = {name: weight.scales.copy() for name, weight in draft.plan.weights.items()}
    REFINE_STEPS[name](draft, evidence_of(net), QUICK)
    assert ir.to_proto(draft.graph).SerializeToString(deterministic=True) == before
    for weight, planned in draft.plan.weights.items():
        np.testing.assert_array_equal(planned.scales, scales[weight])


def test_steps_run_in_the_order_of_the_table_and_a_line_says_what_each_gained(net):
    _, lines = refine(
        draft_of(net, "ort-x86"), ("bias", "weights-mse"), evidence_of(net), QuantizeSection()
    )
    assert [line.split(":")[0] for line in lines] == ["weights-mse", "bias"]
    assert all("dB on 16 held-back runs" in line for line in lines)


def test_a_step_that_makes_outputs_worse_is_undone_and_the_line_says_so(net, monkeypatch):
    def worsen(draft, *_):
        graph = draft.copy()
        (bias,) = (v for v in graph.graph.initializers.values() if v.name == "b1")
        bias.const_value = ir.tensor(bias.const_value.numpy() + 1, name="b1")
        return Draft(graph, draft.plan, draft.target), "spoilt"

    monkeypatch.setattr(steps, "REFINE_STEPS", {"bias": worsen})
    draft = draft_of(net, "ort-x86")
    after, (line,) = refine(draft, ("bias",), evidence_of(net), QuantizeSection())
    assert after is draft
    assert line.startswith("bias: undone")
    assert "spoilt" in line


def test_fewer_samples_than_can_be_held_back_are_refused(net):
    few = Samples("few", {"x": weights(3, 3, 8, 8)})
    with pytest.raises(QuantizationError, match="3 runs, and steps need 4"):
        Evidence(load_model(net.path), few, 1, silent)


def test_steps_without_samples_are_refused(net, tmp_path):
    with pytest.raises(QuantizationError, match="the step `bias` is measured on samples"):
        quantize(
            net.path, net.ranges, load_target("ort-x86"), QuantizeSection(steps=("bias",)),
            tmp_path / "int8.onnx",
        )  # fmt: skip


@pytest.fixture(scope="module")
def refined(net, tmp_path_factory) -> dict[str, Int8]:
    """The residual network with all steps, for every target."""
    folder, files = tmp_path_factory.mktemp("refined"), {}
    for target in TARGETS:
        path = folder / f"{target}.onnx"
        record = quantize(
            net.path, net.ranges, load_target(target),
            QUICK.model_copy(update={"steps": tuple(REFINE_STEPS)}), path, samples=net.samples,
        )  # fmt: skip
        files[target] = Int8(net, path, record, load_model(path))
    return files


@pytest.mark.parametrize("target", TARGETS)
def test_with_steps_the_file_is_nearer_to_fp32_and_has_the_same_nodes(net, refined, target):
    plain, better = net.quantize(target), refined[target]
    exact = outputs(net.path, net.samples)["y"]
    errors = [np.square(file.outputs()["y"] - exact).mean() for file in (plain, better)]
    assert errors[1] < errors[0]
    assert [n.op_type for n in plain.model.graph.node] == [
        n.op_type for n in better.model.graph.node
    ]
    zeros = [
        {name: (p.zero_point, p.type) for name, p in file.record.activations.items()}
        for file in (plain, better)
    ]
    assert zeros[0] == zeros[1]  # scales may be learned, zero points stay


def test_signed_and_unsigned_files_get_the_same_corrections(refined):
    np.testing.assert_array_equal(
        refined["stm32n6"].outputs()["y"], refined["ort-x86"].outputs()["y"]
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_audit_explains_what_was_moved_by_the_record_and_nothing_else(net, refined, target):
    int8, fp32 = refined[target], ir.from_proto(load_model(net.path))
    moved, nodes = int8.record.moved, int8.record.quantized_nodes
    assert moved

    def faults(allowed):
        rows = audit(ir.from_proto(int8.model), nodes, fp32, allowed)
        return [fault for row in rows for fault in row.faults]

    assert faults(moved) == []
    assert any("bias lies up to" in fault for fault in faults({}))
    half = {node: {k: v / 2 for k, v in shifts.items()} for node, shifts in moved.items()}
    assert any("and the record" in fault for fault in faults(half))
