"""Padding inside the convolution, judged by ONNX Runtime without optimization."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.rewrites.fold_pad import fold_pad

from .growing import assert_same_function
from .networks import graph, operators, random

AROUND = st.integers(0, 2)


def padded(pads, conv="Conv(p, w)", mode="constant", value="", size=None, groups=1):
    made = size or [1, 4, *(5 + pads[i] + pads[4 + i] - 2 for i in (2, 3))]
    constants = {"v": np.array(float(value or 0), np.float32)} if value else {}
    return graph(
        f'g (float[1,2,5,5] x) => (float{made} y) {{ p = Pad<mode = "{mode}">(x, pads'
        f"{', v' if value else ''})\ny = {conv} }}",
        pads=np.array(pads),
        w=random(4, 2 // groups, 3, 3),
        **constants,
    )


@settings(max_examples=30, deadline=None)
@given(a=AROUND, b=AROUND, c=AROUND, d=AROUND, own=st.integers(0, 1), value=st.booleans())
def test_zeros_around_the_picture_become_the_padding_of_the_convolution(a, b, c, d, own, value):
    pads = [0, 0, a, b, 0, 0, c, d]
    size = [1, 4, 3 + a + c + 2 * own, 3 + b + d + 2 * own]
    conv = f"Conv<pads = [{own}, {own}, {own}, {own}]>(p, w)"
    model = padded(pads, conv, value="0.0" if value else "", size=size)
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Conv"]
    assert_same_function(model, cleaned)


@pytest.mark.parametrize(
    "model",
    [
        padded([0, 0, 1, 1, 0, 0, 1, 1], mode="reflect"),
        padded([0, 0, 1, 1, 0, 0, 1, 1], value="0.5"),
        padded([0, 0, 1, 1, 0, 0, 1, -1]),
        padded([1, 0, 1, 1, 0, 0, 1, 1], size=[2, 4, 5, 5]),
        padded([0] * 8, 'Conv<auto_pad = "SAME_UPPER">(p, w)', size=[1, 4, 5, 5]),
    ],
    ids=["reflected", "not zero", "negative", "of the batch", "derived"],
)
def test_any_other_padding_stays_a_pad(model):
    assert fold_pad(ir.from_proto(model)) == 0


def test_a_padding_that_others_read_stays():
    model = graph(
        "g (float[1,2,5,5] x) => (float[1,4,5,5] y, float[1,2,7,7] z) {"
        "p = Pad(x, pads)\ny = Conv(p, w)\nz = Relu(p) }",
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        w=random(4, 2, 3, 3),
    )
    assert fold_pad(ir.from_proto(model)) == 0
