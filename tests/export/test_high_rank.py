"""Chains of high rank in four dimensions, judged by ONNX Runtime without optimization."""

from math import prod

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.high_rank import lower_ranks
from onnxq.export.rewrites.high_rank_transpose import lower_transposes

from .growing import applied, assert_same_function
from .networks import graph, operators, random


def largest_rank(model: onnx.ModelProto) -> int:
    """Of all that the graph computes."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    made = [*inferred.value_info, *inferred.output]
    return max(len(value.type.tensor_type.shape.dim) for value in made)


def between(dims, body: str, made, **constants):
    """``x`` of two dimensions, seen as ``dims``, through ``body`` (a → b), and as two again."""
    columns = prod(made) // 2
    return graph(
        f"g (float[2,{prod(dims) // 2}] x) => (float[2,{columns}] y) {{"
        f"a = Reshape(x, s)\n{body}\ny = Reshape(b, t) }}",
        s=np.array(dims),
        t=np.array([2, columns]),
        **constants,
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_transpose_of_any_rank_needs_no_more_than_four_dimensions(data):
    rank = data.draw(st.integers(5, 8))
    dims = [2, *data.draw(st.lists(st.integers(1, 3), min_size=rank - 1, max_size=rank - 1))]
    perm = data.draw(st.permutations(range(rank)))
    made = [dims[axis] for axis in perm]
    model = between(dims, f"b = Transpose<perm = {list(perm)}>(a)", made)
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert largest_rank(cleaned) <= 4
    assert_same_function(model, cleaned)
    assert lower_transposes(ir.from_proto(cleaned)) == 0


def test_neighbours_that_move_together_are_one_transpose():
    """The patches of the heart-rate network: frames, regions and both axes of pixels stay."""
    model = between([2, 4, 3, 5, 5, 3], "b = Transpose<perm = [0, 1, 2, 5, 3, 4]>(a)", [2 * 900])
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert operators(cleaned) == ["Reshape", "Transpose", "Reshape"]
    assert largest_rank(cleaned) == 3
    assert_same_function(model, cleaned)


def test_a_chain_that_moves_no_element_is_a_view():
    model = between([2, 1, 3, 1, 5, 1], "b = Transpose<perm = [1, 0, 2, 5, 4, 3]>(a)", [2, 15])
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert operators(cleaned) == ["Identity"]


def test_a_transpose_of_the_input_itself_is_the_hosts():
    model = graph(
        "g (float[1,2,3,4,5,3] x) => (float[6,3,20] y) {"
        "a = Transpose<perm = [0, 1, 2, 5, 3, 4]>(x)\ny = Reshape(a, s) }",
        s=np.array([6, 3, 20]),
    )
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert operators(cleaned) == ["Transpose", "Reshape"]


def test_two_free_dimensions_are_too_many_for_a_view():
    model = graph(
        "g (float[n,m,2,3,2,2] x) => (float[m,n,3,2,2,2] y) {"
        "a = Relu(x)\ny = Transpose<perm = [1, 0, 3, 2, 5, 4]>(a) }"
    )
    assert lower_ranks(ir.from_proto(onnx.shape_inference.infer_shapes(model))) == 0


def test_one_free_dimension_is_kept_free():
    model = graph(
        "g (float[n,24] x) => (float[n,24] y) { a = Reshape(x, s)\n"
        "b = Transpose<perm = [0, 3, 1, 4, 2]>(a)\ny = Reshape(b, t) }",
        s=np.array([-1, 2, 3, 2, 2]),
        t=np.array([-1, 24]),
    )
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert largest_rank(cleaned) <= 4
    assert_same_function(model, cleaned)


BODIES = {
    "pointwise": ("b = Sigmoid(a)", [2, 3, 4, 2, 2]),
    "bounds": ("b = Clip(a, low, high)", [2, 3, 4, 2, 2]),
    "per axis": ("b = Mul(a, v)", [2, 3, 4, 2, 2]),
    "from the left": ("b = Sub(k, a)", [2, 3, 4, 2, 2]),
    "softmax": ("b = Softmax<axis = 2>(a)", [2, 3, 4, 2, 2]),
    "last": ("b = Softmax(a)", [2, 3, 4, 2, 2]),
    "sum": ("b = ReduceSum(a, axes)", [2, 1, 1, 2, 2]),
    "mean": ("b = ReduceMean<axes = [2, -2], keepdims = 0>(a)", [2, 3, 2]),
    "pool": ("b = GlobalAveragePool(a)", [2, 3, 1, 1, 1]),
    "slice": ("b = Slice(a, start, end, which)", [2, 3, 2, 2, 2]),
    "gather": ("b = Gather<axis = 1>(a, one)", [2, 4, 2, 2]),
    "concat": ("r = Relu(a)\nb = Concat<axis = -3>(a, r)", [2, 3, 8, 2, 2]),
    "split": ("p, q = Split<axis = 2>(a)\nb = Add(p, q)", [2, 3, 2, 2, 2]),
    "product": ("b = MatMul(a, m)", [2, 3, 4, 2, 5]),
    "with itself": ("c = Transpose<perm = [0, 1, 2, 4, 3]>(a)\nb = MatMul(a, c)", [2, 3, 4, 2, 2]),
    "where": ("b = Where(mask, a, v)", [2, 3, 4, 2, 2]),
}
CONSTANTS = {
    "low": np.array(-0.2, np.float32),
    "high": np.array(0.3, np.float32),
    "v": random(3, 1, 1, 1),
    "k": random(2, 2),
    "m": random(2, 5),
    "axes": np.array([1, -3]),
    "start": np.array([1]),
    "end": np.array([3]),
    "which": np.array([2]),
    "one": np.array(1),
    "mask": np.arange(4).reshape(4, 1, 1) % 2 == 0,
}


@pytest.mark.parametrize("name", BODIES)
def test_operators_on_five_dimensions_work_on_four(name):
    body, made = BODIES[name]
    words = set(body.replace("(", " ").replace(")", " ").replace(",", " ").split())
    used = {key: array for key, array in CONSTANTS.items() if key in words}
    model = between([2, 3, 4, 2, 2], body, made, **used)
    assert largest_rank(model) == 5
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert largest_rank(cleaned) <= 4
    assert_same_function(model, cleaned)


def test_views_of_one_value_of_high_rank_begin_where_it_began():
    model = graph(
        "g (float[1,4,18] x) => (float[4,6] y) { a = Reshape(x, s)\n"
        "q = Gather<axis = 2>(a, zero)\nk = Gather<axis = 2>(a, one)\n"
        "v = Gather<axis = 2>(a, two)\n"
        "h = Add(q, k)\nm = Mul(h, v)\ny = Reshape(m, t) }",
        s=np.array([1, 4, 3, 2, 3]),
        t=np.array([4, 6]),
        **{name: np.array(i) for i, name in enumerate(("zero", "one", "two"))},
    )
    cleaned, _ = clean(model, rewrites=("lower ranks",))
    assert largest_rank(cleaned) <= 4
    assert_same_function(model, cleaned)


def test_axes_that_a_broadcast_treats_in_turns_are_left():
    model = between([2] * 6, "b = Mul(a, v)", [2] * 6, v=random(2, 1, 2, 1, 2, 1))
    lowered = applied(model, lower_ranks)
    assert largest_rank(lowered) == 6
