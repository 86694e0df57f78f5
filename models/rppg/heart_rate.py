"""Photoplethysmogram → heart rate at every instant, by the peaks of the filtered wave."""

import numpy as np
from jaxtyping import Float, Int
from scipy import signal

__all__ = ["bpm_from_ppg"]

PASS_BAND_HZ = (0.7, 3.0)
FILTER_ORDER = 3
PEAK_DISTANCE_S, PEAK_PROMINENCE, PEAK_WIDTH = 0.35, 0.1, 3
BEAT_S = (0.3, 1.5)
BPM = (40.0, 160.0)
NEIGHBOURS, OUTLIER_SHARE = 5, 0.25
FEWEST_BEATS = 2


def bpm_from_ppg(
    ppg: Float[np.ndarray, " n"], seconds: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Heart rate in BPM at every sample; NaN everywhere if fewer than two beats are found.

    Butterworth band-pass of order 3, 0.7 to 3 Hz, without phase shift, then standardised; peaks at
    least 0.35 s apart, of prominence 0.1 and width 3 samples, placed between samples by a parabola;
    beats of 0.3 to 1.5 s and 40 to 160 BPM; beats more than 25 % off the median of the five around
    them are left out; each beat's rate holds at its middle and is interpolated between. The first
    and last value hold to the ends.
    """
    rate_hz = 1 / float(np.median(np.diff(seconds)))
    sections = signal.butter(FILTER_ORDER, PASS_BAND_HZ, "bandpass", fs=rate_hz, output="sos")
    wave = signal.sosfiltfilt(sections, ppg - ppg.mean())
    spread = wave.std()
    if spread == 0:
        return np.full(len(ppg), np.nan)
    peaks, _ = signal.find_peaks(
        wave / spread,
        distance=max(1, round(PEAK_DISTANCE_S * rate_hz)),
        prominence=PEAK_PROMINENCE,
        width=PEAK_WIDTH,
    )
    middles, bpm = _clean_beats(_refined(wave, peaks, seconds))
    if len(bpm) < FEWEST_BEATS:
        return np.full(len(ppg), np.nan)
    return np.asarray(np.interp(seconds, middles, bpm))


def _refined(
    wave: Float[np.ndarray, " n"], peaks: Int[np.ndarray, " p"], seconds: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " p"]:
    """Time of each peak between the samples, at the vertex of the parabola through three of them.

    At 30 Hz and 150 BPM a whole sample would be an error of 12 BPM.
    """
    before, at, after = wave[peaks - 1], wave[peaks], wave[peaks + 1]
    offset = 0.5 * (before - after) / (before - 2 * at + after)
    places = peaks + offset.clip(-0.5, 0.5)
    return np.asarray(np.interp(places, np.arange(len(seconds)), seconds))


def _clean_beats(
    peak_s: Float[np.ndarray, " p"],
) -> tuple[Float[np.ndarray, " b"], Float[np.ndarray, " b"]]:
    """Middle in seconds and rate in BPM of the beats that are plausible."""
    beat_s, middles = np.diff(peak_s), (peak_s[1:] + peak_s[:-1]) / 2
    kept = (beat_s >= BEAT_S[0]) & (beat_s <= BEAT_S[1])
    bpm, middles = 60 / beat_s[kept], middles[kept]
    kept = (bpm >= BPM[0]) & (bpm <= BPM[1])
    bpm, middles = bpm[kept], middles[kept]
    if len(bpm) >= NEIGHBOURS:
        padded = np.pad(bpm, NEIGHBOURS // 2, mode="reflect")
        around = np.lib.stride_tricks.sliding_window_view(padded, NEIGHBOURS)
        usual = np.median(around, axis=1)
        kept = np.abs(bpm - usual) <= OUTLIER_SHARE * usual
        bpm, middles = bpm[kept], middles[kept]
    return middles, bpm
