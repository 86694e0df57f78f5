"""SmoothQuant behind norms: the paper's factors, and what they are good for."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.graph import constant_of, load_model
from onnxq.plain.calibrate import Data
from onnxq.plain.quantize import quantize_file
from onnxq.quantize.float_steps.observe import SampleExtremes
from onnxq.quantize.float_steps.smooth import smooth
from onnxq.quantize.float_steps.types import Given, Stepped
from onnxq.recipe import CalibrateSection, QuantizeSection
from onnxq.samples import Samples
from onnxq.target import load_target

from . import float_nets
from .nets import HEAD, outputs, save, weights

SAMPLES = Samples("s", {"x": weights(12, 6, 8, size=1.0)})


def smoothed(folder, nodes: str, **constants) -> Stepped:
    text = "g (float[1,6,8] x) => (float y) {" + nodes + "}"
    path = save(folder / "fp32.onnx", HEAD + text, **constants)
    return smooth(ir.from_proto(load_model(path)), Given(SampleExtremes(SAMPLES)))


def array(step: Stepped, name: str) -> np.ndarray:
    found = constant_of(step.graph.graph.initializers[name])
    assert found is not None
    return found


def test_factors_are_those_of_the_papers_equation_over_all_readers(tmp_path):
    gain, shift = float_nets.uneven(8, 1), weights(8, seed=2)
    wq, wk = weights(8, 4, seed=3), weights(8, 4, seed=4)
    nodes = """[norm] h = LayerNormalization(x, s, t)
        [q] q = MatMul(h, wq)  [k] k = MatMul(h, wk)  [add] y = Add(q, k)"""
    step = smoothed(tmp_path, nodes, s=gain, t=shift, wq=wq, wk=wk)
    x = SAMPLES.inputs["x"].astype(float)
    spread = np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    h = (x - x.mean(-1, keepdims=True)) / spread * gain + shift
    read = np.maximum(np.abs(wq).max(1), np.abs(wk).max(1))
    wanted = np.sqrt(np.abs(h).max((0, 1)) / read)
    np.testing.assert_allclose(gain / array(step, "s"), wanted, rtol=1e-4)
    np.testing.assert_allclose(shift / array(step, "t"), wanted, rtol=1e-4)
    np.testing.assert_allclose(array(step, "wq") / wq, np.repeat(wanted[:, None], 4, 1), rtol=1e-4)
    assert step.links[0].sinks == ("q", "k")


def test_the_mul_and_add_of_a_decomposed_norm_take_the_factors(tmp_path):
    step = smoothed(
        tmp_path, "[mul] a = Mul(x, s)  [add] b = Add(t, a)  [m] y = MatMul(b, w)",
        s=float_nets.uneven(8, 1), t=weights(1, 8, seed=2), w=weights(8, 4),
    )  # fmt: skip
    assert [(row.source, row.sinks) for row in step.links] == [("mul", ("m",))]
    ir.save(step.graph, tmp_path / "after.onnx")
    exact, got = (outputs(tmp_path / f"{n}.onnx", SAMPLES)["y"] for n in ("fp32", "after"))
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("[norm] h = LayerNormalization(x, s, t) [m] a = MatMul(h, w) [add] y = Add(a, h)",
         "Add `add` joins it with another tensor: a branch"),
        ("[norm] h = LayerNormalization(x, s, t) g = Sigmoid(h) [m] y = MatMul(g, w)",
         "does not let factors of channels pass"),
        ("[norm] h = LayerNormalization(x, s, t) k = Transpose<perm=[0,2,1]>(h) "
         "[m] y = MatMul(h, k)", "MatMul `m` multiplies it by something computed"),
    ],
)  # fmt: skip
def test_a_norm_that_something_else_reads_is_skipped_with_the_reason(tmp_path, nodes, reason):
    step = smoothed(tmp_path, nodes, s=weights(8), t=weights(8), w=weights(8, 8))
    assert step.links == ()
    assert reason in {row.node: row.reason for row in step.skipped}["norm"]


def test_outliers_of_a_transformer_block_cost_less_once_smoothed(tmp_path):
    net = float_nets.transformer(tmp_path)
    np.savez(tmp_path / "data.npz", **net.samples.inputs)
    data = Data(str(tmp_path / "data.npz"), {}, CalibrateSection(), samples=24)
    errors = []
    for name, section in (
        ("plain", QuantizeSection()), ("smooth", QuantizeSection(float_steps=("smooth",)))
    ):  # fmt: skip
        quantize_file(net.path, load_target("ort-x86"), data, section, tmp_path / f"{name}.onnx")
        exact = outputs(net.path, net.samples)["y"]
        errors.append(np.square(outputs(tmp_path / f"{name}.onnx", net.samples)["y"] - exact).sum())
    assert errors[1] < errors[0] / 2
