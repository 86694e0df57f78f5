"""Synthetic subjects in the file format of UBFC-rPPG DATASET_2. They are no people.

::

    python -m models.rppg.synthesize --out build/data/rppg --splits calibration test
"""

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float
from rich.console import Console

from models.rppg.pulse import BPM_RANGE, cycles, drifting_bpm, pulse_wave
from models.rppg.scene import FPS, FRAME_SIZE, Traits, draw_traits, frames
from models.rppg.shell import progress_on, run
from models.rppg.splits import SPLITS
from models.rppg.ubfc import GROUND_TRUTH, SYNTHETIC, VIDEO
from onnxq.errors import StoreError
from onnxq.store import atomic_folder, write_text

__all__ = ["Job", "jobs", "main", "write_subject"]

FINGER_DELAY_S = 0.12  # the pulse reaches the finger, where line 1 is measured, after the face
SEEDS_A_SPLIT = 1000


@dataclass(frozen=True)
class Job:
    """One subject to be written into ``folder``."""

    folder: Path
    seed: int
    mean_bpm: float
    seconds: float


def jobs(out: Path, split: str, seed: int = 0) -> list[Job]:
    """The subjects of a split; their mean heart rates are spread evenly over 50 to 150 BPM."""
    kind = SPLITS[split]
    own = SEEDS_A_SPLIT * (1 + list(SPLITS).index(split)) + 10 * SEEDS_A_SPLIT * seed
    rng = np.random.default_rng(own)
    low, high = BPM_RANGE[0] + 5, BPM_RANGE[1] - 5
    places = (rng.permutation(kind.count) + rng.uniform(size=kind.count)) / kind.count
    means = low + (high - low) * places
    names = [f"subject{kind.first + i:02d}" for i in range(kind.count)]
    return [
        Job(out / split / name, own + 1 + i, mean, kind.seconds)
        for i, (name, mean) in enumerate(zip(names, means.tolist(), strict=True))
    ]


def write_subject(job: Job) -> bool:
    """Write ``vid.avi`` and ``ground_truth.txt`` into the job's folder; False if it was there.

    The folder appears under its name when it is complete. The same job writes the same values.
    Raises StoreError if the disk or the video encoder refuses.
    """
    if job.folder.exists():
        return False
    rng = np.random.default_rng(job.seed)
    traits = draw_traits(rng)
    seconds = np.arange(round(job.seconds * FPS)) / FPS
    bpm = drifting_bpm(seconds, job.mean_bpm, rng)
    beat = cycles(seconds, bpm) + rng.uniform()
    ppg = _contact_ppg(beat - FINGER_DELAY_S * bpm / 60, seconds, rng)
    story = {"seed": job.seed, "mean_bpm": job.mean_bpm, **dataclasses.asdict(traits)}
    lines = [" ".join(f"{value:.7e}" for value in row) for row in (ppg, bpm, seconds)]
    with atomic_folder(job.folder) as folder:
        _write_video(folder / VIDEO, traits, pulse_wave(beat), rng)
        write_text(folder / GROUND_TRUTH, "\n".join(lines) + "\n")
        write_text(folder / SYNTHETIC, json.dumps(story, indent=1) + "\n")
    return True


def _contact_ppg(
    beat: Float[np.ndarray, " n"], seconds: Float[np.ndarray, " n"], rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """What a finger clip measures: the pulse on the baseline of breathing, with a little noise."""
    breath = 0.15 * np.sin(2 * np.pi * (seconds / rng.uniform(3, 6) + rng.uniform()))
    return pulse_wave(beat) + breath + 0.01 * rng.standard_normal(len(beat))


def _write_video(
    path: Path, traits: Traits, pulse: Float[np.ndarray, " n"], rng: np.random.Generator
) -> None:
    if traits.lossless:
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"FFV1"), FPS, FRAME_SIZE)
    else:
        motion_jpeg = cv2.VideoWriter.fourcc(*"MJPG")
        writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, motion_jpeg, FPS, FRAME_SIZE)
        writer.set(cv2.VIDEOWRITER_PROP_QUALITY, traits.quality)
    if not writer.isOpened():
        raise StoreError(
            "OpenCV cannot write this video",
            where=str(path),
            do="install opencv-python-headless below 5 with its FFmpeg",
        )
    try:
        for frame in frames(traits, pulse, rng):
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def _one_thread() -> None:
    cv2.setNumThreads(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; subjects that are there already are kept."""
    parser = argparse.ArgumentParser(prog="python -m models.rppg.synthesize", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the splits")
    parser.add_argument("--splits", nargs="+", choices=list(SPLITS), default=list(SPLITS))
    parser.add_argument("--seed", type=int, default=0, help="another seed, other subjects")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    chosen = parser.parse_args(arguments)
    todo = [job for split in chosen.splits for job in jobs(chosen.out, split, chosen.seed)]
    console = Console()
    context = get_context("spawn")  # a forked OpenCV may hang
    with ProcessPoolExecutor(chosen.processes, context, initializer=_one_thread) as pool:
        run_each = pool.map if chosen.processes > 1 else map
        done = run_each(write_subject, todo)
        fresh = sum(progress_on(console)(done, "synthetic subjects", len(todo)))
    console.print(f"{fresh} written, {len(todo) - fresh} kept in {chosen.out}", soft_wrap=True)


if __name__ == "__main__":
    run(main)
