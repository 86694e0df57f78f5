"""The synthetic camera: one face picture, seen as many subjects, its skin coloured by the pulse.

The picture is ``skimage.data.astronaut`` (NASA, public domain).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from scipy.ndimage import gaussian_filter1d
from skimage import data

__all__ = ["FPS", "FRAME_SIZE", "Traits", "draw_traits", "frames"]

FPS = 30
FRAME_SIZE = (160, 120)  # width, height
PORTRAIT = (slice(0, 300), slice(75, 375))
FACE_CENTRE, FACE_AXES, FACE_PX = (149, 113), (46, 62), 95
# The face box of the whole picture, found by the Haar detector, is 95 px wide.
SKIN_LIGHT, SKIN_DARK = np.array([1.05, 1.03, 1.0]), np.array([0.56, 0.46, 0.42])
BLOOD = np.array([0.33, 0.77, 0.53]) / 0.77
# Relative pulse of red, green and blue: De Haan & van Leest 2014, doi 10.1088/0967-3334/35/9/1913.
NOISE_POOL = 64  # px that the pool of noise is larger than a frame, each way


@dataclass(frozen=True)
class Traits:
    """What makes one synthetic subject and recording different from another."""

    mirrored: bool
    face_px: float
    tone: float  # 0 light … 1 dark
    gamma: float
    light: tuple[float, float, float]  # gain of red, green, blue
    drift: float  # relative size and period of the slow change of light
    drift_s: float
    flicker: float  # relative size and frequency of the fast change of light
    flicker_hz: float
    motion_px: float
    noise: float  # grey levels, standard deviation
    pulse: float  # peak to peak, relative, green
    lossless: bool
    quality: int  # of Motion-JPEG, where it is not lossless


def draw_traits(rng: np.random.Generator) -> Traits:
    """A random subject in a random room before a random camera."""
    level, warmth = rng.uniform(0.62, 1.0), rng.uniform(-0.08, 0.08)
    return Traits(
        mirrored=bool(rng.integers(2)),
        face_px=rng.uniform(64, 78),
        tone=rng.uniform(0, 1),
        gamma=rng.uniform(0.85, 1.15),
        light=(level * (1 + warmth), level, level * (1 - warmth)),
        drift=rng.uniform(0, 0.03),
        drift_s=rng.uniform(8, 30),
        flicker=rng.uniform(0, 0.003),
        flicker_hz=rng.uniform(3.5, 14),
        motion_px=rng.uniform(0.5, 3),
        noise=rng.uniform(1, 2.5),
        pulse=rng.uniform(0.02, 0.04),
        lossless=bool(rng.uniform() < 0.25),
        quality=int(rng.integers(85, 99)),
    )


def frames(
    traits: Traits, pulse: Float[np.ndarray, " n"], rng: np.random.Generator
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """RGB frames at 30 Hz of a subject whose pulse is ``pulse`` (peak to peak 1) at each frame."""
    portrait, skin = _portrait(traits)
    blush = portrait * skin * (traits.pulse * BLOOD).astype(np.float32)
    light = _light(traits, len(pulse), rng)
    noise = _noise_pool(traits, rng)
    for wave, gain, pose in zip(pulse, light, _poses(traits, len(pulse), rng), strict=True):
        # more blood absorbs more light
        seen = cv2.warpAffine(
            portrait - blush * np.float32(wave), pose, FRAME_SIZE, borderMode=cv2.BORDER_REFLECT_101
        )
        down, right = rng.integers(0, NOISE_POOL, 2)
        grain = noise[down : down + FRAME_SIZE[1], right : right + FRAME_SIZE[0]]
        yield np.rint(seen * gain + grain).clip(0, 255).astype(np.uint8)


def _portrait(
    traits: Traits,
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w 1"]]:
    """The picture in grey levels with this subject's skin, and the share of skin in each pixel."""
    astronaut: UInt8[np.ndarray, "512 512 3"] = data.astronaut()  # type: ignore[no-untyped-call]
    picture = np.ascontiguousarray(astronaut[PORTRAIT])
    skin = _skin(picture)
    tone = (1 - traits.tone) * SKIN_LIGHT + traits.tone * SKIN_DARK
    coloured = (picture / 255.0) ** traits.gamma * (1 + skin * (tone - 1)) * traits.light
    if traits.mirrored:
        coloured, skin = coloured[:, ::-1], skin[:, ::-1]
    return (255 * coloured).astype(np.float32), skin.astype(np.float32)


def _skin(picture: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "h w 1"]:
    """Share of skin: skin colours in YCrCb, within an ellipse about the face."""
    _, red, blue = cv2.split(cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb))
    colour = (red > 134) & (red < 180) & (blue > 85) & (blue < 135)
    ellipse = np.zeros(red.shape, np.uint8)
    cv2.ellipse(ellipse, FACE_CENTRE, FACE_AXES, 0, 0, 360, 1, cv2.FILLED)
    share = (colour & (ellipse == 1)).astype(np.float32)
    return np.asarray(cv2.GaussianBlur(share, (0, 0), 1.5), np.float64)[..., np.newaxis]


def _light(traits: Traits, count: int, rng: np.random.Generator) -> Float[np.ndarray, " n"]:
    seconds = np.arange(count) / FPS
    drift = traits.drift * np.sin(2 * np.pi * (seconds / traits.drift_s + rng.uniform()))
    flicker = traits.flicker * np.sin(2 * np.pi * (seconds * traits.flicker_hz + rng.uniform()))
    return np.asarray(1 + drift + flicker, np.float32)


def _noise_pool(traits: Traits, rng: np.random.Generator) -> Float[np.ndarray, "h w 3"]:
    width, height = FRAME_SIZE
    shape = (height + NOISE_POOL, width + NOISE_POOL, 3)
    return (traits.noise * rng.standard_normal(shape)).astype(np.float32)


def _poses(traits: Traits, count: int, rng: np.random.Generator) -> Float[np.ndarray, "n 2 3"]:
    """Affine maps from the picture to each frame: the head drifts, nods, comes nearer."""
    sway = gaussian_filter1d(rng.standard_normal((count, 4)), FPS / 2, axis=0, mode="reflect")
    sway /= sway.std(axis=0) + 1e-12
    scale = traits.face_px / FACE_PX * (1 + 0.004 * traits.motion_px * sway[:, 0])
    turn = np.deg2rad(0.5 * traits.motion_px * sway[:, 1])
    along, across = scale * np.cos(turn), scale * np.sin(turn)
    centre = PORTRAIT[1].stop - PORTRAIT[1].start - FACE_CENTRE[0] if traits.mirrored else None
    from_x, from_y = (FACE_CENTRE[0] if centre is None else centre), FACE_CENTRE[1]
    to_x = FRAME_SIZE[0] / 2 + traits.motion_px * sway[:, 2]
    to_y = FRAME_SIZE[1] / 2 + traits.motion_px * sway[:, 3]
    rows = [
        [along, -across, to_x - along * from_x + across * from_y],
        [across, along, to_y - across * from_x - along * from_y],
    ]
    return np.moveaxis(np.array(rows), -1, 0)
