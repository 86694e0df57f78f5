"""Expand without Expand, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.expand import drop_expand, expand_to_copies

from .growing import applied, assert_same_function
from .networks import graph, operators, random


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_copies_are_joined_whatever_axes_grow(data):
    shape = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=3))
    more = data.draw(st.lists(st.integers(1, 3), max_size=2))
    made = [*more, *(data.draw(st.integers(1, 10)) if n == 1 else n for n in shape)]
    model = graph(
        f"g (float{shape} x) => (float{made} y) {{ a = Relu(x)\ny = Expand(a, s) }}",
        s=np.array(made),
    )
    cleaned, _ = clean(model, rewrites=("expand to copies",))
    assert "Expand" not in operators(cleaned)
    assert_same_function(model, cleaned)


@pytest.mark.parametrize(("copies", "expected"), [(8, ["Concat"]), (9, ["Tile"])])
def test_a_few_copies_are_a_concat_and_many_a_tile(copies, expected):
    model = graph(
        f"g (float[1,3] x) => (float[{copies},3] y) {{ y = Expand(x, s) }}", s=np.array([copies, 3])
    )
    assert operators(applied(model, expand_to_copies)) == expected


@pytest.mark.parametrize(
    ("call", "made"),
    [("Mul(z, e)", "[2,4,3]"), ("Where(m, e, z)", "[2,4,3]"), ("Sub(e, z)", "[2,4,3]")],
)
def test_what_the_reader_broadcasts_anyway_is_dropped(call, made):
    mask = {"m": np.array([True, False, True])} if "m," in call else {}
    model = graph(
        f"g (float[1,3] x, float[2,4,3] z) => (float{made} y) {{ e = Expand(x, s)\ny = {call} }}",
        s=np.array([2, 4, 3]),
        **mask,
    )
    dropped = applied(model, drop_expand)
    assert operators(dropped) == [call.split("(")[0]]
    assert_same_function(model, dropped)


def test_a_class_token_on_a_batch_of_one_needs_no_expand():
    model = graph(
        "g (float[1,4,3] x) => (float[1,5,3] y) { e = Expand(t, s)\ny = Concat<axis = 1>(e, x) }",
        t=random(1, 1, 3),
        s=np.array([1, -1, -1]),
    )
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([1, 1, 1]), "s"))
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Concat"]
    assert_same_function(model, cleaned)


@pytest.mark.parametrize(
    "body",
    [
        "e = Expand(x, s)\ny = Mul(e, k)",  # without it the product would be smaller
        "e = Expand(x, s)\ny = Softmax(e)",
        "e = Expand(x, s)\na = Mul(e, z)\nb = Softmax(e)\ny = Add(a, b)",
    ],
)
def test_an_expand_that_shapes_the_result_stays(body):
    fed = ", float[2,4,3] z" if "z" in body else ""
    constants = {"k": random(3)} if "k)" in body else {}
    model = onnx.shape_inference.infer_shapes(
        graph(
            f"g (float[1,3] x{fed}) => (float[2,4,3] y) {{ {body} }}",
            s=np.array([2, 4, 3]),
            **constants,
        )
    )
    assert drop_expand(ir.from_proto(model)) == 0


def test_an_expand_to_the_shape_of_another_operand_is_dropped_with_a_free_batch_too():
    model = graph(
        "g (float[1,3] x, float[n,3] z) => (float[n,3] y) {"
        "s = Shape(z)\ne = Expand(x, s)\ny = Add(e, z) }"
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Add"]
    assert_same_function(model, cleaned)


def test_free_dimensions_of_different_names_are_not_the_same():
    model = graph(
        "g (float[m,3] x, float[n,3] z) => (float[k,3] y) {"
        "s = Shape(z)\ne = Expand(x, s)\ny = Mul(e, x) }"
    )
    shaped = onnx.shape_inference.infer_shapes(model, data_prop=True)
    assert drop_expand(ir.from_proto(shaped)) == 0
