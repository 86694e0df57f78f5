"""Trial graphs, judged by ONNX Runtime on graphs that numpy has quantized."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.graph import load_model
from onnxq.qtypes import AffineParameters
from onnxq.quantize.sensitivity import TrialGraphs
from onnxq.quantize.stage import plan_draft
from onnxq.recipe import NodePrecision, QuantizeSection
from onnxq.runtime import Session
from onnxq.target import load_target

from .nets import HEAD, calibrated, residual, weights

NET = (
    HEAD
    + """g (float[1,4,6,6] x) => (float[1,5] y) {
    [conv_1] a = Conv(x, w1, b1)
    [relu_1] b = Relu(a)
    [pool_1] c = MaxPool<kernel_shape=[2,2]>(b)
    [add_1] d = Add(c, k)
    [gap_1] e = GlobalAveragePool(d)
    [flat_1] f = Flatten(e)
    [gemm_1] y = Gemm(f, w2)
}"""
)


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    constants = {
        "w1": weights(6, 4, 3, 3), "b1": weights(6, seed=5), "k": weights(1, 6, 1, 1, seed=2),
        "w2": weights(6, 5, seed=3),
    }  # fmt: skip
    return calibrated(tmp_path_factory.mktemp("net"), NET, **constants)


def trials(net, target="ort-x86", section=None):
    section = section or QuantizeSection()
    planned = plan_draft(load_model(net.path), net.ranges, load_target(target), section)
    return TrialGraphs(planned.draft, planned.graph), planned.draft


def answers(model: onnx.ModelProto, net, rows=None) -> np.ndarray:
    session = Session(model.SerializeToString(), optimization="none")
    rows = net.samples.rows() if rows is None else rows
    return np.concatenate([next(iter(session.run(row).values())) for row in rows])


SECTIONS = {
    "int8": QuantizeSection(),
    "4 bits": QuantizeSection(weights="int4"),
    "16 bits": QuantizeSection(precision=(NodePrecision(name="add_1", activations="int16"),)),
    "float": QuantizeSection(precision=(NodePrecision(name="gemm_1", weights="float"),)),
}


@pytest.mark.parametrize(
    ("target", "section"),
    [("stm32n6", "int8"), *(("ort-x86", section) for section in SECTIONS)],
)
def test_with_all_on_a_trial_is_the_shipped_file_and_with_all_off_fp32(net, section, target):
    graphs, draft = trials(net, target, SECTIONS[section])
    names = [layer.name for layer in graphs.layers]
    np.testing.assert_array_equal(
        answers(graphs.graph(names, names), net), answers(draft.quantized(), net)
    )
    np.testing.assert_array_equal(
        answers(graphs.graph([], []), net), answers(load_model(net.path), net)
    )


def test_a_network_with_branches_is_the_shipped_file_too(tmp_path):
    net = residual(tmp_path)
    graphs, draft = trials(net)
    names = [layer.name for layer in graphs.layers]
    np.testing.assert_array_equal(
        answers(graphs.graph(names, names), net), answers(draft.quantized(), net)
    )


def test_layers_stand_in_the_order_of_the_graph_with_what_shares_their_scale(net):
    graphs, _ = trials(net)
    found = {layer.name: (layer.op_type, layer.has_weights) for layer in graphs.layers}
    assert list(found.items()) == [
        ("input `x`", ("Input", False)),
        ("conv_1", ("Conv", True)),
        ("add_1", ("Add", True)),
        ("gap_1", ("GlobalAveragePool", False)),
        ("gemm_1", ("Gemm", True)),
    ]
    conv = graphs.layers[1]
    assert (conv.weights, conv.macs) == (6 * 4 * 9 + 6, 6 * 4 * 9 * 16)


def on_grid(values: np.ndarray, grid: AffineParameters) -> np.ndarray:
    steps = np.rint(values / np.float32(grid.scale)) + grid.zero_point
    steps = np.clip(steps, grid.type.qmin, grid.type.qmax)
    return ((steps - grid.zero_point) * np.float32(grid.scale)).astype(np.float32)


def test_only_the_input_on_is_fp32_of_inputs_that_numpy_has_rounded(net):
    graphs, draft = trials(net)
    grid = draft.plan.activations["x"]
    rounded = [{"x": on_grid(row["x"], grid)} for row in net.samples.rows()]
    got = answers(graphs.graph([], ["input `x`"]), net)
    np.testing.assert_array_equal(got, answers(load_model(net.path), net, rounded))
    assert (got != answers(load_model(net.path), net)).any()


def test_only_the_weights_of_a_layer_on_is_fp32_with_weights_that_numpy_has_rounded(net):
    graphs, draft = trials(net)
    planned = draft.plan.weights["w2"]
    model = load_model(net.path)
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            scales = planned.spread(2)
            values = onnx.numpy_helper.to_array(tensor)
            rounded = np.clip(np.rint(values / scales), -127, 127) * scales
            tensor.CopyFrom(onnx.numpy_helper.from_array(rounded.astype(np.float32), "w2"))
    got = answers(graphs.graph(["gemm_1"], []), net)
    np.testing.assert_allclose(got, answers(model, net), rtol=1e-6, atol=1e-6)


def test_a_trial_leaves_the_draft_and_the_next_trial_alone(net):
    graphs, draft = trials(net)
    before = ir.to_proto(draft.graph).SerializeToString()
    first = graphs.graph(["conv_1"], []).SerializeToString()
    graphs.graph([], ["conv_1", "add_1"])
    assert graphs.graph(["conv_1"], []).SerializeToString() == first
    assert ir.to_proto(draft.graph).SerializeToString() == before
