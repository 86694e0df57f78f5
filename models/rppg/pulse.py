"""The synthetic heart: a heart rate that drifts, and the pulse wave that it drives."""

import numpy as np
from jaxtyping import Float

__all__ = ["BPM_RANGE", "cycles", "drifting_bpm", "pulse_wave"]

BPM_RANGE = (45.0, 155.0)
# Position, width (in cycles) and height of the waves that make up one beat: the systolic wave, the
# reflected wave on its shoulder, and the dicrotic wave. The last is gentle: below 60 BPM, where the
# second harmonic is inside the pass band of the labels, a strong one is counted as a beat.
BEAT = ((0.20, 0.085, 1.0), (0.34, 0.14, 0.45), (0.55, 0.10, 0.10))
GRID = np.linspace(0, 1, 512, endpoint=False)


def drifting_bpm(
    seconds: Float[np.ndarray, " n"], mean_bpm: float, rng: np.random.Generator
) -> Float[np.ndarray, " n"]:
    """Heart rate at every instant: a slow drift of 3 to 9 BPM and a respiratory one of 0.5 to 2."""
    bpm = np.full(len(seconds), float(mean_bpm))
    for size, period_s in (
        (rng.uniform(3, 9), rng.uniform(18, 50)),
        (rng.uniform(0.5, 2), rng.uniform(3, 6)),
    ):
        bpm += size * np.sin(2 * np.pi * (seconds / period_s + rng.uniform()))
    return bpm.clip(*BPM_RANGE)


def cycles(
    seconds: Float[np.ndarray, " n"], bpm: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Heart beats since the first instant: the time integral of the heart rate (trapezoids)."""
    steps = np.diff(seconds) * (bpm[1:] + bpm[:-1]) / 2 / 60
    return np.concatenate([[0.0], np.cumsum(steps)])


def pulse_wave(cycle: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Blood volume at a position within the beat: mean 0, peak to peak 1, period 1.

    The sum of three bell curves imitates a photoplethysmogram: a steep rise, a slow fall with a
    shoulder and a faint dicrotic wave (cf. Elgendi 2012, doi 10.2174/157340312801215782).
    """
    one_beat = _beat(GRID)
    return np.asarray((_beat(cycle) - one_beat.mean()) / np.ptp(one_beat))


def _beat(cycle: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    total = np.zeros(len(cycle))
    for centre, width, height in BEAT:
        distance = (cycle - centre + 0.5) % 1 - 0.5
        total += height * np.exp(-0.5 * (distance / width) ** 2)
    return total
