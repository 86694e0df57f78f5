"""Weight scales of least squared error, judged by search over many scales in float64."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import load_model
from onnxq.progress import silent
from onnxq.quantize.draft import Draft, Evidence
from onnxq.quantize.plan import make_plan
from onnxq.quantize.weights import least_error_scales, mse_weight_scales
from onnxq.target import load_target

from .nets import TARGETS, residual


def error(row: np.ndarray, scale: float) -> float:
    wide = row.astype(np.float64)
    return float(np.square(np.clip(np.rint(wide / scale), -127, 127) * scale - wide).sum())


@pytest.mark.parametrize("kind", ["normal", "laplace", "one outlier"])
def test_the_error_is_within_a_twentieth_of_the_best_of_many_scales(kind):
    random = np.random.default_rng(0)
    rows = random.laplace(size=(6, 400)) if kind == "laplace" else random.normal(size=(6, 400))
    if kind == "one outlier":
        rows[:, 0] = 6
    rows = rows.astype(np.float32)
    largest = np.abs(rows).max(1) / np.float32(127)
    found = least_error_scales(rows, largest)
    for row, scale, planned in zip(rows, found, largest, strict=True):
        best = min(error(row, planned * share) for share in np.linspace(0.5, 1, 4001))
        assert error(row, float(scale)) <= 1.05 * best
        assert error(row, float(scale)) <= error(row, float(planned))
        assert 0.5 * planned <= scale <= planned


def test_powers_of_two_stay_powers_of_two():
    rows = np.random.default_rng(1).normal(size=(5, 300)).astype(np.float32)
    scales = np.full(5, 2.0**-4, np.float32)
    assert set(least_error_scales(rows, scales, power_of_two=True)) <= {2.0**-4, 2.0**-5}


def test_a_channel_of_zeros_keeps_its_scale():
    rows = np.zeros((2, 9), np.float32)
    assert least_error_scales(rows, np.ones(2, np.float32)).tolist() == [1, 1]


@pytest.mark.parametrize("target", TARGETS)
def test_integers_end_at_127_though_weights_lie_beyond(tmp_path, target):
    net = residual(tmp_path)
    graph, chosen = ir.from_proto(load_model(net.path)), load_target(target)
    draft = Draft(graph, make_plan(graph, chosen, net.ranges.ranges, {}), chosen)
    evidence = Evidence(load_model(net.path), net.samples, 1, silent)
    refined, what = mse_weight_scales(draft, evidence)
    assert what.startswith("squared error of 3 weights × 0.")
    integers = [
        ir.from_proto(tensor).numpy()
        for tensor in refined.quantized().graph.initializer
        if tensor.name.endswith(".i") and tensor.data_type == ir.DataType.INT8
    ]
    assert len(integers) == 3
    assert min(each.min() for each in integers) >= -127
