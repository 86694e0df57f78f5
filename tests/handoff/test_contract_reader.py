"""The stand-alone reader of contract.json: its integers are onnxruntime's, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handoff.test_c_header import linear
from handoff.test_contract import exported, image_model, of
from onnxq.handoff.runner.contract import Contract, ContractError, load
from onnxq.store import save_record

SHAPE = (1, 4, 4, 4)


def reader(scale=0.02, point=17, domain=(-1.0, 2.0), type_=np.int8):
    """The contract of a quantizer and a dequantizer, as it is read from its JSON."""
    known = of(image_model(scale, point, type_), None, exported(domain))
    return Contract(known.model_dump(mode="json"))


def real(value, shape=SHAPE):
    return np.full(shape, value, np.float32)


def test_it_reads_what_the_hand_off_writes(tmp_path):
    written = of(image_model(0.02, 17), None, exported((-1.0, 2.0)))
    save_record(written, tmp_path / "contract.json")
    known = load(tmp_path)
    assert [*known.inputs, *known.outputs] == ["x", "y"]
    assert known.inputs["x"] == written.inputs[0].model_dump(mode="json")
    with pytest.raises(ContractError, match="no contract"):
        load(tmp_path / "elsewhere")


@pytest.mark.parametrize("point", [np.int8(-128), np.int8(17), np.uint8(0), np.uint8(113)])
@settings(deadline=None, max_examples=5)
@given(scale=st.floats(2**-20, 2.0**10, width=32), seed=st.integers(0, 2**32 - 1))
def test_integers_and_reals_are_those_of_onnxruntime(point, scale, seed):
    known = reader(scale, point, None, type(point))
    steps = np.random.default_rng(seed).normal(0, 200, (20, *SHAPE)).astype(np.float32)
    reals = np.concatenate([steps, np.rint(steps) + np.float32(0.5)]) * np.float32(scale)
    integers = known.quantize("x", reals)
    wanted = linear("QuantizeLinear", scale, point, reals.ravel())
    assert integers.dtype == point.dtype
    np.testing.assert_array_equal(integers.ravel(), wanted)
    back = linear("DequantizeLinear", scale, point, wanted)
    np.testing.assert_array_equal(known.dequantize("y", integers).ravel(), back)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.float64(0.5), "is float64; the model takes float32"),
        (np.uint8(3), "is uint8; the model takes float32"),
        (np.float32(2.5), "holds values from 2.5 to 2.5; declared are"),
        (np.float32(np.inf), "holds infinities"),
        (np.float32(np.nan), "holds NaN"),
    ],
)
def test_what_the_model_may_not_be_fed_is_refused(value, says):
    with pytest.raises(ContractError, match=says):
        reader().check("x", np.full(SHAPE, value))


def test_a_number_that_is_no_array_is_refused_in_words():
    with pytest.raises(ContractError, match="`x` is int64; the model takes float32"):
        reader().check("x", 1)


@pytest.mark.parametrize("shape", [(4, 4, 4), (1, 4, 4, 5), (2, 4, 4, 4), (1, 1, 4, 4, 4), ()])
def test_another_shape_is_refused(shape):
    with pytest.raises(ContractError, match=r"has shape .*, not \(1, 4, 4, 4\)"):
        reader().check("x", real(0.5, shape))


def test_both_ends_of_the_domain_are_inside_whatever_float32_makes_of_them():
    known = reader(domain=(-0.1, 0.1))
    for end in (-0.1, 0.1):
        known.check("x", real(end))
        with pytest.raises(ContractError, match="declared"):
            known.check("x", np.nextafter(real(end), np.float32(2 * end)))


def test_values_outside_the_domain_saturate_where_that_is_asked_for():
    known = reader()
    for value, integer in ((1e9, 127), (np.inf, 127), (-np.inf, -128)):
        with pytest.raises(ContractError):
            known.quantize("x", real(value))
        assert (known.quantize("x", real(value), any_domain=True) == integer).all()
    with pytest.raises(ContractError, match="NaN"):
        known.quantize("x", real(np.nan), any_domain=True)


def test_several_samples_are_quantized_at_once_and_torn_ones_refused():
    assert reader().quantize("x", real(0.5, (7, *SHAPE))).shape == (7, *SHAPE)
    for shape in ((4, 4, 4), (7, 1, 4, 4, 5)):
        with pytest.raises(ContractError, match="has shape"):
            reader().quantize("x", real(0.5, shape))


def test_d5_14_integers_read_as_floats_are_refused():
    with pytest.raises(ContractError, match="`y` is float32; its integers are int8"):
        reader().dequantize("y", real(3))
    with pytest.raises(ContractError, match="`y` is uint8"):
        reader().dequantize("y", np.zeros(SHAPE, np.uint8))
    with pytest.raises(ContractError, match="has shape"):
        reader().dequantize("x", np.zeros(10_000, np.int8))


def test_a_value_without_an_integer_form_says_why():
    known = Contract(
        {"inputs": [{"name": "t", "quantization": None, "note": "feed it as it is"}], "outputs": []}
    )
    with pytest.raises(ContractError, match="no integer form: feed it as it is"):
        known.quantize("t", real(0))
    with pytest.raises(ContractError, match="no input or output is called `x`; there are: t"):
        known.check("x", real(0))


@pytest.mark.parametrize(("scale", "divisor"), [(1 / 255, 255), (0.003445, 255), (1.0, 1)])
def test_picture_bytes_become_what_onnxruntime_makes_of_them(scale, divisor):
    known = reader(scale, -128, (0.0, 255.0 / divisor))
    picture = np.random.default_rng(0).integers(0, 256, (2, 3), np.uint8)
    wanted = linear(
        "QuantizeLinear", scale, np.int8(-128), picture.ravel().astype(np.float32) / divisor
    )
    np.testing.assert_array_equal(known.from_bytes("x", picture).ravel(), wanted)
    with pytest.raises(ContractError, match="not made of picture bytes"):
        known.from_bytes("x", picture.astype(np.float32))


def test_an_input_that_is_no_picture_takes_no_bytes():
    with pytest.raises(ContractError, match="not made of picture bytes"):
        reader(domain=(-1.0, 2.0)).from_bytes("x", np.zeros(3, np.uint8))


def minus_128(picture):
    return picture.astype(int) - 128


def test_d5_13_a_byte_minus_128_is_caught_where_the_scale_is_not_one_over_255():
    reader(1 / 255, -128, (0.0, 1.0)).refuse_wrong_bytes("x", minus_128)
    with pytest.raises(ContractError) as caught:
        reader(0.003445, -128, (0.0, 1.0)).refuse_wrong_bytes("x", minus_128)
    assert "The scale is 0.003444" in str(caught.value)
    assert "black to white is seen as 0.878 of what it is" in str(caught.value)


def test_bytes_that_are_taken_as_signed_are_caught():
    known = reader(1 / 255, -128, (0.0, 1.0))
    with pytest.raises(
        ContractError, match="256 of 256 bytes of `x` become another integer: byte 0"
    ):
        known.refuse_wrong_bytes("x", lambda picture: picture.view(np.int8))
    with pytest.raises(ContractError, match="integers came of 256 bytes"):
        known.refuse_wrong_bytes("x", lambda picture: minus_128(picture)[:3])
