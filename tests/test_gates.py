"""Gated activations told by their numbers: the function that is named is the one that ONNX's
reference computes."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.gates import HardSwish, gates_of, useful_from
from tests.onnx_text import model_of

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
NUMBERS = {"three": 3, "zero": 0, "six": 6}


def model(text: str) -> onnx.ModelProto:
    constants = {n: np.array(v, np.float32) for n, v in NUMBERS.items() if n in text}
    head = HEAD + "g (float[1,40] x) => (float[1,40] y) { t = Tanh(x)  c = Mul(t, t) "
    return onnx.shape_inference.infer_shapes(model_of(head + text + "}", **constants))


def nodes(text: str) -> list[ir.Node]:
    return list(ir.from_proto(model(text)).graph)


HARD = [
    "y = HardSwish(c)",
    "s = HardSigmoid<alpha=0.25, beta=0.75>(c)  y = Mul(s, c)",
    "a = Add(three, c)  k = Clip(a, zero, six)  y = Mul(k, c)",
]


@pytest.mark.parametrize("text", HARD)
def test_a_hard_swish_is_the_function_its_numbers_say(text):
    (gate,) = gates_of(nodes(text))
    assert isinstance(gate, HardSwish)
    x = np.linspace(-9, 9, 40, dtype=np.float32)[None]
    body = model(text)
    while body.graph.node[0].output[0] != "c":
        del body.graph.node[0]
    del body.graph.node[0]
    body.graph.input[0].name = "c"
    wanted = ReferenceEvaluator(body).run(None, {"c": x})[0]
    got = gate.factor * x * np.clip(x + gate.offset, 0, gate.height)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert not wanted[x < gate.lowest].any()


def test_a_swish_is_told_too():
    (gate,) = gates_of(nodes("s = Sigmoid(c)  y = Mul(c, s)"))
    assert gate.name == "swish"
    assert abs(gate.lowest / (1 + np.exp(-gate.lowest))) < 0.002


def test_what_only_a_gate_reads_matters_from_where_the_gate_opens():
    assert useful_from(nodes(HARD[2])) == {"c": -3.0}
    assert useful_from(nodes("s = HardSwish(c)  y = Add(s, c)")) == {}


@pytest.mark.parametrize(
    "text",
    [
        "s = Sigmoid(t)  y = Mul(c, s)",  # the gate of something else
        "a = Add(c, three)  k = Clip(a, three, six)  y = Mul(c, k)",  # never closed
        "a = Add(c, t)  k = Clip(a, zero, six)  y = Mul(c, k)",  # no constant
        "s = Sigmoid(c)  m = Mul(c, s)  y = Add(m, s)",  # the gate is read twice
        "y = Mul(c, c)",
    ],
)
def test_what_looks_like_a_gate_and_is_none_is_left_alone(text):
    assert gates_of(nodes(text)) == []
