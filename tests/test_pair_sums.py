"""16-bit sums of pairs, held against every product there is."""

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.pair_sums import (
    INT16_MAX,
    INT16_MIN,
    SAFE_WEIGHT,
    at_risk,
    extreme_sums,
    has_pair_sums,
    pairs_of,
    reduction_rows,
)

INT8 = st.integers(-128, 127)


@given(INT8, INT8, st.integers(0, 255), st.integers(0, 255))
def test_a_pair_is_at_risk_if_some_activations_leave_int16(first, second, one_end, other_end):
    low, high = sorted((one_end, other_end))
    every = np.arange(low, high + 1)
    sums = first * every[:, np.newaxis] + second * every
    leaves = bool((sums > INT16_MAX).any() or (sums < INT16_MIN).any())
    assert at_risk(np.array([[first, second]], np.int8), low, high).tolist() == [leaves]
    bounds = (np.full((1, 1), end, np.int32) for end in (low, high))
    smallest, largest = extreme_sums(pairs_of(np.array([[first, second]], np.int8)), *bounds)
    assert (smallest.item(), largest.item()) == (sums.min(), sums.max())


def test_no_two_safe_weights_leave_int16_in_whatever_order():
    values = np.arange(-SAFE_WEIGHT, SAFE_WEIGHT + 1, dtype=np.int8)
    pairs = np.array(list(itertools.product(values, values)), np.int8)
    assert not at_risk(pairs).any()
    assert at_risk(np.array([[SAFE_WEIGHT + 1, SAFE_WEIGHT]], np.int8)).all()


def test_an_odd_last_weight_stands_alone():
    assert not at_risk(np.array([[-128], [127]], np.int8)).any()
    assert at_risk(np.array([[0, 0, 100, 100], [0, 100, 100, 0]], np.int8)).tolist() == [
        True,
        False,
    ]


def node(op_type, shape, **attributes):
    inputs = [ir.val("x"), ir.val("w", shape=shape)]
    wrapped = [ir.AttrInt64(name, value) for name, value in attributes.items()]
    return ir.Node("", op_type, inputs, wrapped)


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes", "sums_in_pairs"),
    [
        ("Conv", (8, 3, 3, 3), {}, True),
        ("Conv", (8, 1, 3, 3), {"group": 8}, False),
        ("Conv", (16, 1, 3, 3), {"group": 8}, True),
        ("Conv", (8, 4, 1), {"group": 2}, True),
        ("Gemm", (8, 4), {}, True),
        ("MatMul", (4, 8), {}, True),
        ("ConvTranspose", (4, 8, 2, 2), {}, False),
        ("Add", (4,), {}, False),
    ],
)
def test_what_sums_in_pairs(op_type, shape, attributes, sums_in_pairs):
    assert has_pair_sums(node(op_type, shape, **attributes)) is sums_in_pairs


@pytest.mark.parametrize(
    ("op_type", "shape", "attributes", "first"),
    [
        ("Conv", (2, 3, 2, 2), {}, [0, 4, 8, 1, 5, 9]),  # input channels vary fastest
        ("Gemm", (3, 4), {"transB": 1}, [0, 1, 2, 3]),
        ("Gemm", (3, 4), {}, [0, 4, 8]),
        ("MatMul", (3, 4), {}, [0, 4, 8]),
        ("MatMul", (2, 3, 4), {}, [0, 4, 8]),
        ("MatMul", (4,), {}, [0, 1, 2, 3]),
    ],
)
def test_rows_are_what_is_summed_over_in_the_kernels_order(op_type, shape, attributes, first):
    weight = np.arange(np.prod(shape)).astype(np.int8).reshape(shape)
    rows = reduction_rows(node(op_type, shape, **attributes), weight)
    assert rows[0][: len(first)].tolist() == first
    assert rows.size == weight.size
