"""The limiter against hostile signals."""

from __future__ import annotations

import numpy as np
import pytest
import soxr

from servers.media.truepeak import TruePeakMeter
from servers.mixer.limiter import Limiter
from tests.media.signals import RATE, Samples, in_cuts, noise, sine

FRAMES = 2 * RATE
TIME = np.arange(FRAMES)


def stereo(wave: np.ndarray) -> Samples:
    return np.stack([wave, 0.5 * wave]).astype(np.float32)


def low_passed(samples: Samples) -> Samples:
    """Without what lies above 20 kHz, as real recordings are: steep filters differ there."""
    spectrum = np.fft.rfft(samples, axis=1)
    spectrum[:, np.fft.rfftfreq(FRAMES, 1 / RATE) > 20_000] = 0
    return np.fft.irfft(spectrum, FRAMES, axis=1).astype(np.float32)


HOSTILE = {
    "between samples": 3 * sine(RATE / 4, 2, 0, phase=np.pi / 4),
    "square": stereo(4 * np.sign(np.sin(TIME * 0.0631 + 1e-3))),
    "short square": stereo(np.where((TIME // 7) % 2, 4.0, -4.0)),
    "impulses": stereo(np.where(TIME % 6000 == 100, 8.0, 0.0)),
    "impulse pairs": stereo(np.where(TIME % 6000 == 100, 8.0, 0.0) - np.where(TIME % 6000 == 103, 8.0, 0.0)),
    "first and last frame": stereo(np.where((TIME == 0) | (TIME == FRAMES - 1), 8.0, 0.0)),
    "noise": noise(2, 12, seed=1),
    "bursts": stereo(np.where((TIME // 900) % 5 == 0, 4.0, 0.05) * np.sin(TIME * 0.7)),
    "40 Hz": sine(40, 2, 12),
}


def limited(samples: Samples, ceiling_db: float, cut: int = RATE // 2) -> tuple[Samples, float]:
    limiter = Limiter(RATE, len(samples), ceiling_db)
    parts = [limiter.process(piece) for piece in in_cuts(samples, range(0, samples.shape[1], cut))]
    return np.concatenate([*parts, limiter.finish()], axis=1), limiter.max_reduction_db


def true_peak(samples: Samples) -> float:
    meter = TruePeakMeter(len(samples))
    meter.process(samples)
    return meter.finish()


def foreign_true_peak(samples: Samples) -> float:
    """True peak after libsoxr, eight times oversampled."""
    padded = np.pad(samples.astype(np.float64), ((0, 0), (4096, 4096)))
    up = soxr.resample(padded.T, RATE, 8 * RATE, quality="VHQ")
    return float(20 * np.log10(np.abs(up).max()))


@pytest.mark.parametrize("ceiling", [0.0, -1.0, -12.0])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_true_peak_is_above_the_ceiling(name: str, ceiling: float) -> None:
    samples = HOSTILE[name]
    result, reduction = limited(samples, ceiling)
    assert result.shape == samples.shape
    assert result.dtype == np.float32
    assert true_peak(result) <= ceiling + 0.02
    assert reduction >= true_peak(samples) - ceiling - 0.1
    # Not lower than it must be: where the peak was, the ceiling is now reached.
    assert true_peak(result) >= ceiling - 0.5


@pytest.mark.parametrize("name", ["between samples", "square", "impulses", "noise", "bursts", "40 Hz"])
def test_other_meters_agree(name: str) -> None:
    result, _ = limited(low_passed(HOSTILE[name]), -1.0)
    assert foreign_true_peak(result) <= -1.0 + 0.1


def test_below_the_ceiling_nothing_changes() -> None:
    samples = noise(2, -20, seed=3)
    samples *= np.float32(10 ** ((-1.01 - true_peak(samples)) / 20))
    result, reduction = limited(samples, -1.0)
    np.testing.assert_array_equal(result, samples)
    assert reduction == 0.0


def test_only_the_neighbourhood_of_a_peak_changes() -> None:
    samples = noise(3, -30, seed=4)
    samples[0, RATE] = 2.0
    result, reduction = limited(samples, -1.0)
    changed = np.flatnonzero((result != samples).any(axis=0))
    assert changed[0] >= RATE - 0.0051 * RATE
    assert changed[-1] < RATE + 1.0 * RATE
    assert reduction == pytest.approx(7.02, abs=0.1)
    gains = result[1, changed] / samples[1, changed]  # both channels are linked
    assert gains.min() == pytest.approx(10 ** (-reduction / 20), rel=1e-3)


def test_the_gain_is_smooth() -> None:
    samples = np.full((1, RATE), 0.1, np.float32)
    samples[0, RATE // 2] = 4.0
    result, _ = limited(samples, -1.0)
    gain = np.delete(result / samples, RATE // 2)
    assert np.abs(np.diff(gain)).max() < 0.02
    lowest = int(gain.argmin())
    after = 20 * np.log10(gain[lowest + round(0.0825 * RATE)]) / (20 * np.log10(gain[lowest]))
    assert after == pytest.approx(np.exp(-1), abs=0.03)  # 80 ms after the 2.5 ms of hold


def test_results_hardly_depend_on_cuts() -> None:
    """In the last bit only; the mixer cuts alike always, and so in none."""
    samples = HOSTILE["bursts"]
    whole, _ = limited(samples, -3.0, cut=FRAMES)
    for cut in (1001, 4410, 60_000):
        np.testing.assert_allclose(limited(samples, -3.0, cut=cut)[0], whole, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("frames", [1, 7, 63, 64, 65, 400])
def test_streams_shorter_than_the_delay(frames: int) -> None:
    samples = np.full((2, frames), 0.5, np.float32)
    np.testing.assert_array_equal(limited(samples, 0.0)[0], samples)
    loud, _ = limited(np.full((2, frames), 4.0, np.float32), -1.0)
    assert loud.shape == (2, frames)
    assert true_peak(loud) <= -1.0 + 0.02


@pytest.mark.parametrize("rate", [8_000, 96_000, 384_000])
def test_other_rates(rate: int) -> None:
    samples = noise(0.5, 6, seed=6, rate=rate, channels=1)
    limiter = Limiter(rate, 1, -2.0)
    result = np.concatenate([limiter.process(samples), limiter.finish()], axis=1)
    assert true_peak(result) <= -2.0 + 0.05
