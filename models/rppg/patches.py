"""Face video → three small patches of skin a frame; read once, kept on disk, never in memory."""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from models.rppg.window_shape import PATCH_PX
from onnxq.errors import DataError
from onnxq.store import atomic_file, write_text

__all__ = ["Patches", "cached_patches", "cut_patches", "read_patches"]

log = logging.getLogger(__name__)

CASCADE = "haarcascade_frontalface_default.xml"
SCALE_STEP, NEIGHBOURS, FEWEST_PX = 1.1, 5, 30
# regions as shares of the face box: left, right, top, bottom
FOREHEAD = (0.20, 0.80, 0.05, 0.25)
LEFT_CHEEK, RIGHT_CHEEK = (0.05, 0.30, 0.35, 0.65), (0.70, 0.95, 0.35, 0.65)
FORM = 1  # of the kept files; raised when the reading changes

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


@dataclass(frozen=True)
class Patches:
    """The patches of one video.

    ``pixels`` holds the frames in which a face was found, RGB, regions in the order forehead, left
    cheek, right cheek. ``row_of_frame[f]`` is the row of frame ``f`` in it, −1 without a face: such
    a frame has no patches at all, black ones the least.
    """

    pixels: UInt8[np.ndarray, "found 3 36 36 3"]
    row_of_frame: Int[np.ndarray, " frames"]

    @property
    def missing(self) -> int:
        """Number of frames without a face."""
        return int((self.row_of_frame < 0).sum())


def read_patches(video: Path) -> Patches:
    """Find the face in every frame and cut out its three regions.

    Haar cascade at scale step 1.1, 5 neighbours, at least 30 px, the largest face; 36 x 36 pixels
    by area interpolation. Raises DataError for a video that does not open or has no frame.
    """
    cascade = cv2.CascadeClassifier(_cascade_file())
    pixels: list[UInt8[np.ndarray, "3 36 36 3"]] = []
    row_of_frame: list[int] = []
    for frame in _frames(video):
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        faces = cascade.detectMultiScale(
            grey, SCALE_STEP, NEIGHBOURS, minSize=(FEWEST_PX, FEWEST_PX)
        )
        row_of_frame.append(len(pixels) if len(faces) else -1)
        if len(faces):
            left, top, width, height = max(
                np.asarray(faces).tolist(), key=lambda face: face[2] * face[3]
            )
            pixels.append(cut_patches(frame, (left, top, width, height)))
    if not row_of_frame:
        raise DataError("no frame can be read", where=str(video), do="copy the video again")
    found = np.stack(pixels) if pixels else np.empty((0, 3, PATCH_PX, PATCH_PX, 3), np.uint8)
    return Patches(found, np.array(row_of_frame, np.int64))


def cut_patches(frame: UInt8[np.ndarray, "h w 3"], face: Box) -> UInt8[np.ndarray, "3 36 36 3"]:
    """Forehead, left cheek and right cheek of a face box that lies within the frame."""
    left, top, width, height = face
    patches = []
    for x0, x1, y0, y1 in (FOREHEAD, LEFT_CHEEK, RIGHT_CHEEK):
        rows = slice(top + int(y0 * height), top + int(y1 * height))
        columns = slice(left + int(x0 * width), left + int(x1 * width))
        region = frame[rows, columns]
        patches.append(cv2.resize(region, (PATCH_PX, PATCH_PX), interpolation=cv2.INTER_AREA))
    return np.stack(patches)


def cached_patches(video: Path, cache: Path) -> Patches:
    """``read_patches``, kept in ``cache`` under the video's name, size and time of change.

    The pixels come back as a memory map. A file is whole or absent, also after an interruption.
    Raises DataError for a missing video and StoreError for a cache that cannot be written.
    """
    try:
        state = video.stat()
    except OSError as fault:
        raise DataError("no such video", where=str(video), do="copy the subject again") from fault
    key = f"{FORM} {video.resolve()} {state.st_size} {state.st_mtime_ns}"
    stem = f"{video.parent.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    pixels_file, index_file = cache / f"{stem}.npy", cache / f"{stem}.json"
    if not index_file.exists():
        log.info("finding the face in every frame of %s", video)
        fresh = read_patches(video)
        with atomic_file(pixels_file) as temporary:
            np.save(temporary, fresh.pixels)
        write_text(index_file, json.dumps({"row_of_frame": fresh.row_of_frame.tolist()}))
    try:
        index: dict[str, Any] = json.loads(index_file.read_text())
        pixels = np.load(pixels_file, mmap_mode="r", allow_pickle=False)
        return Patches(pixels, np.array(index["row_of_frame"], np.int64))
    except (OSError, ValueError, KeyError) as fault:
        raise DataError(
            f"kept patches are damaged: {fault}", where=str(index_file), do=f"delete {cache}"
        ) from fault


def _frames(video: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    capture = cv2.VideoCapture(str(video))
    if not capture.isOpened():
        raise DataError(
            "OpenCV cannot open this video", where=str(video), do="copy the video again"
        )
    try:
        while True:
            there, frame = capture.read()
            if not there:
                return
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()


def _cascade_file() -> str:
    # OpenCV's type stubs leave `data` out; version 5 leaves the cascades out
    return str(Path(cv2.data.haarcascades) / CASCADE)  # type: ignore[attr-defined]
