"""Where the time goes, and how far fusion moves outputs: judged by plain onnxruntime and numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType

from onnxq.graph import load_model, values_of
from onnxq.plain.in_range import samples_in_range
from onnxq.runtime import latencies, profile
from onnxq.sample_checks import runs_of
from onnxq.verify.levels import compare_levels
from onnxq.verify.profiling import time_ledger, without_qdq
from tests.quantize.nets import Net, outputs, residual

from .qdq import CONV, IN, OUT, write
from .test_fusion import SQUARE, theirs


def rows_for(path) -> list[dict[str, np.ndarray]]:
    return runs_of(samples_in_range(path, None), values_of(load_model(path))[0])


@pytest.fixture
def net(tmp_path) -> Net:
    return residual(tmp_path)


def test_shares_add_up_to_one_and_name_nodes_of_the_file(net):
    path = net.quantize("ort-x86").path
    found = time_ledger(path, rows_for(path), {}, rounds=2)
    assert sum(one.share for one in found.operators) == pytest.approx(1)
    assert sum(one.share for one in found.nodes) == pytest.approx(1)
    groups = found.integer, found.floating, found.quantizing, found.layout
    assert sum(groups) == pytest.approx(1)
    assert found.floating == 0
    counts = {one.operator: one.count for one in found.operators}
    assert counts["QLinearConv"] == 2
    convolutions = {one.node for one in found.nodes if one.executed_as == "QLinearConv"}
    assert convolutions == {"conv_1", "conv_2"}
    assert (found.runs, found.float_is_twin) == (8, True)
    assert [one.share for one in found.nodes] == sorted(
        (n.share for n in found.nodes), reverse=True
    )


def test_float_islands_take_time_as_float(net):
    path = theirs(net, QuantType.QInt8)
    found = time_ledger(path, rows_for(path), {}, fp32=net.path, rounds=2)
    assert found.floating > 0
    assert found.quantizing > 0
    assert not found.float_is_twin
    names = {one.node for one in found.nodes if one.executed_as in {"Conv", "FusedConv"}}
    assert names <= {"conv_1", "conv_2"}
    assert names


def test_a_profile_counts_the_runs_that_are_asked_for(net):
    path = net.quantize("ort-x86").path
    rows = rows_for(path)
    assert {len(node.microseconds) for node in profile(path, {}, rows, 3)} == {3 * len(rows)}
    seconds = latencies(((path, {}), (net.path, {})), rows, 3)
    assert seconds.shape == (2, 3 * len(rows))
    assert (seconds > 0).all()


@pytest.mark.parametrize("target", ["ort-x86", "stm32n6"])
def test_the_float_twin_computes_what_the_file_says_but_for_rounding(net, target, tmp_path):
    path = net.quantize(target).path
    twin = tmp_path / "twin.onnx"
    onnx.save(without_qdq(load_model(path)), twin)
    onnx.checker.check_model(twin, full_check=True)
    exact, found = outputs(net.path, net.samples)["y"], outputs(twin, net.samples)["y"]
    assert np.abs(exact - found).max() < 3 * np.ptp(exact) / 255
    kinds = {node.op_type for node in onnx.load(twin).graph.node}
    assert "QuantizeLinear" not in kinds


def test_the_twin_of_a_graph_with_integer_borders_keeps_them(tmp_path):
    body = IN + CONV + "[op] o = Conv(d, wd)\n y = QuantizeLinear(o, s, z)\n"
    path = write(tmp_path / "m.onnx", body, gives="uint8")
    twin = tmp_path / "twin.onnx"
    onnx.save(without_qdq(load_model(path)), twin)
    session = onnxruntime.InferenceSession(twin)
    assert session.get_outputs()[0].type == "tensor(uint8)"


# --- fused against unfused ----------------------------------------------------------------------


def test_the_distance_between_levels_is_that_of_plain_onnxruntime(net):
    path = net.quantize("ort-x86").path
    rows = list(net.samples.rows())
    found = compare_levels(path, rows, {})
    plain, fused = outputs(path, net.samples)["y"], outputs(path, net.samples, "full")["y"]
    error = plain.astype(float) - fused
    assert found.samples == 16
    assert found.largest == pytest.approx(np.abs(error).max())
    if np.any(error):
        sqnr = 10 * np.log10((plain.astype(float) ** 2).sum() / (error**2).sum())
        assert found.sqnr_db == pytest.approx(sqnr)
    model = onnx.load(path)
    (last,) = (node for node in model.graph.node if "y" in node.output)
    (scale,) = (t for t in model.graph.initializer if t.name == last.input[1])
    step = float(onnx.numpy_helper.to_array(scale))
    assert found.steps == pytest.approx(np.abs(error).max() / step)


def test_a_weight_along_another_axis_shows_as_many_steps(tmp_path):
    path = write(tmp_path / "m.onnx", SQUARE.replace("AXIS", "0"))
    model = onnx.load(path)
    scales = np.geomspace(0.001, 0.03, 8, dtype=np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(scales, "kx"))
    onnx.save(model, path)
    found = compare_levels(path, rows_for(path), {})
    assert found.steps is not None
    assert found.steps > 5


def test_an_output_that_has_no_scale_has_no_steps(tmp_path):
    behind = OUT.replace("y =", "v =") + "y = Abs(v)\n"
    path = write(tmp_path / "m.onnx", IN + CONV + "[op] o = Conv(d, wd)\n" + behind)
    found = compare_levels(path, rows_for(path), {})
    assert found.steps is None
    assert found.largest >= 0
