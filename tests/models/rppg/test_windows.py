import numpy as np
import pytest
from conftest import recording
from hypothesis import given
from hypothesis import strategies as st

from models.rppg.windows import choose_windows, samples_of
from onnxq.errors import DataError


@given(
    frames=st.integers(1, 150),
    stride=st.integers(1, 12),
    hop=st.integers(1, 20),
    faceless=st.sets(st.integers(0, 149), max_size=4),
)
def test_windows_are_exactly_those_that_fit_and_touch_a_face(frames, stride, hop, faceless):
    lost = tuple(frame for frame in faceless if frame < frames)
    one = recording(frames, faceless=lost)
    fitting = [s for s in range(0, frames, hop) if s + 7 * stride < frames]
    faced = [s for s in fitting if not {s + stride * k for k in range(8)} & set(lost)]
    windows = choose_windows(one, stride, hop)
    assert windows.starts.tolist() == faced
    assert windows.faceless == len(fitting) - len(faced)
    assert windows.implausible == 0
    np.testing.assert_array_equal(windows.bpm, one.bpm[windows.starts + 4 * stride])


def test_rows_hold_the_frames_of_their_window_and_never_black_ones():
    recordings = [recording(100, "subject1", 1, (20,)), recording(90, "subject2", 2)]
    samples = samples_of("two", recordings, stride=3, hop=5)
    column = samples.inputs["input"]
    assert column.shape == (len(samples), 8, 3, 36, 36, 3)
    assert set(samples.groups) == {"subject1", "subject2"}
    second = [i for i, group in enumerate(samples.groups) if group == "subject2"]
    window = column[second[2]]
    assert window.dtype == np.float32
    expected = recordings[1].patches.pixels[10 + 3 * np.arange(8)]
    np.testing.assert_array_equal(window, expected.astype(np.float32) / np.float32(255))
    assert all(column[i].min() > 0 for i in range(len(samples)))


@pytest.mark.parametrize(
    "bpm", [np.full(60, np.nan), np.full(60, 39.0), np.full(60, 161.0), np.tile([50.0, 90.0], 30)]
)
def test_implausible_heart_rates_are_left_out_and_counted(bpm):
    good = recording(60)
    bad = type(good)("subject2", good.patches, bpm, True)
    windows = choose_windows(bad, 5, 5)
    assert (len(windows.starts), windows.implausible) == (0, 5)
    samples = samples_of("both", [good, bad], 5, 5)
    assert set(samples.groups) == {"subject1"}
    assert any(note.startswith("5 windows left out") for note in samples.notes)


@pytest.mark.parametrize(("stride", "hop"), [(0, 1), (1, 0), (-2, 3)])
def test_stride_and_hop_must_be_positive(stride, hop):
    with pytest.raises(DataError, match="1 or more"):
        choose_windows(recording(), stride, hop)
