import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from onnxq.quantize.unshare import unshare_constants
from onnxq.runtime import Session
from tests.onnx_text import model_of

from .nets import HEAD, weights


def graph_of(text: str, **constants: np.ndarray) -> ir.Model:
    model = model_of(HEAD + text, **constants)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def computed(model: ir.Model, **inputs: np.ndarray) -> np.ndarray:
    session = Session(ir.to_proto(model).SerializeToString(), optimization="none")
    return session.run(inputs)["y"]


TIED = """g (float[1,8] x) => (float[1,8] y) {
    [a] h = Gemm<transB=1>(x, w, b)
    [b] i = MatMul(h, w)
    [c] j = MatMul(i, w)
    [d] y = Gemm(j, w, b)
}"""


def test_every_use_of_another_kind_gets_a_copy_and_the_numbers_stay(tmp_path):
    model = graph_of(TIED, w=weights(8, 8), b=weights(8))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    copy, steps = unshare_constants(model)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert set(copy.graph.initializers) == {"w", "w.2", "b", "b.2"}
    assert len(steps) == 2
    x = weights(1, 8, seed=5)
    np.testing.assert_array_equal(computed(copy, x=x), computed(model, x=x))
    onnx.checker.check_model(ir.to_proto(copy), full_check=True)


def test_a_name_that_is_taken_is_not_given_again():
    model = graph_of(TIED, w=weights(8, 8), b=weights(8), **{"w.2": weights(3)})
    copy, _ = unshare_constants(model)
    assert {"w", "w.2", "w.3"} <= set(copy.graph.initializers)
    assert copy.graph.initializers["w.2"].const_value.shape == (3,)


def test_constants_of_one_use_are_let_be():
    model = graph_of(
        "g (float[1,8] x) => (float[1,8] y) { [a] y = Gemm(x, w, b) }",
        w=weights(8, 8),
        b=weights(8),
    )
    copy, steps = unshare_constants(model)
    assert steps == ()
    assert list(copy.graph.initializers) == ["w", "b"]


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 4)])
def test_the_bias_of_a_gemm_becomes_a_vector_of_the_same_numbers(shape):
    bias = np.arange(1, 1 + np.prod(shape, dtype=int), dtype=np.float32).reshape(shape)
    model = graph_of(
        "g (float[1,8] x) => (float[1,4] y) { [a] y = Gemm(x, w, b) }", w=weights(8, 4), b=bias
    )
    copy, steps = unshare_constants(model)
    (node,) = copy.graph
    assert node.inputs[2].const_value.shape == (4,)
    assert steps == (f"spread the bias of `a` from shape {list(shape)} to [4]",)
    assert len(copy.graph.initializers) == 2
    x = weights(1, 8, seed=5)
    np.testing.assert_array_equal(computed(copy, x=x), computed(model, x=x))


def test_a_bias_that_differs_by_row_is_let_be():
    model = graph_of(
        "g (float[2,8] x) => (float[2,4] y) { [a] y = Gemm(x, w, b) }",
        w=weights(8, 4), b=weights(2, 1),
    )  # fmt: skip
    copy, steps = unshare_constants(model)
    assert steps == ()
    assert list(copy.graph.initializers) == ["w", "b"]
