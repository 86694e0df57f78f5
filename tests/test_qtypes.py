import math

import ml_dtypes
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.qtypes import AffineParameters, IntType, Range

numbers = st.floats(-1e30, 1e30)


@pytest.mark.parametrize("type_", list(IntType))
def test_integer_types_have_the_limits_that_numpy_and_onnx_give_them(type_):
    of_onnx = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(type_.name))
    limits = ml_dtypes.iinfo(of_onnx)
    assert (type_.qmin, type_.qmax, type_.bits) == (limits.min, limits.max, limits.bits)


@given(numbers, numbers)
def test_a_range_made_of_any_two_numbers_holds_them_and_zero(a, b):
    low, high = min(a, b), max(a, b)
    range_ = Range.including_zero(low, high)
    assert range_.low <= min(low, 0) <= max(high, 0) <= range_.high


@given(numbers, numbers, numbers, numbers)
def test_a_union_holds_both_and_nothing_more(a, b, c, d):
    one, two = Range(-abs(a), abs(b)), Range(-abs(c), abs(d))
    both = one.union(two)
    assert (both.low, both.high) == (min(one.low, two.low), max(one.high, two.high))


@given(numbers, numbers, numbers, numbers)
def test_a_clamped_range_still_holds_zero_and_never_grows(a, b, c, d):
    range_ = Range(-abs(a), abs(b))
    clamped = range_.clamped(min(c, d), max(c, d))
    assert range_.low <= clamped.low <= 0 <= clamped.high <= range_.high


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 2.0), (-2.0, -1.0), (math.nan, 1.0), (-math.inf, 1.0), (0.0, math.inf)]
)
def test_a_range_without_zero_or_without_end_cannot_be_made(low, high):
    with pytest.raises(ValueError, match="a range must"):
        Range(low, high)


def test_parameters_know_the_real_values_of_their_first_and_last_integer():
    assert AffineParameters(0.5, -128, IntType.INT8).range == (0.0, 127.5)
    assert AffineParameters(0.5, 0, IntType.UINT8).range == (0.0, 127.5)
