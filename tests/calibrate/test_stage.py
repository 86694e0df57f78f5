import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.artifacts import CalibrationResult
from onnxq.calibrate.stage import RECORD, Subject, calibrate
from onnxq.errors import AlreadyQuantizedError, DataError, LeakageError, QuantizationError
from onnxq.graph import load_model, values_of
from onnxq.recipe import CalibrateSection
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import load_target

NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,4] x) => (float[1,3] y, float[1,3] z) {
    [lin] h = Gemm(x, w, b)
    [act] y = Sigmoid(h)
    [tan] t = Tanh(h)
    [cut] u = Relu(t)
    [out] z = Mul(u, t)
}"""
RANDOM = np.random.default_rng(0)
X = RANDOM.uniform(-1, 1, (40, 4)).astype(np.float32)


@pytest.fixture
def net(tmp_path):
    """The path of a small network."""
    return save(tmp_path, NET, w=RANDOM.standard_normal((4, 3)), b=RANDOM.standard_normal(3))


def save(folder, text, **constants):
    model = onnx.parser.parse_model(text)
    for name, array in constants.items():
        tensor = onnx.numpy_helper.from_array(np.asarray(array, np.float32), name)
        model.graph.initializer.append(tensor)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def run(path, x, *, domains=None, evaluation=None, **section) -> CalibrationResult:
    subject = Subject(path, *values_of(load_model(path), domains), load_target("stm32n6"))
    return calibrate(
        subject,
        x if isinstance(x, Samples) else Samples("s", {"x": x}),
        CalibrateSection(**({"samples": len(x)} | section)),
        path.parent / "out",
        evaluation=evaluation,
    )


def test_every_tensor_that_will_carry_q_and_dq_gets_its_range_and_the_record_lies_on_disk(net):
    result = run(net, X)
    assert set(result.ranges) == {"x", "h", "y", "t", "u", "z"}
    assert result.ranges["x"].observed_low == X.min()
    assert result.ranges["x"].values == X.size
    assert result.model_sha256 == sha256_of_file(net)
    assert load_record(CalibrationResult, net.parent / "out" / RECORD) == result


def test_the_same_samples_give_the_same_record(net):
    assert run(net, X, samples=20).ranges == run(net, X, samples=20).ranges
    assert run(net, X, samples=20).ranges != run(net, X, samples=20, seed=1).ranges


def test_sigmoid_and_tanh_have_their_mathematical_range(net):
    ranges = run(net, X).ranges
    assert (ranges["y"].low, ranges["y"].high) == (0, 1)
    assert (ranges["t"].low, ranges["t"].high) == (-1, 1)
    assert ranges["y"].pinned == "Sigmoid's mathematical range"
    assert 0 < ranges["y"].observed_low < ranges["y"].observed_high < 1
    assert ranges["h"].pinned is None


@pytest.mark.parametrize("op", ["Softmax", "HardSigmoid"])
def test_other_operators_with_a_fixed_range_are_pinned_too(tmp_path, op):
    path = save(
        tmp_path,
        f"""<ir_version: 9, opset_import: ["": 17]>
        g (float[1,4] x) => (float[1,4] y) {{ y = {op}(x) }}""",
    )
    found = run(path, X).ranges["y"]
    assert (found.low, found.high) == (0, 1)


def test_a_declared_domain_pins_the_range_whatever_was_seen(net):
    found = run(net, X / 2, domains={"x": (-1.0, 1.0), "z": (0.0, 2.0)}).ranges
    assert (found["x"].low, found["x"].high, found["x"].pinned) == (-1, 1, "declared domain")
    assert (found["z"].low, found["z"].high, found["z"].pinned) == (0, 2, "declared domain")
    assert found["x"].observed_high < 0.5


def test_a_domain_that_the_samples_hardly_cover_is_a_finding(net):
    (finding,) = [f for f in run(net, X / 2, domains={"x": (-1.0, 1.0)}).findings if f.where == "x"]
    assert "cover 50% of the declared domain" in finding.what
    assert not run(net, X, domains={"x": (-1.0, 1.0)}).findings


def test_a_tensor_that_is_always_zero_is_a_finding(tmp_path):
    path = save(tmp_path, NET, w=-np.ones((4, 3)), b=np.full(3, -9.0))
    finding, _ = run(path, X).findings
    assert (finding.where, finding.what) == ("u", "is zero in every calibration sample")


def test_values_outside_an_estimated_range_are_counted(net):
    found = run(net, X, method="percentile", coverage=0.9).ranges["h"]
    assert 0.02 < found.outside_fraction <= 0.1
    assert run(net, X, collect="histograms").ranges["h"].outside_fraction == 0
    assert run(net, X).ranges["h"].outside_fraction is None  # extremes alone do not tell


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_input_that_is_not_finite_is_named_by_its_place_in_the_source(net, bad):
    x = X.copy()
    x[33, 2] = bad
    with pytest.raises(DataError, match=r"s, sample 33, input `x`"):
        run(net, x)


def test_an_activation_that_is_not_finite_names_node_tensor_and_sample(tmp_path):
    path = save(
        tmp_path,
        """<ir_version: 9, opset_import: ["": 17]>
        g (float[1,4] x) => (float[1,4] y) { [root] s = Sqrt(x)  [out] y = Relu(s) }""",
    )
    x = np.abs(X)
    x[21] = -1
    with pytest.raises(DataError, match=r"sample 21, tensor `s`: Sqrt `root` computes nan"):
        run(path, x)


def test_a_tensor_without_elements_has_no_range(tmp_path):
    path = save(
        tmp_path,
        """<ir_version: 9, opset_import: ["": 17]>
        g (float[1,2,4,4] x) => (float[1,2,8,8] y) {
            roi = Constant<value = float[0] {}>()
            [up] y = Resize<mode = "nearest">(x, roi, scales) }""",
        scales=[1, 1, 2, 2],
    )
    x = RANDOM.standard_normal((3, 2, 4, 4)).astype(np.float32)
    assert set(run(path, x).ranges) == {"x", "y"}


def test_integers_inside_the_graph_are_left_out(tmp_path):
    path = save(
        tmp_path,
        """<ir_version: 9, opset_import: ["": 17]>
        g (float[1,4] x) => (float[1,4] y, int64[1,1] i) {
            i = ArgMax<axis = 1>(x)  y = Relu(x) }""",
    )
    assert set(run(path, X).ranges) == {"x", "y"}


def test_calibration_on_the_evaluation_samples_is_refused_unless_they_are_made_up(net):
    with pytest.raises(LeakageError):
        run(net, X, evaluation=Samples("e", {"x": X}))
    made_up = Samples("random", {"x": X}, made_up=True)
    result = run(net, made_up, samples=40, evaluation=Samples("e", {"x": X}))
    assert result.choice.made_up


def test_a_quantized_model_is_refused(tmp_path):
    path = save(
        tmp_path,
        """<ir_version: 9, opset_import: ["": 17]>
        g (float[1,4] x) => (float[1,4] y) {
            q = QuantizeLinear(x, s)
            y = DequantizeLinear(q, s) }""",
        s=np.float32(0.1),
    )
    with pytest.raises(AlreadyQuantizedError):
        run(path, X)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (Samples("s", {"x": X[:, :3]}), r"shape \[3\]"),
        (Samples("s", {"x": X.astype(np.float64)}), "float64"),
        (Samples("s", {"x": X, "extra": X}), "`extra` is no input"),
    ],
)
def test_trap_30_samples_that_do_not_fit_are_told_before_anything_runs(net, samples, says):
    with pytest.raises(DataError, match=says):
        run(net, samples)
    assert not (net.parent / "out").exists()


def test_trap_5_no_sample_is_thrown_away(net):
    """onnxruntime's CalibMaxIntermediateOutputs forgets all samples before the last block."""
    x = X.copy()
    x[0] = 100
    assert run(net, x).ranges["x"].high == 100


def test_an_overlap_is_allowed_by_name_with_its_reason_on_record(net):
    waived = run(
        net,
        X,
        evaluation=Samples("e", {"x": X}),
        waive=({"name": "overlap", "reason": "a smoke test"},),
    )
    assert waived.choice.overlap_waived == "a smoke test"
    assert any("waived: a smoke test" in note for note in waived.choice.notes)
    assert waived.passport.overlap_checked == ()


def test_a_node_to_exclude_that_is_not_there_is_told_with_the_nearest_name(net):
    subject = Subject(
        net, *values_of(load_model(net)), load_target("stm32n6"), exclude={"lim": "why"}
    )
    with pytest.raises(QuantizationError, match="did you mean `lin`"):
        calibrate(subject, Samples("s", {"x": X}), CalibrateSection(samples=40), net.parent / "o")
