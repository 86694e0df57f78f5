import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.errors import ExportError
from onnxq.export.opset import convert_opset, opset_of

from .growing import Growing, assert_same_function
from .networks import graph, operators, random

SHAPE = np.array([2, 2])


def at(opset: int, text: str, **constants: np.ndarray):
    return graph(f'<ir_version: 8, opset_import: ["": {opset}]> ' + text, **constants)


def same(left, right, **feeds) -> bool:
    a, b = (ReferenceEvaluator(model).run(None, feeds)[0] for model in (left, right))
    return np.array_equal(a, b)


DOWNWARDS = {
    "attribute at its default": ("y = Reshape<allowzero: int = 0>(x, s)", {"s": np.array([2, 2])}),
    "axes as an input": (
        "y = ReduceSum<keepdims: int = 1>(x, a)",
        {"a": np.array([1])},
    ),
    "mean's axes": ("y = ReduceMean<noop_with_empty_axes = 0>(x, a)", {"a": np.array([0])}),
    "new types only": ("h = Abs(x)\ny = Relu(h)", {}),
}


@pytest.mark.parametrize("name", DOWNWARDS)
@pytest.mark.parametrize("opset", [13, 17])
def test_what_an_older_opset_knows_goes_down_and_computes_the_same(name, opset):
    body, constants = DOWNWARDS[name]
    out = {"axes as an input": "[2,1]", "mean's axes": "[1,2]"}.get(name, "[2,2]")
    model = at(18, f"g (float[2,2] x) => (float{out} y) {{ {body} }}", **constants)
    older = convert_opset(model, opset)
    assert opset_of(older) == opset
    assert opset_of(model) == 18
    assert same(model, older, x=random(2, 2))


def test_a_split_into_equal_parts_goes_down():
    text = "g (float[4] x) => (float[2] y) { y, z = Split<num_outputs = 2>(x) }"
    model = at(18, text)
    assert same(model, convert_opset(model, 13), x=random(4))


@pytest.mark.parametrize(
    ("body", "named"),
    [("y = Mish(x)", "Mish"), ("y = Reshape<allowzero: int = 1>(x, s)", "allowzero")],
)
def test_what_an_older_opset_does_not_know_is_named(body, named):
    constants = {"s": np.array([2, 2])} if "Reshape" in body else {}
    model = at(18, f"g (float[2,2] x) => (float[2,2] y) {{ {body} }}", **constants)
    with pytest.raises(ExportError, match=named) as caught:
        convert_opset(model, 13)
    assert "18" in caught.value.do


def test_upwards_goes_onnxs_own_converter():
    model = at(
        11,
        "g (float[2,3] x) => (float[2] y) { y = Squeeze<axes = [1]>(h)\n}".replace(
            "y = Squeeze", "h = ReduceMax<axes = [1]>(x)\ny = Squeeze"
        ),
    )
    newer = convert_opset(model, 13)
    assert opset_of(newer) == 13
    assert same(model, newer, x=random(2, 3))


def test_the_opset_that_brought_an_attribute_is_named_not_the_last_that_changed_the_operator():
    model = at(21, "g (float[4] x) => (float[2,2] y) { y = Reshape<allowzero = 1>(x, s) }", s=SHAPE)
    with pytest.raises(ExportError, match="is new in 14"):
        convert_opset(model, 13)


@pytest.mark.slow
@pytest.mark.parametrize("given", range(13, 22))
def test_random_graphs_go_to_every_opset_from_13_to_21_or_name_what_is_in_the_way(given):
    for seed in range(12):
        model = Growing(seed, opset=given).grow(1 + seed % 8).model()
        for wanted in range(13, 22):
            if wanted < 14 and "HardSwish" in operators(model):
                with pytest.raises(ExportError, match="HardSwish"):
                    convert_opset(model, wanted)
                continue
            other = convert_opset(model, wanted)
            assert opset_of(other) == wanted
            onnx.checker.check_model(other, full_check=True)
            assert_same_function(model, other, seed, f"seed {seed}, {given} to {wanted}")
