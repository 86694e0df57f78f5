"""Statistics on disk are those in memory, to the last bit; other bytes are refused in words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate.archive import decode, encode
from onnxq.calibrate.statistics import Statistics
from onnxq.errors import StoreError

from .collecting import DETAILS, NETS, collected, job, model
from .seen import statistics_of

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=25)
@given(st.lists(st.lists(FINITE, min_size=3, max_size=3), min_size=1, max_size=12), st.booleans())
def test_what_is_read_back_is_what_was_written(rows: list[list[float]], histograms: bool) -> None:
    x = np.array(rows, np.float32)
    statistics = statistics_of({"x": x, "größe/1": -x}, histograms=histograms)
    again = decode(encode(statistics), "s")
    assert encode(again) == encode(statistics)
    assert again.tensors == statistics.tensors
    assert again.blocks == statistics.blocks
    assert again.summaries == statistics.summaries
    np.testing.assert_array_equal(again.lows, statistics.lows)


@pytest.mark.parametrize("detail", DETAILS)
def test_a_tensor_without_elements_comes_back_as_one(detail):
    text = "g (float[1,4] x) => (float[1,0] y) { y = Slice(x, two, two, one) }"
    graph = model(text, two=np.array([2]), one=np.array([1]))
    again = decode(encode(collected(job(graph, detail), {"x": np.ones((2, 4), np.float32)})), "s")
    assert again.of("y").is_empty
    assert again.of("x").high == 1


def test_sums_that_fill_their_width_are_kept():
    largest = np.finfo(np.float32).max
    statistics = statistics_of({"x": np.array([[largest, -largest, largest]])})
    again = decode(encode(statistics), "s").of("x").summary
    assert again is not None
    assert again == statistics.of("x").summary
    assert again.mean == pytest.approx(float(largest) / 3)


@pytest.fixture(scope="module")
def written() -> bytes:
    graph, inputs = NETS["cnn"]
    return encode(collected(job(graph, "histograms"), inputs))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_refused(written, share):
    with pytest.raises(StoreError, match=r"(?s)out/s: is damaged.*onnxq calibrate"):
        decode(written[: int(len(written) * share)], "out/s")


@pytest.mark.parametrize("data", [b"", b"{}", b"\0" * 64, b"\x02\0\0\0\0\0\0\0{}", b"\xff" * 99])
def test_a_file_of_something_else_is_refused(data):
    with pytest.raises(StoreError, match="is damaged"):
        decode(data, "s")


def test_a_file_of_another_format_is_refused(written):
    assert written.count(b"statistics 1") == 1
    with pytest.raises(StoreError, match="format statistics 9"):
        decode(written.replace(b"statistics 1", b"statistics 9"), "s")


def test_equal_statistics_give_equal_bytes():
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    one, other = (statistics_of({"x": x, "y": x}) for _ in range(2))
    assert encode(one) == encode(other)
    assert encode(one) != encode(statistics_of({"y": x, "x": x}))
    assert isinstance(decode(encode(one), "s"), Statistics)
