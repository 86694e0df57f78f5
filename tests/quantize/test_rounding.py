"""Rounding for the output's sake, judged by exhaustive search and ONNX Runtime."""

from itertools import product

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import load_model
from onnxq.pair_sums import at_risk, has_pair_sums, reduction_rows
from onnxq.progress import silent
from onnxq.quantize import rounding
from onnxq.quantize.descent import least_error_rounding
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.plan import make_plan
from onnxq.quantize.rounding import round_weights
from onnxq.runtime import Session, with_outputs
from onnxq.target import load_target

from .nets import HEAD, Net, calibrated, residual, save, weights

CONVS = {
    "plain": ((6, 4, 3, 3), "pads=[1,0,2,1]"),
    "strided": ((6, 4, 3, 2), "strides=[2,1], dilations=[1,2]"),
    "grouped": ((6, 2, 3, 3), "group=2"),
    "depthwise": ((4, 1, 5, 5), "group=4, pads=[2,2,2,2], strides=[2,2]"),
    "same": ((6, 4, 4, 3), 'auto_pad="SAME_LOWER", strides=[2,2]'),
}


def draft_of(net: Net, target: str = "ort-x86") -> Draft:
    graph, chosen = ir.from_proto(load_model(net.path)), load_target(target)
    return Draft(graph, make_plan(graph, chosen, net.ranges.ranges, {}), chosen)


def evidence_of(net: Net) -> Evidence:
    return Evidence(load_model(net.path), net.samples, 1, silent)


def loss(integers, rows, scale, weighing) -> np.ndarray:
    errors = integers * scale - rows
    return np.einsum("...k,kl,...l->...", errors, weighing, errors)


@pytest.mark.parametrize("seed", range(3))
def test_rounding_comes_near_the_best_of_all_choices_up_or_down(seed):
    rng = np.random.default_rng(seed)
    rows, inputs = rng.normal(size=(32, 8)), rng.normal(size=(64, 8)) @ rng.normal(size=(8, 8))
    weighing, scale = inputs.T @ inputs / 64, 0.3
    found = least_error_rounding(rows, np.full((32, 1), scale), weighing, 127)
    ups = np.array(list(product((0, 1), repeat=8)))
    best = [loss(np.floor(row / scale) + ups, row, scale, weighing).min() for row in rows]
    got, plain = (loss(q, rows, scale, weighing) for q in (found, np.rint(rows / scale)))
    assert (got <= plain + 1e-12).all()
    assert got.sum() - sum(best) < 0.4 * (plain.sum() - sum(best))


@pytest.mark.parametrize(("positions", "most"), [(16, 1.05), (64, 1.0), (1024, 0.9)])
def test_few_positions_do_no_harm_to_others_and_many_help(positions, most):
    """Judged by the covariance that the inputs were drawn from, of which samples show little."""
    rng = np.random.default_rng(1)
    rows, mixing = rng.normal(size=(64, 128)), rng.normal(size=(128, 128)) / 16
    mixing += np.diag(rng.uniform(0.2, 2, 128))
    inputs = rng.normal(size=(positions, 128)) @ mixing
    moments = rounding._Moments(positions, inputs.sum(0)[np.newaxis], (inputs.T @ inputs)[None])
    (weighing,) = moments.weighing(centred=True)
    found = least_error_rounding(rows, np.full((64, 1), 0.3), weighing, 127)
    losses = [loss(q, rows, 0.3, mixing.T @ mixing).sum() for q in (found, np.rint(rows / 0.3))]
    assert losses[0] <= most * losses[1]


def test_no_single_step_would_be_better_and_none_leaves_the_grid():
    rng = np.random.default_rng(0)
    rows, inputs = rng.normal(size=(3, 6)), rng.normal(size=(32, 6))
    weighing = inputs.T @ inputs
    found = least_error_rounding(rows, np.full((3, 1), 0.2), weighing, 7)
    assert np.abs(found).max() <= 7
    for row, got in zip(rows, found, strict=True):
        for place, step in product(range(6), (-1, 1)):
            moved = got.copy()
            moved[place] += step
            if np.abs(moved).max() <= 7:
                assert loss(moved, row, 0.2, weighing) >= loss(got, row, 0.2, weighing) - 1e-9


