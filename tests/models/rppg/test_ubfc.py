import cv2
import numpy as np
import pytest
from scipy import signal

from models.rppg import patches
from models.rppg.patches import cached_patches, cut_patches, read_patches
from models.rppg.ubfc import read_ground_truth, read_recording, subject_folders
from models.rppg.windows import choose_windows, samples_of
from onnxq.errors import DataError


def test_label_is_near_the_true_heart_rate(subject, reading):
    truth = read_ground_truth(subject / "ground_truth.txt")
    assert reading.synthetic
    assert np.abs(reading.bpm - truth.bpm).mean() < 2


def test_skin_pulses_at_the_true_heart_rate(subject, reading):
    truth = read_ground_truth(subject / "ground_truth.txt").bpm.mean()
    colour = np.log(reading.patches.pixels.mean(axis=(1, 2, 3), dtype=np.float64))
    skin = signal.detrend(colour[:, 1] - colour[:, 0])
    hertz, power = signal.periodogram(skin, fs=30, window="hann", nfft=4096)
    band = (hertz > 0.7) & (hertz < 3)
    assert abs(60 * hertz[band][power[band].argmax()] - truth) < 6


def test_kept_reading_equals_fresh_reading(subject, reading):
    fresh, kept = read_patches(subject / "vid.avi"), reading.patches
    assert isinstance(kept.pixels, np.memmap)
    np.testing.assert_array_equal(kept.pixels, fresh.pixels)
    np.testing.assert_array_equal(kept.row_of_frame, fresh.row_of_frame)


def test_second_reading_looks_for_no_face(tmp_path, monkeypatch):
    video = tmp_path / "subject1" / "vid.avi"
    video.parent.mkdir()
    write_grey_video(video, 3)
    cached_patches(video, tmp_path)
    monkeypatch.delattr(patches, "read_patches")
    assert len(cached_patches(video, tmp_path).row_of_frame) == 3


def test_changed_video_is_read_again(tmp_path):
    video = tmp_path / "subject1" / "vid.avi"
    video.parent.mkdir()
    write_grey_video(video, 3)
    assert len(cached_patches(video, tmp_path / "cache").row_of_frame) == 3
    write_grey_video(video, 5)
    assert len(cached_patches(video, tmp_path / "cache").row_of_frame) == 5


def write_grey_video(path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 30, (80, 60))
    for _ in range(frames):
        writer.write(np.full((60, 80, 3), 120, np.uint8))
    writer.release()


def test_video_without_a_face_is_counted_and_gives_no_patch(subject, tmp_path):
    folder = tmp_path / "subject9"
    folder.mkdir()
    write_grey_video(folder / "vid.avi", 240)
    (folder / "ground_truth.txt").write_text((subject / "ground_truth.txt").read_text())
    recording = read_recording(folder, tmp_path / "cache")
    assert recording.patches.missing == 240
    assert recording.patches.pixels.shape == (0, 3, 36, 36, 3)
    windows = choose_windows(recording, stride=5, hop=8)
    assert len(windows.starts) == 0
    assert windows.faceless > 0
    with pytest.raises(DataError, match="no usable window"):
        samples_of("nobody", [recording], 5, 8)


def test_regions_lie_where_the_fractions_say():
    frame = np.zeros((100, 100, 3), np.uint8)
    frame[5:25, 20:80] = (250, 0, 0)
    frame[35:65, 5:30] = (0, 250, 0)
    frame[35:65, 70:95] = (0, 0, 250)
    patches = cut_patches(frame, (0, 0, 100, 100))
    for region, patch in enumerate(patches):
        assert (patch == 250 * np.eye(3, dtype=np.uint8)[region]).all()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda rows: rows[:2], "2 lines"),
        (lambda rows: [rows[0].replace("e", "x", 1), *rows[1:]], "pulse wave"),
        (lambda rows: ["nan " + rows[0].split(" ", 1)[1], *rows[1:]], "value 0 is nan"),
        (lambda rows: [*rows[:2], " ".join(rows[2].split()[::-1])], "backwards"),
        (lambda rows: [rows[0] + " 1.0", *rows[1:]], "same number"),
        (lambda rows: [" ".join(row.split()[:10]) for row in rows], "at least 60"),
    ],
)
def test_damaged_ground_truth_is_named(subject, tmp_path, damage, message):
    rows = (subject / "ground_truth.txt").read_text().splitlines()
    path = tmp_path / "ground_truth.txt"
    path.write_text("\n".join(damage(rows)))
    with pytest.raises(DataError, match=message) as caught:
        read_ground_truth(path)
    assert str(path) in str(caught.value)


def test_truncated_video_is_refused(subject, tmp_path):
    folder = tmp_path / "subject2"
    folder.mkdir()
    write_grey_video(folder / "vid.avi", 100)
    (folder / "ground_truth.txt").write_text((subject / "ground_truth.txt").read_text())
    with pytest.raises(DataError, match="100 frames, but 240 samples"):
        read_recording(folder, tmp_path / "cache")


@pytest.mark.parametrize("content", [None, b"no video"])
def test_video_that_cannot_be_opened_is_named(tmp_path, content):
    video = tmp_path / "vid.avi"
    if content is not None:
        video.write_bytes(content)
    with pytest.raises(DataError, match=r"vid\.avi"):
        cached_patches(video, tmp_path / "cache")


def test_damaged_cache_is_named(tmp_path):
    video = tmp_path / "vid.avi"
    write_grey_video(video, 3)
    cached_patches(video, tmp_path)
    for file in tmp_path.glob("*.npy"):
        file.write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        cached_patches(video, tmp_path)


def test_subjects_come_in_the_order_of_their_numbers(tmp_path):
    for name in ("subject10", "subject9", "subject1", "other"):
        (tmp_path / name).mkdir()
    assert [f.name for f in subject_folders(tmp_path)] == ["subject1", "subject9", "subject10"]
