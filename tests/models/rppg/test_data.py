from dataclasses import replace

import pytest

from models.rppg import data
from models.rppg.splits import Split
from models.rppg.synthesize import Job
from onnxq.errors import DataError


@pytest.mark.parametrize("split", ["calibration", "test"])
def test_missing_subjects_are_answered_with_the_command_that_makes_them(tmp_path, split):
    windows = getattr(data, f"{split}_windows")
    (tmp_path / split / "subject17").mkdir(parents=True)
    with pytest.raises(DataError, match="1 of") as caught:
        windows(tmp_path, stride=5, hop=8)
    command = f"python -m models.rppg.synthesize --out {tmp_path} --splits {split}"
    assert command in caught.value.do


def test_windows_of_a_split_carry_labels_groups_and_notes(tmp_path, monkeypatch, subject, reading):
    folder = tmp_path / "test" / "subject25"
    folder.parent.mkdir()
    folder.symlink_to(subject)
    monkeypatch.setitem(data.SPLITS, "test", Split(25, 1, 8.0))
    monkeypatch.setattr(
        data, "read_recording", lambda folder, _: replace(reading, name=folder.name)
    )
    samples = data.test_windows(tmp_path, stride=5, hop=8)
    assert set(samples.groups) == {"subject25"}
    assert len(samples) == len(range(0, 240 - 35, 8))
    assert 60 < samples.labels.mean() < 90
    assert any("synthetic" in note for note in samples.notes)
    assert samples.row(0)["input"].shape == (1, 8, 3, 36, 36, 3)


def test_ubfc_reads_the_subjects_that_are_asked_for(tmp_path, subject):
    samples = data.ubfc_windows(subject.parent, ["subject1"], 5, 8, cache=tmp_path)
    assert samples.groups.tolist() == ["subject1"] * len(samples)
    assert list(tmp_path.glob("*.npy"))


def test_reading_says_how_far_it_is(tmp_path, monkeypatch, reading):
    monkeypatch.setattr(data, "read_recording", lambda folder, _: reading)
    shown = []

    def progress(items, what, total):
        for item in items:
            shown.append(total)
            yield item

    assert data.read_recordings([tmp_path, tmp_path], tmp_path, progress) == [reading, reading]
    assert shown == [2, 2]


@pytest.mark.parametrize(
    ("subjects", "message"), [(["subject2"], "mean `subject1`"), ("tests", "mean `test`")]
)
def test_unknown_subjects_and_parts_are_answered_with_the_nearest(subject, subjects, message):
    with pytest.raises(DataError, match=message):
        data.ubfc_windows(subject.parent, subjects, 5, 8)


def test_absent_ubfc_is_answered_with_its_source(tmp_path):
    with pytest.raises(DataError) as caught:
        data.ubfc_windows(tmp_path, "test", 5, 8)
    assert "DATASET_2" in caught.value.do


def test_every_subject_is_in_one_part_only():
    names = [f"subject{i}" for i in range(1, 43)]
    parts = data.split_subjects(names)
    assert [len(parts[part]) for part in ("train", "calibration", "test")] == [25, 6, 11]
    assert sorted(sum(parts.values(), ())) == sorted(names)
    assert parts == data.split_subjects(names[::-1])


def test_jobs_are_written_by_the_command(tmp_path, monkeypatch, capsys):
    from models.rppg import synthesize

    short = [Job(tmp_path / "test" / "subject25", seed=1, mean_bpm=70.0, seconds=1.0)]
    monkeypatch.setattr(synthesize, "jobs", lambda *_: short)
    arguments = ["--out", str(tmp_path), "--splits", "test", "--processes", "1"]
    synthesize.main(arguments)
    assert "1 written, 0 kept" in capsys.readouterr().out
    synthesize.main(arguments)
    assert "0 written, 1 kept" in capsys.readouterr().out
