"""Loudness and true peaks against the numbers of the standards, and against FFmpeg's meter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from servers.media.loudness import LoudnessMeter, k_weighting
from servers.media.truepeak import BLOCK, TAPS, TruePeakMeter, between, peak_between
from tests.media.ffmpeg import ebur128
from tests.media.signals import RATE, Samples, in_cuts, noise, sine


def loudness(samples: Samples, rate: int = RATE) -> float:
    meter = LoudnessMeter(rate, len(samples))
    meter.process(samples)
    return meter.lufs


def true_peak(samples: Samples) -> float:
    meter = TruePeakMeter(len(samples))
    for piece in in_cuts(samples, range(0, samples.shape[1], 9999)):
        meter.process(piece)
    return meter.finish()


def test_k_weighting_is_that_of_the_standard() -> None:
    """BS.1770-4, tables 1 and 2."""
    shelf, high_pass = k_weighting(48_000)
    expected = [1.53512485958697, -2.69169618940638, 1.19839281085285, 1.0, -1.69065929318241, 0.73248077421585]
    np.testing.assert_allclose(shelf, expected, atol=1e-12)
    np.testing.assert_allclose(high_pass, [1, -2, 1, 1, -1.99004745483398, 0.99007225036621], atol=1e-12)


@pytest.mark.parametrize(
    ("rate", "tolerance"),
    # The standard's filter is for 48 kHz; the bilinear transform bends the shelf a little otherwise at other rates.
    [(8_000, 0.25), (22_050, 0.05), (44_100, 0.01), (48_000, 0.01), (96_000, 0.05), (384_000, 0.05)],
)
def test_a_sine(rate: int, tolerance: float) -> None:
    """997 Hz at full scale on one channel is -3.01 LUFS (BS.1770-4), so on two channels at -18 dBFS it is -18.0."""
    assert loudness(sine(997, 3, -18, rate=rate), rate) == pytest.approx(-18.0, abs=tolerance)
    assert loudness(sine(997, 3, 0, rate=rate)[:1], rate) == pytest.approx(-3.01, abs=tolerance)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        # EBU Tech 3341, table 1, cases 1 to 5.
        ([(-23, 20)], -23.0),
        ([(-33, 20)], -33.0),
        ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
        ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
        ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
    ],
)
def test_ebu_cases(levels: list[tuple[float, float]], expected: float) -> None:
    tones = np.concatenate([sine(1000, seconds, level) for level, seconds in levels], axis=1)
    assert loudness(tones) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("rate", [44_100, 48_000])
def test_as_ffmpeg(rate: int) -> None:
    rng = np.random.default_rng(4)
    levels = 10 ** (rng.uniform(-60, -6, 30) / 20)
    programme = (noise(15, 0, seed=5, rate=rate) * np.repeat(levels, rate // 2)).astype(np.float32)
    assert loudness(programme, rate) == pytest.approx(ebur128(programme, rate)["I"], abs=0.02)


@pytest.mark.parametrize("samples", [sine(997, 2, -80), sine(997, 0.39, -20), np.zeros((2, RATE), np.float32)])
def test_nothing_to_measure(samples: Samples) -> None:
    assert math.isnan(loudness(samples))


def test_loudness_so_far_does_not_depend_on_cuts() -> None:
    samples = noise(3, -20, seed=1)
    whole = LoudnessMeter(RATE, 2).process(samples)
    assert len(whole) == 30
    assert [math.isnan(value) for value in whole[:4]] == [True, True, True, False]
    rng = np.random.default_rng(2)
    for _ in range(5):
        meter = LoudnessMeter(RATE, 2)
        pieces = in_cuts(samples, map(int, rng.integers(1, samples.shape[1], 40)))
        np.testing.assert_array_equal([value for piece in pieces for value in meter.process(piece)], whole)


@pytest.mark.parametrize(
    ("hertz", "phase", "gain"),
    [
        # EBU Tech 3341, table 1, cases 15 to 19: all of them peak at the level of the sine, whatever the samples say.
        (48_000 / 4, 0.0, -6.0),
        (48_000 / 4, np.pi / 4, -6.0),
        (48_000 / 6, np.pi / 3, -6.0),
        (48_000 / 8, np.pi * 0.375, -6.0),
        (48_000 / 4, np.pi / 4, 3.0),
    ],
)
def test_true_peaks_of_sines(hertz: float, phase: float, gain: float) -> None:
    tone = sine(hertz, 1, gain, rate=48_000, phase=phase) * np.hanning(48_000)
    assert true_peak(tone.astype(np.float32)) == pytest.approx(gain, abs=0.05)


@pytest.mark.parametrize("kind", ["noise", "loud", "impulses", "bursts", "chirp", "short"])
def test_what_is_left_out_has_no_peak(kind: str) -> None:
    """Only blocks that may have the peak are interpolated: the result is that of interpolating all."""
    rng = np.random.default_rng(8)
    samples = noise(2, -12, seed=9)
    if kind == "loud":
        samples = np.clip(4 * samples, -1, 1)
    elif kind == "impulses":
        samples = np.where(rng.random(samples.shape) < 0.001, samples, 0).astype(np.float32)
    elif kind == "bursts":
        samples *= np.repeat(10 ** rng.uniform(-4, 0, (2, 100)), samples.shape[1] // 100, axis=1).astype(np.float32)
    elif kind == "chirp":
        time = np.arange(samples.shape[1]) / RATE
        samples = np.stack([np.sin(np.pi * RATE / 4 * time**2), 0.9 * np.cos(3e4 * time**2)]).astype(np.float32)
    elif kind == "short":
        samples = samples[:, : TAPS + BLOCK]
    blocks = (samples.shape[1] - (TAPS - 1)) // BLOCK
    samples = samples[:, : TAPS - 1 + blocks * BLOCK]
    whole = float(between(samples).max())
    assert peak_between(samples, 0.0) == pytest.approx(whole, rel=1e-6)
    assert peak_between(samples, 0.999 * whole) == pytest.approx(whole, rel=1e-6)
    assert peak_between(samples, 1.001 * whole) == 1.001 * whole


def test_the_peak_between_samples_is_seen() -> None:
    tone = sine(RATE / 4, 1, 0, phase=np.pi / 4)
    assert 20 * math.log10(np.abs(tone).max()) == pytest.approx(-3.01, abs=0.01)
    assert true_peak(tone) > -0.01


def test_the_peak_of_few_samples() -> None:
    assert true_peak(np.array([[0.25, -0.5, 0.25]], np.float32)) == pytest.approx(-6.02, abs=0.01)
    meter = TruePeakMeter(1)
    for value in (0.9, 0.9, 0.9):
        meter.process(np.full((1, 1), value, np.float32))
    assert meter.finish() == pytest.approx(true_peak(np.full((1, 3), 0.9, np.float32)), abs=1e-5)


def test_a_rate_without_room_for_the_shelf() -> None:
    """At 1 kHz the shelf, from 1.7 kHz up, would be unstable; it is left out."""
    for hertz in (60, 200, 400):
        expected = loudness(sine(hertz, 5, -20, rate=48_000), 48_000)
        assert loudness(sine(hertz, 5, -20, rate=1_000), 1_000) == pytest.approx(expected, abs=0.2)


def test_true_peak_of_silence() -> None:
    assert true_peak(np.zeros((2, 500), np.float32)) == -math.inf
    assert TruePeakMeter(2).finish() == -math.inf
