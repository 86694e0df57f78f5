"""What cannot be computed exactly is refused by name."""

import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import pytest
import torch

from onnxq.errors import DataError, ModelError, UsageError
from onnxq.quantize.torch_graph import TorchGraph

HEAD = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>\n'
PLAIN = "g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> { h = Mul(x, w) y = Relu(h) }"


def graph_of(text: str, head: str = HEAD) -> TorchGraph:
    return TorchGraph(onnx.parser.parse_model(head + text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[odd] y = NonMaxSuppression(x, x)", "NonMaxSuppression `odd`: the operator"),
        ("[mine] y = com.microsoft.Gelu(x)", "Gelu `mine`: the operator `com.microsoft.Gelu`"),
        ("[str] y = Cast<to=8>(x)", "Cast `str`, tensor `y`: tensors of type string"),
    ],
)
def test_an_operator_or_type_that_is_not_computed_is_refused_by_node_and_name(text, said):
    with pytest.raises(ModelError, match=said):
        graph_of(f"g (float[2,3] x) => (y) {{ {text} }}")


@pytest.mark.parametrize("opset", [12, 22])
def test_an_opset_out_of_13_to_21_is_refused(opset):
    with pytest.raises(ModelError, match=rf"opset {opset}; 13 to 21"):
        graph_of(PLAIN, f'<ir_version: 8, opset_import: ["": {opset}]>\n')


def test_training_modes_are_refused_when_they_are_met():
    text = """g (float[2,3] x) => (float[2,3] y) <float[3] w = {1, 2, 3}> {
        [bn] y, mean, variance = BatchNormalization<training_mode=1>(x, w, w, w, w)
    }"""
    with pytest.raises(ModelError, match=r"BatchNormalization `bn`: .* training mode"):
        graph_of(text)({"x": torch.zeros(2, 3)})


def test_shapes_that_do_not_fit_name_the_node():
    with pytest.raises(ModelError, match="Mul `h`: torch cannot compute it"):
        graph_of(PLAIN)({"x": torch.zeros(2, 4)})


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "`x` is missing"),
        ({"x": torch.zeros(2, 3), "z": torch.zeros(1)}, "no input `z`"),
        ({"x": torch.zeros(2, 3, dtype=torch.int64)}, "declares torch.float32"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, said):
    with pytest.raises(DataError, match=said):
        graph_of(PLAIN)(inputs)


def test_unknown_tensors_are_answered_with_the_nearest():
    graph = graph_of(PLAIN)
    with pytest.raises(UsageError, match=r"no tensor `hh`[^`]*did you mean `h`"):
        graph({"x": torch.zeros(2, 3)}, ["hh"])
    with pytest.raises(UsageError, match="no floating point constant `v`"):
        graph.make_trainable("v")


def test_wanted_tensors_are_given_and_can_be_constants_and_inputs():
    found = graph_of(PLAIN)({"x": -torch.ones(2, 3)}, ["h", "w", "x"])
    assert set(found) == {"y", "h", "w", "x"}
    assert np.array_equal(found["h"].numpy(), -np.array([[1, 2, 3], [1, 2, 3]]))


def test_names_that_torch_forbids_are_parameters_and_buffers_all_the_same():
    model = onnx.parser.parse_model(HEAD + PLAIN)
    for number, name in enumerate(["a.b", "a%2Eb", "training", "forward", "x.y.z"]):
        model.graph.initializer.append(
            onnx.numpy_helper.from_array(np.full(2, number, np.float32), name)
        )
    names = ["a.b", "a%2Eb", "training", "forward", "x.y.z"]
    found = TorchGraph(model)({"x": torch.zeros(2, 3)}, names)
    assert [int(found[name][0]) for name in names] == [0, 1, 2, 3, 4]


def test_functions_of_the_model_are_computed():
    text = """g (float[2,3] x) => (float[2,3] y) { y = own.twice(x) }
    <domain: "own", opset_import: ["": 17]> twice (a) => (b) { b = Add(a, a) }"""
    graph = graph_of(text, '<ir_version: 8, opset_import: ["": 17, "own": 1]>\n')
    assert torch.equal(graph({"x": torch.ones(2, 3)})["y"], torch.full((2, 3), 2.0))


def test_quantize_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import onnxq.quantize.stage, onnxq.plain.quantize, onnxq.cli.stages\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