@pytest.mark.parametrize("kind", CONVS)
def test_columns_are_what_onnxruntime_multiplies_the_weight_with(kind, tmp_path):
    shape, attributes = CONVS[kind]
    text = f"g (float[2,4,9,8] x) => (float y) {{ [conv_1] y = Conv<{attributes}>(x, w) }}"
    path = save(tmp_path / "net.onnx", HEAD + text, w=weights(*shape))
    data = weights(2, 4, 9, 8, seed=3)
    graph = ir.from_proto(load_model(path))
    node = graph.graph[0]
    rows = rounding._rows(node, weights(*shape))
    layer = rounding._Layer(node, "x", rows, np.ones(rows.shape[:2]), 127, has_bias=False)
    got = np.matmul(rows, rounding._columns(layer, data))
    exact = Session(path).run({"x": data})["y"]
    wanted = np.moveaxis(exact.reshape(2, shape[0], -1), 0, 1).reshape(shape[0], -1)
    np.testing.assert_allclose(got.reshape(shape[0], -1), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Net:
    pictures = np.cumsum(weights(64, 3, 8, 8, size=0.5), axis=-1, dtype=np.float32)  # correlated
    return residual(tmp_path_factory.mktemp("residual"), inputs={"x": pictures})


@pytest.mark.parametrize("node", ["conv_1", "conv_2", "gemm_1"])
def test_a_layer_fed_by_fp32_answers_nearer_to_fp32(net, node):
    draft = draft_of(net)
    better, line = round_weights(draft, evidence_of(net))
    assert "layers' outputs × 0." in line
    original = load_model(net.path)
    (tensor,) = (n.output[0] for n in original.graph.node if n.name == node)
    errors = []
    for graph in (draft.graph, better.graph):
        model = load_model(net.path)
        planned, name = draft.plan.weights, ""
        for each in graph.graph:
            if str(each.name) == node:
                name = str(each.inputs[1].name)
                array = each.inputs[1].const_value.numpy()
                step = planned[name].spread(array.ndim)
                rounded = np.rint(array / step) * step
        for tensor_proto in model.graph.initializer:
            if tensor_proto.name == name:
                tensor_proto.raw_data = rounded.astype(np.float32).tobytes()
        runs = [
            np.concatenate(
                [
                    Session(with_outputs(each, [tensor]).SerializeToString()).run(row)[tensor]
                    for row in net.samples.rows()
                ]
            )
            for each in (original, model)
        ]
        difference = (runs[0] - runs[1]).astype(np.float64)
        axes = (0, *range(2, difference.ndim))
        errors.append(np.square(difference - difference.mean(axis=axes, keepdims=True)).sum())
    assert errors[1] < 0.95 * errors[0]


def test_weights_lie_on_the_grid_afterwards(net):
    better, _ = round_weights(draft_of(net), evidence_of(net))
    for name, planned in better.plan.weights.items():
        array = better.graph.graph.initializers[name].const_value.numpy()
        steps = array / planned.spread(array.ndim)
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)
        assert np.abs(steps).max() < 127.5


def test_narrow_weights_keep_their_pairs_within_int16(net):
    chosen = load_target("ort-x86-avx2")
    plan = make_plan(
        ir.from_proto(load_model(net.path)), chosen, net.ranges.ranges, {}, narrow=True
    )
    draft = Draft(ir.from_proto(load_model(net.path)), plan, chosen, narrow=True)
    better, _ = round_weights(draft, evidence_of(net))
    for node in better.graph.graph:
        if not has_pair_sums(node):
            continue
        planned, array = better.plan.weights[str(node.inputs[1].name)], node.inputs[1].const_value
        integers = np.rint(array.numpy() / planned.spread(array.numpy().ndim)).astype(np.int8)
        assert not at_risk(reduction_rows(node, integers)).any()


def test_what_cannot_be_rounded_so_is_named(tmp_path):
    text = (
        HEAD
        + """g (float[1,2,3,6] x) => (float[1,2,3,5] y) {
        [matmul_1] a = MatMul(x, w1)
        [matmul_2] y = MatMul(a, w2)
    }"""
    )
    net = calibrated(tmp_path, text, w1=weights(6, 6), w2=weights(2, 6, 5))
    _, line = round_weights(draft_of(net), evidence_of(net))
    assert "1 layers" in line
    assert "plainly rounded: matmul_2" in line


def test_a_network_without_a_layer_that_can_be_rounded_so_is_left_as_it_is(tmp_path):
    text = HEAD + "g (float[1,2,3,6] x) => (float[1,2,3,5] y) { [matmul_1] y = MatMul(x, w) }"
    net = calibrated(tmp_path, text, w=weights(2, 6, 5))
    draft = draft_of(net)
    rounded, said = round_weights(draft, evidence_of(net))
    assert rounded is draft
    assert said == "no layer can be rounded so: matmul_1"


def test_moments_in_several_passes_are_those_of_one(net, monkeypatch):
    whole, _ = round_weights(draft_of(net), evidence_of(net))
    monkeypatch.setattr(rounding, "_HELD_BYTES", 1)
    apart, _ = round_weights(draft_of(net), evidence_of(net))
    for name in whole.plan.weights:
        one, two = (d.graph.graph.initializers[name].const_value.numpy() for d in (whole, apart))
        np.testing.assert_array_equal(one, two)
