"""Pieces on disk: whole or not there, of one collection, and what is left to do beside them."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.calibrate.archive import encode
from onnxq.calibrate.checkpoint import BLOCKS, Checkpoint, blocks_of, pieces
from onnxq.calibrate.resources import NOTE, forget_pieces, pieces_of
from onnxq.errors import StaleRecordError, StoreError

from .seen import statistics_of

SEEN = statistics_of({"x": np.arange(6, dtype=np.float32).reshape(2, 3)})


@given(st.integers(0, 500))
def test_blocks_follow_one_another_and_differ_by_one_run_at_most(runs: int) -> None:
    blocks = blocks_of(runs)
    assert list(itertools.chain(*(range(*block) for block in blocks))) == list(range(runs))
    sizes = {stop - start for start, stop in blocks}
    assert len(blocks) == min(runs, BLOCKS)
    assert not sizes or (min(sizes) > 0 and max(sizes) - min(sizes) <= 1)


@given(st.integers(1, 200), st.integers(1, 50), st.randoms(use_true_random=False))
def test_what_is_left_is_every_run_that_is_not_done_once(runs, size, random):
    blocks = blocks_of(runs)
    first = pieces(blocks, [], size)
    done = sorted(random.sample(first, random.randrange(len(first) + 1)))
    left = pieces(blocks, done, random.randint(1, 50))
    covered = sorted(n for interval in (*done, *left) for n in range(*interval))
    assert covered == list(range(runs))
    assert all(any(a <= start < stop <= b for a, b in blocks) for start, stop in (*first, *left))
    assert all(stop - start <= size for start, stop in first)


@pytest.fixture
def folder(tmp_path):
    return pieces_of(tmp_path / "out")


def test_pieces_that_were_saved_are_there_for_the_same_collection(folder):
    first = Checkpoint(folder, "f")
    assert not first.belongs()
    assert first.begin(resume=False) == []
    for interval in ((4, 6), (0, 2)):
        first.save(interval, SEEN)
    again = Checkpoint(folder, "f")
    assert again.belongs()
    assert again.begin(resume=True) == [(0, 2), (4, 6)]
    assert encode(again.load((4, 6))) == encode(SEEN)


def test_without_resume_it_starts_over(folder):
    Checkpoint(folder, "f").begin(resume=False)
    Checkpoint(folder, "f").save((0, 2), SEEN)
    assert Checkpoint(folder, "f").begin(resume=False) == []
    assert [path.name for path in folder.iterdir()] == [NOTE]


def test_pieces_of_another_collection_are_refused_and_stay(folder):
    Checkpoint(folder, "f").begin(resume=False)
    Checkpoint(folder, "f").save((0, 2), SEEN)
    with pytest.raises(StaleRecordError, match="another calibration"):
        Checkpoint(folder, "g").begin(resume=True)
    assert Checkpoint(folder, "f").begin(resume=None) == [(0, 2)]
    assert Checkpoint(folder, "g").begin(resume=None) == []  # starts over by itself
    assert not list(folder.glob("*.safetensors"))


def test_nothing_to_resume_is_a_start(folder):
    assert Checkpoint(folder, "f").begin(resume=True) == []
    assert Checkpoint(folder, "f").belongs()


def test_pieces_without_a_note_are_never_taken_for_those_of_a_collection(folder):
    """A removal that a kill cut short may leave them."""
    Checkpoint(folder, "f").begin(resume=False)
    Checkpoint(folder, "f").save((0, 2), SEEN)
    (folder / NOTE).unlink()
    assert Checkpoint(folder, "g").begin(resume=True) == []
    assert not list(folder.glob("*.safetensors"))


def test_what_a_kill_left_of_writing_a_piece_is_no_piece_and_is_removed(folder):
    Checkpoint(folder, "f").begin(resume=False)
    half = folder / ".00000000-00000002.safetensors.x1y2"
    half.mkdir()
    (half / "00000000-00000002.safetensors").write_bytes(b"half")
    assert Checkpoint(folder, "f").begin(resume=True) == []
    Checkpoint(folder, "f").remove()
    assert not folder.exists()


@pytest.mark.parametrize("note", ["", "{", "[]", '{"fingerprint": 3}'])
def test_a_note_that_cannot_be_read_is_of_no_collection(folder, note):
    Checkpoint(folder, "f").begin(resume=False)
    (folder / NOTE).write_text(note)
    with pytest.raises(StaleRecordError, match="leave out --resume"):
        Checkpoint(folder, "f").begin(resume=True)


def test_a_damaged_piece_is_told(folder):
    checkpoint = Checkpoint(folder, "f")
    checkpoint.begin(resume=False)
    checkpoint.save((0, 2), SEEN)
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="damaged"):
        checkpoint.load((0, 2))


def test_what_is_not_ours_is_never_deleted(folder, tmp_path):
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    checkpoint = Checkpoint(folder, "f")
    checkpoint.begin(resume=False)
    checkpoint.save((0, 2), SEEN)
    forget_pieces(tmp_path / "out")
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    forget_pieces(tmp_path / "never made")
