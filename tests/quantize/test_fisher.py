"""Mean squared gradients against finite differences of the loss that numpy computes."""

import numpy as np
import onnx
import pytest

from onnxq.errors import DataError
from onnxq.quantize.torch_graph.fisher import loss_for, mean_squared_gradients
from onnxq.runtime import Session
from tests.onnx_text import model_of

from .nets import HEAD, weights

NET = (
    HEAD
    + """g (float[1,6] x) => (float[1,3] y) {
    [gemm_1] a = Gemm<transB=1>(x, w1, b1)
    [relu_1] b = Relu(a)
    [gemm_2] y = Gemm<transB=1>(b, w2)
}"""
)
CONSTANTS = {"w1": weights(4, 6), "b1": weights(4, seed=1), "w2": weights(3, 4, seed=2)}


def numeric(loss, name: str, runs) -> np.ndarray:
    """E[g²] of one constant by central differences."""
    found = np.zeros_like(CONSTANTS[name], np.float64)
    for place in np.ndindex(found.shape):
        ends = []
        for step in (1e-2, -1e-2):
            moved = CONSTANTS[name].copy()
            moved[place] += step
            model = model_of(NET, **{**CONSTANTS, name: moved})
            session = Session(model.SerializeToString(), optimization="none")
            ends.append([loss(session.run(x)["y"][0].astype(float), t) for x, t in runs])
        gradient = (np.array(ends[0]) - np.array(ends[1])) / 2e-2
        found[place] = np.mean(gradient**2)
    return found


def cross_entropy(scores: np.ndarray, label: float) -> float:
    return float(np.log(np.exp(scores).sum()) - scores[int(label)])


@pytest.mark.parametrize("name", ["w1", "b1", "w2"])
def test_they_are_the_squares_of_finite_differences(name):
    random = np.random.default_rng(3)
    runs = [({"x": random.standard_normal((1, 6)).astype("f")}, k % 3) for k in range(5)]
    found = mean_squared_gradients(model_of(NET, **CONSTANTS), runs, "cross entropy of scores")
    np.testing.assert_allclose(
        found[name], numeric(cross_entropy, name, runs), rtol=0.05, atol=1e-4
    )


def test_the_loss_follows_from_output_and_label():
    assert loss_for(np.array([[1.0, -2.0]]), np.int64(1)) == "cross entropy of scores"
    assert loss_for(np.array([[0.25, 0.75]]), 1) == "cross entropy of probabilities"
    assert loss_for(np.array([[3.0]]), np.float32(1.5)) == "squared error"
    assert loss_for(np.array([[1.0, -2.0]]), 2) is None
    assert loss_for(np.zeros((1, 2, 4)), 1) is None
    assert loss_for(np.array([[1.0, -2.0]]), "cat") is None


def test_without_a_sample_there_is_none():
    with pytest.raises(DataError, match="no sample"):
        mean_squared_gradients(model_of(NET, **CONSTANTS), [], "squared error")


def test_the_model_is_left_as_it_is():
    model = model_of(NET, **CONSTANTS)
    before = onnx.ModelProto.FromString(model.SerializeToString())
    runs = [({"x": np.ones((1, 6), np.float32)}, 0.0)]
    mean_squared_gradients(model, runs, "cross entropy of scores")
    assert model == before
