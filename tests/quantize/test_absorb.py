"""High-bias absorption: what leaves one bias arrives in the next."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import constant_of, load_model
from onnxq.quantize.float_steps.absorb import absorb
from onnxq.quantize.float_steps.observe import SampleExtremes
from onnxq.quantize.float_steps.types import Given, Stepped
from onnxq.samples import Samples

from .nets import HEAD, outputs, save, weights

SAMPLES = Samples("s", {"x": np.random.default_rng(3).uniform(-1, 1, (12, 3, 6, 6)).astype("f4")})
BIAS = np.array([9, 0.1, -3, 5], np.float32)


def absorbed(folder, nodes: str, **constants) -> Stepped:
    text = "g (float[1,3,6,6] x) => (float y) { [l] a = Conv(x, w1, b1) " + nodes + "}"
    path = save(
        folder / "fp32.onnx", HEAD + text, w1=weights(4, 3, 1, 1, seed=1), b1=BIAS, **constants
    )
    step = absorb(ir.from_proto(load_model(path)), Given(SampleExtremes(SAMPLES)))
    ir.save(step.graph, folder / "after.onnx")
    return step


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ("b = Relu(a) [m] y = Conv(b, w2)", (5, 4, 3, 3)),
        ("b = Relu(a) [m] y = Conv<group=2>(b, w2)", (6, 2, 1, 1)),
        ("b = Relu(a) c = Transpose<perm=[0,2,3,1]>(b) d = Reshape(c, rows) [m] y = Gemm(d, w2)",
         (4, 5)),
    ],
)  # fmt: skip
def test_high_channels_lose_their_floor_and_the_outputs_stay(tmp_path, nodes, shape):
    step = absorbed(tmp_path, nodes, w2=weights(*shape, seed=2), rows=np.array([36, 4], np.int64))
    moved = BIAS - constant_of(step.graph.graph.initializers["b1"])
    assert (moved[[0, 3]] > 2).all()
    np.testing.assert_array_equal(moved[[1, 2]], 0)
    exact, got = (outputs(tmp_path / f"{n}.onnx", SAMPLES)["y"] for n in ("fp32", "after"))
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)
    (row,) = step.links
    assert (row.changed, row.channels, row.smallest) == (2, 4, 0)
    assert step.samples == 12


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("b = Relu(a) [m] y = Conv<pads=[1,1,1,1]>(b, w2)", "Conv `m` sees zeros at the border"),
        ("[act] b = LeakyRelu(a) [m] y = Conv(b, w2)", "and here is LeakyRelu `act`"),
        ("[m] y = Conv(a, w2)", "and here is no activation"),
        ("b = Relu(a) c = Transpose<perm=[0,2,3,1]>(b) [m] y = MatMul(c, w3)",
         "MatMul `m` has no bias to take it"),
    ],
)  # fmt: skip
def test_what_a_constant_does_not_pass_is_skipped_with_its_reason(tmp_path, nodes, reason):
    step = absorbed(tmp_path, nodes, w2=weights(5, 4, 3, 3), w3=weights(4, 5))
    assert step.links == ()
    assert any(reason in row.reason for row in step.skipped if row.node == "l")
