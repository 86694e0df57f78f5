"""Negative padding as a Slice, judged by ONNX Runtime without optimization and by numpy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from onnxq.export.rewrites.pad import negative_pad_to_slice
from onnxq.runtime import Session

from .growing import applied, assert_same_function
from .networks import graph, operators


def padded(pads, mode="constant", value="", opset=17, axes=""):
    shape = [1, 2, 5, 6]
    places = [0, 1, 2, 3] if not axes else [2, -1]
    made = list(shape)
    for i, axis in enumerate(places):
        made[axis] += pads[i] + pads[len(places) + i]
    constants = {"p": np.array(pads, np.int64)}
    if value:
        constants["v"] = np.array(0.5, np.float32)
    if axes:
        constants["a"] = np.array(places, np.int64)
    return graph(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float{shape} x) => (float{made} y) {{'
        f'y = Pad<mode = "{mode}">(x, p{value}{axes}) }}',
        **constants,
    )


@settings(max_examples=60, deadline=None)
@given(
    first=st.tuples(st.just(0), st.integers(-1, 1), st.integers(-2, 2), st.integers(-3, 3)),
    last=st.tuples(st.just(0), st.integers(0, 1), st.integers(-2, 2), st.integers(-2, 3)),
    value=st.booleans(),
)
def test_what_is_cut_off_is_sliced_and_what_is_added_is_padded(first, last, value):
    pads = [*first, *last]
    model = padded(pads, value=", v" if value else "")
    rewritten = applied(model, negative_pad_to_slice)
    if min(pads) >= 0:
        assert operators(rewritten) == ["Pad"]
        return
    assert operators(rewritten) == (["Slice", "Pad"] if max(pads) > 0 else ["Slice"])
    assert_same_function(model, rewritten)
    read = {name for node in rewritten.graph.node for name in node.input}
    arrays = [onnx.numpy_helper.to_array(t) for t in rewritten.graph.initializer if t.name in read]
    assert all((array >= 0).all() for array in arrays)


def test_axes_that_are_listed_are_the_ones_that_are_cut():
    model = padded([-1, 2, 0, -3], value=", ", opset=18, axes=", a")
    rewritten = applied(model, negative_pad_to_slice)
    assert operators(rewritten) == ["Slice", "Pad"]
    assert_same_function(model, rewritten)


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_a_padding_that_copies_is_cut_alone_or_left(mode):
    cut = padded([0, 0, -1, 0, 0, 0, 0, -2], mode)
    assert operators(applied(cut, negative_pad_to_slice)) == ["Slice"]
    assert_same_function(cut, applied(cut, negative_pad_to_slice))
    mixed = padded([0, 0, -1, 0, 0, 0, 2, 0], mode)
    assert operators(applied(mixed, negative_pad_to_slice)) == ["Pad"]


@pytest.mark.parametrize("dims", ["[1,n]", "[1,3]"])
def test_an_axis_of_unknown_length_or_with_nothing_left_is_not_cut(dims):
    made = "[1,m]" if "n" in dims else "[1,0]"
    model = graph(
        f"g (float{dims} x) => (float{made} y) {{ y = Pad(x, p) }}", p=np.array([0, -1, 0, -2])
    )
    assert negative_pad_to_slice(ir.from_proto(model)) == 0


@settings(max_examples=20, deadline=None)
@given(before=st.integers(-4, 4), after=st.integers(-4, 4))
def test_numpy_agrees_on_what_a_negative_padding_means(before, after):
    assume(5 + min(before, 0) + min(after, 0) > 0 and min(before, after) < 0)
    x = np.arange(5, dtype=np.float32)
    kept = x[max(-before, 0) : 5 + min(after, 0)]
    expected = np.pad(kept, (max(before, 0), max(after, 0)))
    model = graph(
        f"g (float[5] x) => (float[{len(expected)}] y) {{ y = Pad(x, p) }}",
        p=np.array([before, after]),
    )
    rewritten = applied(model, negative_pad_to_slice)
    got = Session(rewritten.SerializeToString(), optimization="none").run({"x": x})["y"]
    np.testing.assert_array_equal(got, expected)
