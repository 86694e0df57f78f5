import json

import cv2
import numpy as np
import pytest

from models.rppg import synthesize
from models.rppg.scene import FPS, draw_traits, frames
from models.rppg.splits import SPLITS
from models.rppg.synthesize import Job, jobs, write_subject
from models.rppg.ubfc import read_ground_truth, subject_folders
from onnxq.errors import StoreError


def test_subjects_and_seeds_of_the_splits_are_disjoint(tmp_path):
    every = [job for split in SPLITS for job in jobs(tmp_path, split)]
    assert [len(jobs(tmp_path, split)) for split in SPLITS] == [16, 8, 12]
    assert len({job.seed for job in every}) == len({job.folder.name for job in every}) == 36
    assert not {job.seed for job in every} & {job.seed for job in jobs(tmp_path, "test", seed=1)}


def test_every_split_covers_slow_and_fast_hearts(tmp_path):
    for split in SPLITS:
        means = [job.mean_bpm for job in jobs(tmp_path, split)]
        assert min(means) < 65
        assert max(means) > 135


def test_subject_has_the_format_of_ubfc_and_says_that_it_is_synthetic(subject):
    truth = read_ground_truth(subject / "ground_truth.txt")
    assert len(truth.ppg) == 240
    np.testing.assert_allclose(np.diff(truth.seconds), 1 / 30, atol=1e-6)
    assert "pulse" in json.loads((subject / "synthetic.json").read_text())
    video = cv2.VideoCapture(str(subject / "vid.avi"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 240
    assert video.get(cv2.CAP_PROP_FPS) == pytest.approx(30)
    video.release()


def test_same_seed_gives_the_same_subject_and_another_seed_another():
    def first_frame(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return next(frames(draw_traits(rng), np.zeros(FPS), rng))

    np.testing.assert_array_equal(first_frame(1), first_frame(1))
    assert (first_frame(1) != first_frame(2)).any()


def test_pulse_colours_the_skin_green_most_and_nothing_else():
    def still(wave: float) -> np.ndarray:
        rng = np.random.default_rng(4)
        return next(frames(draw_traits(rng), np.full(FPS, wave), rng)).astype(float)

    change = still(-0.5) - still(0.5)
    red, green, blue = change[45:75, 60:100].mean(axis=(0, 1))
    assert green > blue > 0
    assert green > red > 0
    assert np.abs(change[:8]).max() == 0


def test_interrupted_subject_leaves_nothing_and_is_written_the_next_time(tmp_path, monkeypatch):
    job = Job(tmp_path / "test" / "subject25", seed=1, mean_bpm=70.0, seconds=2.0)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(synthesize, "frames", interrupt)
        with pytest.raises(KeyboardInterrupt):
            write_subject(job)
    assert subject_folders(tmp_path / "test") == []
    assert list((tmp_path / "test").iterdir()) == []
    assert write_subject(job)
    written = (job.folder / "vid.avi").stat().st_mtime_ns
    assert not write_subject(job)
    assert (job.folder / "vid.avi").stat().st_mtime_ns == written


def test_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        write_subject(Job(tmp_path / "file" / "subject1", seed=1, mean_bpm=70.0, seconds=2.0))
