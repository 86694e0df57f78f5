"""Extremes by channel: of what goes into a weight, judged by NumPy on plain activations."""

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.calibrate.archive import decode, encode
from onnxq.calibrate.stage import STATISTICS, Subject, calibrate, load_statistics
from onnxq.calibrate.statistics import Channels
from onnxq.graph import load_model, values_of
from onnxq.recipe import CalibrateSection
from onnxq.runtime import Session, with_outputs
from onnxq.samples import Samples
from onnxq.target import load_target

NET = """<ir_version: 9, opset_import: ["": OPSET]>
g (float[n,3,6,6] x) => (float[n,4,6,6] y) {
    [conv] a = Conv<pads = [1,1,1,1]>(x, w)
    [relu] b = Relu(a)
    [head] y = Conv(b, v)
}"""
RANDOM = np.random.default_rng(3)
X = RANDOM.standard_normal((12, 3, 6, 6)).astype(np.float32)


def network(folder, opset):
    model = onnx.parser.parse_model(NET.replace("OPSET", str(opset)))
    weight = RANDOM.standard_normal((8, 3, 3, 3)).astype(np.float32)
    for name, array in (
        ("w", weight),
        ("v", RANDOM.standard_normal((4, 8, 1, 1)).astype(np.float32)),
    ):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def run(path, folder, **section):
    subject = Subject(path, *values_of(load_model(path)), load_target("ort-x86"))
    chosen = CalibrateSection(samples=len(X), per_channel=True, **section)
    return calibrate(subject, Samples("s", {"x": X}), chosen, folder)


@pytest.mark.parametrize("collect", ["extremes", "histograms"])
@pytest.mark.parametrize("opset", [17, 18])
def test_extremes_by_channel_are_those_of_the_activations(tmp_path, opset, collect):
    path = network(tmp_path, opset)
    run(path, tmp_path / "out", collect=collect)
    _, statistics = load_statistics(tmp_path / "out")
    plain = Session(with_outputs(load_model(path), ["b"]).SerializeToString(), optimization="none")
    activations = {"x": X, "b": np.concatenate([plain.run({"x": x[np.newaxis]})["b"] for x in X])}
    assert statistics.channels.keys() == activations.keys()
    for name, values in activations.items():
        seen = statistics.channels[name]
        assert seen.axis == 1
        assert np.array_equal(seen.lows, values.min(axis=(0, 2, 3)))
        assert np.array_equal(seen.highs, values.max(axis=(0, 2, 3)))


def test_channels_survive_storing_and_merge_in_any_order():
    random = np.random.default_rng(0)
    parts = [Channels(1, *np.sort(random.standard_normal((2, 5)).astype("f"), 0)) for _ in "abc"]
    a, b, c = parts
    for whole in (a.merged(b).merged(c), c.merged(b.merged(a))):
        assert np.array_equal(whole.lows, np.min([part.lows for part in parts], axis=0))
        assert np.array_equal(whole.highs, np.max([part.highs for part in parts], axis=0))


def test_channels_are_stored_to_the_bit(tmp_path):
    run(network(tmp_path, 17), tmp_path / "out")
    data = (tmp_path / "out" / STATISTICS).read_bytes()
    assert encode(decode(data, "s")) == data


def test_imbalance_is_the_whole_range_over_that_of_the_median_channel():
    seen = Channels(1, np.float32([0, -1, 0]), np.float32([100, 1, 2]))
    assert seen.imbalance == pytest.approx(101 / 2)
    assert Channels(0, np.float32([0, 0, 0]), np.float32([5, 0, 0])).imbalance == np.inf


def test_a_tensor_whose_median_channel_has_too_few_steps_is_a_finding(tmp_path):
    x = X.copy()
    x[:, 0] *= 400
    path = network(tmp_path, 17)
    subject = Subject(path, *values_of(load_model(path)), load_target("ort-x86"))
    samples = Samples("s", {"x": x})
    section = CalibrateSection(samples=len(x), per_channel=True)
    found = calibrate(subject, samples, section, tmp_path / "out").findings
    assert any(f.where == "x" and "times that of its median channel" in f.what for f in found)
    quiet = run(path, tmp_path / "quiet").findings
    assert not [f for f in quiet if "median channel" in f.what]
