"""The arithmetic, judged by ONNX's own reference implementation and by what must hold for it."""

import numpy as np
import onnx.parser
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from onnxq.affine import (
    SMALLEST_SCALE,
    dequantize,
    parameters_of_range,
    powers_of_two_above,
    quantize,
    symmetric_weight_scales,
)
from onnxq.qtypes import AffineParameters, IntType, Range

EIGHT_BITS = [IntType.INT8, IntType.UINT8]
reals = st.floats(-1e6, 1e6, width=32)
arrays = hnp.arrays(np.float32, st.integers(1, 30), elements=reals)
steps = st.floats(2**-10, 1024, width=32)
ranges = st.builds(Range.including_zero, st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))


def pinned(low: float, high: float, type_: IntType) -> AffineParameters:
    """Parameters of a declared domain."""
    return parameters_of_range(Range.including_zero(low, high), type_, symmetric=False)


def onnx_quantized(values, scale, zero_point, type_):
    """``QuantizeLinear`` then ``DequantizeLinear`` by onnx.reference."""
    evaluator = ReferenceEvaluator(
        onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 19]>
        g (float[N] x, float s, {type_} z) => ({type_}[N] q, float[N] y) {{
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }}""")
    )
    scale, zero_point = np.float32(scale), np.array(zero_point, type_.value)
    return evaluator.run(None, {"x": values, "s": scale, "z": zero_point})


@settings(max_examples=60, deadline=None)
@given(arrays, steps, st.integers(-128, 127), st.sampled_from(EIGHT_BITS))
def test_integers_are_those_of_the_onnx_operators(values, scale, zero, type_):
    zero_point = zero if type_ is IntType.INT8 else zero + 128
    integers, reals_again = onnx_quantized(values, scale, zero_point, type_)
    ours = quantize(values, scale, zero_point, type_)
    np.testing.assert_array_equal(ours, integers)
    np.testing.assert_array_equal(dequantize(ours, scale, zero_point), reals_again)


def test_a_value_halfway_between_two_steps_goes_to_the_even_one():
    halves = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    integers, _ = onnx_quantized(halves, 1.0, 0, IntType.INT8)
    assert integers.tolist() == [-2, -2, 0, 0, 2, 2]
    assert quantize(halves, 1.0, 0, IntType.INT8).tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("type_", EIGHT_BITS)
def test_values_out_of_range_stop_at_the_last_integer(type_):
    ends = quantize(np.array([-3e38, 3e38], np.float32), 1.0, 0, type_)
    assert ends.tolist() == [type_.qmin, type_.qmax]


@given(ranges, st.sampled_from(EIGHT_BITS), st.booleans())
def test_zero_is_exactly_a_step(range_, type_, symmetric):
    found = parameters_of_range(range_, type_, symmetric=symmetric)
    zero = quantize(np.zeros(1, np.float32), found.scale, found.zero_point, type_)
    assert zero.tolist() == [found.zero_point]
    assert dequantize(zero, found.scale, found.zero_point).tolist() == [0.0]


@given(ranges, st.sampled_from(EIGHT_BITS), st.booleans(), st.floats(0, 1))
def test_values_in_range_move_by_at_most_half_a_step(range_, type_, symmetric, share):
    found = parameters_of_range(range_, type_, symmetric=symmetric)
    value = np.array([range_.low + share * range_.width], np.float32)
    there = quantize(value, found.scale, found.zero_point, type_)
    back = dequantize(there, found.scale, found.zero_point)
    # an end of the range may lie half a step outside, as zero had to move onto the grid
    assert abs(back - value)[0] <= found.scale * (0.5 + 0.5 + 1e-3)
    inside = found.range[0] <= value[0] <= found.range[1]
    assert not inside or abs(back - value)[0] <= found.scale * (0.5 + 1e-3)


@given(ranges, st.sampled_from(EIGHT_BITS))
def test_the_grid_reaches_both_ends_of_the_range_to_half_a_step(range_, type_):
    found = parameters_of_range(range_, type_, symmetric=False)
    slack = found.scale * 0.501
    assert found.range[0] <= range_.low + slack
    assert found.range[1] >= range_.high - slack


@given(ranges)
def test_signed_and_unsigned_parameters_of_one_range_are_128_apart(range_):
    signed = parameters_of_range(range_, IntType.INT8, symmetric=False)
    unsigned = parameters_of_range(range_, IntType.UINT8, symmetric=False)
    assert signed.scale == unsigned.scale
    assert signed.zero_point + 128 == unsigned.zero_point


def test_the_domain_from_0_to_1_has_scale_1_over_255_and_zero_point_minus_128():
    found = pinned(0.0, 1.0, IntType.INT8)
    assert found == AffineParameters(float(np.float32(1 / 255)), -128, IntType.INT8)
    assert pinned(0.0, 1.0, IntType.UINT8).zero_point == 0


def test_a_domain_without_zero_is_widened_to_it():
    assert pinned(30.0, 240.0, IntType.UINT8) == pinned(0.0, 240.0, IntType.UINT8)


@given(ranges)
def test_symmetric_parameters_have_the_middle_as_zero_point(range_):
    assert parameters_of_range(range_, IntType.INT8, symmetric=True).zero_point == 0
    assert parameters_of_range(range_, IntType.UINT8, symmetric=True).zero_point == 128


@pytest.mark.parametrize("width", [0.0, 1e-45, 1e-40, 1e-38])
def test_a_scale_is_never_subnormal(width):
    found = parameters_of_range(Range(0.0, width), IntType.INT8, symmetric=False)
    assert found.scale >= SMALLEST_SCALE
    assert np.float32(found.scale) == found.scale
    scales = symmetric_weight_scales(np.full((2, 3), width, np.float32), 0)
    assert (scales >= SMALLEST_SCALE).all()


def test_a_dead_tensor_keeps_values_that_may_yet_come():
    found = parameters_of_range(Range(0.0, 0.0), IntType.UINT8, symmetric=False)
    assert found.range == pytest.approx((0.0, 1e-4))


# --- powers of two ------------------------------------------------------------------------------

wide = st.floats(-1e9, 1e9) | st.sampled_from([-256.0, -255.0, -128.0, 127.0, 254.0, 255.0, 256.0])
# tensors hold float32; what is far below the smallest scale is no range of theirs
ends = wide.map(lambda end: end if abs(end) > 1e-30 else 0.0)
wide_ranges = st.builds(Range.including_zero, ends, ends)


def is_power_of_two(scale: float) -> bool:
    return np.frexp(scale)[0] == 0.5 and float(np.float32(scale)) == scale


def holds(scale: float, range_: Range, type_: IntType, symmetric: bool) -> bool:
    """Whether some zero point that is allowed puts both ends of the range inside the grid."""
    middle = 128 if type_ is IntType.UINT8 else 0
    allowed = [middle] if symmetric else range(type_.qmin, type_.qmax + 1)
    return any(
        (type_.qmin - zero) * scale <= range_.low and range_.high <= (type_.qmax - zero) * scale
        for zero in allowed
    )


@settings(max_examples=200)
@given(wide_ranges, st.sampled_from(EIGHT_BITS), st.booleans())
def test_a_power_of_two_holds_the_range_and_half_of_it_does_not(range_, type_, symmetric):
    found = parameters_of_range(range_, type_, symmetric=symmetric, power_of_two=True)
    assert is_power_of_two(found.scale)
    low, high = found.range
    assert low <= range_.low <= range_.high <= high
    assert type_.qmin <= found.zero_point <= type_.qmax
    if found.scale > SMALLEST_SCALE and range_.width:
        assert not holds(found.scale / 2, range_, type_, symmetric)


@settings(max_examples=200)
@given(wide_ranges, st.sampled_from(EIGHT_BITS), st.booleans(), st.floats(0, 1))
def test_with_powers_of_two_every_value_moves_by_at_most_half_a_step(
    range_, type_, symmetric, share
):
    found = parameters_of_range(range_, type_, symmetric=symmetric, power_of_two=True)
    value = np.float32([range_.low + share * range_.width, range_.low, range_.high])
    there = quantize(value, found.scale, found.zero_point, type_)
    back = dequantize(there, found.scale, found.zero_point)
    assert (abs(back - value) <= found.scale / 2).all()


@given(st.floats(0, 1e9), st.sampled_from(EIGHT_BITS))
def test_behind_a_relu_a_power_of_two_keeps_zero_at_the_smallest_integer(high, type_):
    found = parameters_of_range(Range(0, high), type_, symmetric=False, power_of_two=True)
    assert found.zero_point == type_.qmin


@given(wide_ranges)
def test_symmetric_powers_of_two_have_the_middle_as_zero_point(range_):
    for type_, middle in ((IntType.INT8, 0), (IntType.UINT8, 128)):
        found = parameters_of_range(range_, type_, symmetric=True, power_of_two=True)
        assert found.zero_point == middle


@pytest.mark.parametrize(
    ("low", "high", "symmetric", "scale", "zero_point"),
    [
        (0.0, 255.0, False, 1.0, -128),
        (0.0, 255.5, False, 2.0, -128),
        (-128.0, 127.0, True, 1.0, 0),
        (-127.0, 128.0, True, 2.0, 0),
        (-127.5, 127.0, False, 1.0, 0),  # 128 steps below zero, 127 above
        (-127.5, 127.5, False, 2.0, -64),  # with steps of 1 it would take 256 of them
        (0.0, 0.0, False, 2.0**-21, -128),  # 1e-4 / 255 = 2**-21.3
    ],
)
def test_powers_of_two_by_hand(low, high, symmetric, scale, zero_point):
    found = parameters_of_range(
        Range(low, high), IntType.INT8, symmetric=symmetric, power_of_two=True
    )
    assert found == AffineParameters(scale, zero_point, IntType.INT8)


@given(hnp.arrays(np.float64, 5, elements=st.floats(SMALLEST_SCALE, 1e9)))
def test_a_scale_becomes_the_next_power_of_two(scales):
    powers = powers_of_two_above(scales)
    assert all(is_power_of_two(power) for power in powers)
    assert (powers >= scales).all()
    assert (powers / 2 < scales).all()
    np.testing.assert_array_equal(powers_of_two_above(powers), powers)


# --- weights ------------------------------------------------------------------------------------

weights = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
    elements=st.floats(-9, 9, width=32),
)


@given(weights, st.integers(-1, 1))
def test_weights_move_by_at_most_half_a_step_of_their_channel_and_never_reach_minus_128(w, axis):
    scales = symmetric_weight_scales(w, axis)
    shape = [1] * w.ndim
    shape[axis] = -1
    by_channel = scales.reshape(shape)
    integers = quantize(w, by_channel, 0, IntType.INT8)
    assert integers.min() >= -127
    back = dequantize(integers, by_channel, 0)
    assert (abs(back - w) <= by_channel * 0.5001).all()


@given(weights)
def test_the_largest_weight_of_a_channel_is_the_last_integer(w):
    scales = symmetric_weight_scales(w, 0)
    largest = np.abs(quantize(w.reshape(len(w), -1), scales[:, None], 0, IntType.INT8)).max(axis=1)
    alive = np.abs(w).reshape(len(w), -1).max(axis=1) > SMALLEST_SCALE * 128
    assert (largest[alive] == 127).all()


def test_a_channel_of_zeros_gets_scale_1():
    w = np.array([[0.0, 0.0], [1.27, 0.0]], np.float32)
    assert symmetric_weight_scales(w, 0).tolist() == [1.0, pytest.approx(0.01)]


@given(weights, st.integers(-1, 1))
def test_weights_with_powers_of_two_are_held_and_half_the_scale_would_not_hold_them(w, axis):
    scales = symmetric_weight_scales(w, axis, power_of_two=True)
    assert all(is_power_of_two(scale) for scale in scales)
    by_channel = np.moveaxis(w, axis, 0).reshape(len(scales), -1)
    largest = np.abs(by_channel).max(axis=1)
    assert (largest <= 127 * scales).all()
    refinable = (largest > 0) & (scales > SMALLEST_SCALE)
    assert (largest[refinable] > 127 * scales[refinable] / 2).all()
    integers = quantize(by_channel, scales[:, None], 0, IntType.INT8)
    assert integers.min() >= -127
    assert (abs(dequantize(integers, scales[:, None], 0) - by_channel) <= scales[:, None] / 2).all()


def test_a_channel_of_zeros_keeps_scale_1_with_powers_of_two():
    assert symmetric_weight_scales(np.zeros((1, 2), np.float32), 0, power_of_two=True) == [1.0]
