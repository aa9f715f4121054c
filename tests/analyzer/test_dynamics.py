"""Dynamic range against its definition, spelled out, and FFmpeg's meter."""

from __future__ import annotations

import math

import numpy as np
import pytest

from servers.analyzer.dynamics import DynamicsMeter
from tests.media import ffmpeg
from tests.media.signals import RATE, Samples, in_cuts, noise, sine


def dynamic_range(samples: Samples, rate: int = RATE) -> float | None:
    meter = DynamicsMeter(rate, len(samples))
    for part in in_cuts(samples, range(0, samples.shape[1], 77_777)):
        meter.process(part)
    meter.finish()
    assert meter.power == pytest.approx(float(np.square(samples, dtype=np.float64).mean()), rel=1e-5)
    return meter.range_db


def by_definition(samples: Samples, rate: int) -> float:
    """The mean over channels of 20 log10(second peak / root of the mean of the loudest fifth of 2 mean(x²))."""
    found = []
    for channel in samples.astype(np.float64):
        blocks = np.split(channel, range(3 * rate, len(channel), 3 * rate))
        powers = sorted(2 * np.mean(block**2) for block in blocks)
        loudest = powers[-max(1, len(powers) // 5) :]
        second = sorted(np.abs(block).max() for block in blocks)[-2]
        found.append(20 * math.log10(second / math.sqrt(np.mean(loudest))))
    return float(np.mean(found))


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
@pytest.mark.parametrize("seconds", [6, 7.5, 14.9, 15, 41.3])
def test_as_defined(rate: int, seconds: float) -> None:
    levels = 10 ** (np.random.default_rng(2).uniform(-40, -6, round(10 * seconds)) / 20)
    samples = noise(seconds, 0, seed=3, rate=rate)
    samples *= np.repeat(levels, math.ceil(samples.shape[1] / len(levels)))[: samples.shape[1]].astype(np.float32)
    assert dynamic_range(samples, rate) == pytest.approx(by_definition(samples, rate), abs=1e-4)


def test_as_ffmpeg() -> None:
    samples = noise(60, -20, seed=3) * np.repeat([0.1, 1, 0.3, 2], 15 * RATE)
    samples = np.clip(samples[:, : 59 * RATE], -0.99, 0.99).astype(np.float32)  # theirs fails at multiples of 3 s
    assert dynamic_range(samples) == pytest.approx(ffmpeg.dynamic_range(samples, RATE), abs=0.02)


def test_of_a_sine_it_is_nothing() -> None:
    assert dynamic_range(sine(441, 9, -6)) == pytest.approx(0.0, abs=1e-3)


def test_the_highest_peak_does_not_count() -> None:
    samples = sine(441, 30, -20)
    samples[:, 5 * RATE] = 1.0
    assert dynamic_range(samples) == pytest.approx(0.0, abs=0.01)
    samples[:, 25 * RATE] = 0.5
    assert dynamic_range(samples) == pytest.approx(20 - 6.02, abs=0.01)


def test_a_silent_channel_does_not_count() -> None:
    samples = noise(12, -20, seed=1)
    assert dynamic_range(samples * np.array([[1], [0]], np.float32)) == dynamic_range(samples[:1])


@pytest.mark.parametrize("samples", [noise(5.99, -20, seed=1), np.zeros((2, 9 * RATE), np.float32)])
def test_what_has_none(samples: Samples) -> None:
    assert dynamic_range(samples) is None
