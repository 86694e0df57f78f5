"""Photoplethysmogram → heart rate at every instant, by the peaks of the filtered wave."""

import hashlib
from importlib import metadata
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from onnxq.errors import DataError
from onnxq.store import atomic_file

__all__ = ["bpm_from_ppg", "cached_bpm"]

FORM = 1  # of the kept files; raised when the computing changes

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
    from scipy import signal  # a second of importing; the rates are kept from run to run

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


def cached_bpm(
    ppg: Float[np.ndarray, " n"], seconds: Float[np.ndarray, " n"], cache: Path
) -> Float[np.ndarray, " n"]:
    """``bpm_from_ppg``, kept in ``cache`` under the SHA-256 of both and the version of scipy.

    A file is whole or absent, also after an interruption. Raises DataError for a damaged one and
    StoreError for a cache that cannot be written.
    """
    key = hashlib.sha256(f"{FORM} scipy {metadata.version('scipy')} {len(ppg)} ".encode())
    for values in (ppg, seconds):
        key.update(np.ascontiguousarray(values, np.float64).tobytes())
    file = cache / f"bpm-{key.hexdigest()[:24]}.npy"
    if not file.exists():
        with atomic_file(file) as temporary:
            np.save(temporary, bpm_from_ppg(ppg, seconds))
    try:
        kept = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as fault:
        what = f"kept heart rates are damaged: {fault}"
        raise DataError(what, where=str(file), do=f"delete {cache}") from fault
    if kept.shape != ppg.shape or kept.dtype != np.float64:
        what = f"kept heart rates are damaged: {kept.dtype}{list(kept.shape)}"
        raise DataError(what, where=str(file), do=f"delete {cache}")
    return np.asarray(kept)


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
