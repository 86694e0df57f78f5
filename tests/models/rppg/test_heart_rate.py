import subprocess
import sys

import numpy as np
import pytest
from scipy import signal

from models.rppg import heart_rate
from models.rppg.heart_rate import bpm_from_ppg, cached_bpm
from models.rppg.pulse import BPM_RANGE, cycles, drifting_bpm, pulse_wave
from onnxq.errors import DataError

SECONDS = np.arange(900) / 30


@pytest.mark.parametrize("bpm", [45.0, 60.0, 75.0, 110.0, 155.0])
def test_steady_pulse_is_read_within_half_a_beat(bpm):
    found = bpm_from_ppg(pulse_wave(cycles(SECONDS, np.full(900, bpm))), SECONDS)
    np.testing.assert_allclose(found[90:-90], bpm, atol=0.5)


def test_drifting_pulse_is_followed_and_agrees_with_the_spectrum():
    bpm = drifting_bpm(SECONDS, 84.0, np.random.default_rng(3))
    wave = pulse_wave(cycles(SECONDS, bpm))
    found = bpm_from_ppg(wave, SECONDS)
    assert np.abs(found - bpm).mean() < 1
    hertz, power = signal.periodogram(wave, fs=30, nfft=8192)
    assert abs(60 * hertz[power.argmax()] - found.mean()) < 8


def test_size_offset_and_slow_baseline_do_not_matter():
    wave = pulse_wave(cycles(SECONDS, np.full(900, 70.0)))
    moved = 300 * wave + 1000 + 50 * np.sin(2 * np.pi * SECONDS / 9)
    np.testing.assert_allclose(
        bpm_from_ppg(moved, SECONDS)[60:-60], bpm_from_ppg(wave, SECONDS)[60:-60], atol=0.5
    )


@pytest.mark.parametrize("ppg", [np.zeros(300), np.linspace(0, 1, 300)])
def test_wave_without_beats_has_no_heart_rate(ppg):
    assert np.isnan(bpm_from_ppg(ppg, np.arange(300) / 30)).all()


def test_pulse_wave_has_mean_0_height_1_and_rises_faster_than_it_falls():
    wave = pulse_wave(np.linspace(0, 1, 1000, endpoint=False))
    assert abs(wave.mean()) < 1e-3
    assert np.ptp(wave) == pytest.approx(1, abs=1e-3)
    rising = (np.diff(wave) > 0).mean()
    assert rising < 0.4


def test_heart_rate_stays_in_its_range():
    for mean in (46.0, 154.0):
        bpm = drifting_bpm(SECONDS, mean, np.random.default_rng(0))
        assert bpm.min() >= BPM_RANGE[0]
        assert bpm.max() <= BPM_RANGE[1]
        assert np.ptp(bpm) > 2


def test_rates_are_kept_to_the_last_bit_and_computed_anew_for_another_pulse(tmp_path, monkeypatch):
    wave = pulse_wave(cycles(SECONDS, np.full(900, 70.0)))
    wanted = bpm_from_ppg(wave, SECONDS)
    np.testing.assert_array_equal(cached_bpm(wave, SECONDS, tmp_path), wanted)
    computed = []
    monkeypatch.setattr(heart_rate, "bpm_from_ppg", lambda *given: computed.append(1) or given[0])
    np.testing.assert_array_equal(cached_bpm(wave, SECONDS, tmp_path), wanted)
    assert not computed
    cached_bpm(np.nextafter(wave, np.inf), SECONDS, tmp_path)
    cached_bpm(wave, 2 * SECONDS, tmp_path)
    assert len(computed) == 2


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_damaged_rates_are_named(tmp_path, content):
    wave = pulse_wave(cycles(SECONDS, np.full(900, 70.0)))
    cached_bpm(wave, SECONDS, tmp_path)
    (kept,) = tmp_path.glob("bpm-*.npy")
    kept.write_bytes(content)
    with pytest.raises(DataError, match="kept heart rates are damaged"):
        cached_bpm(wave, SECONDS, tmp_path)
    np.save(kept, np.zeros(5))
    with pytest.raises(DataError, match="kept heart rates are damaged"):
        cached_bpm(wave, SECONDS, tmp_path)


def test_reading_windows_again_loads_no_signal_processing():
    code = "import sys, models.rppg.data, models.rppg.task; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "numpy" in loaded
    assert not loaded & {"scipy", "skimage", "torch"}
