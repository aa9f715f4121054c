"""Sounds with and without a pitch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Samples = NDArray[np.float32]

RATE = 44_100


def seconds(count: float, rate: int = RATE) -> NDArray[np.float64]:
    """The time of each sample."""
    return np.arange(round(count * rate)) / rate


def partials(hz: float, amplitudes: Sequence[float], count: float, rate: int = RATE) -> Samples:
    """Harmonics below 0.45 of the rate, with phases of no kind; its largest magnitude is 0.3."""
    time = seconds(count, rate)
    waves = [
        amplitude * np.sin(2 * np.pi * hz * k * time + k * k)
        for k, amplitude in enumerate(amplitudes, 1)
        if hz * k < 0.45 * rate
    ]
    return scaled(np.sum(waves, axis=0))


def scaled(samples: NDArray, peak: float = 0.3) -> Samples:
    return (samples * (peak / np.abs(samples).max())).astype(np.float32)


def sine(hz: float, count: float = 0.12, rate: int = RATE) -> Samples:
    return partials(hz, [1], count, rate)


def sawtooth(hz: float, count: float = 0.12, rate: int = RATE) -> Samples:
    return partials(hz, [1 / k for k in range(1, 60)], count, rate)


def square(hz: float, count: float = 0.12, rate: int = RATE) -> Samples:
    return partials(hz, [k % 2 / k for k in range(1, 60)], count, rate)


def hollow(hz: float, count: float = 0.12, rate: int = RATE) -> Samples:
    """Most of it an octave above its pitch."""
    return partials(hz, [0.3, 1, 0.25, 0.3, 0.1], count, rate)


def pluck(hz: float, count: float = 0.12, rate: int = RATE) -> Samples:
    """A stiff string: its partials are a little wide and fade, and it begins with a noise."""
    time = seconds(count, rate)
    wave = np.zeros(len(time))
    for k in range(1, 20):
        partial = k * hz * np.sqrt(1 + 1e-4 * k * k)
        if partial < 0.45 * rate:
            wave += np.sin(0.5 * k) / k * np.exp(-time * (2 + 0.8 * k)) * np.sin(2 * np.pi * partial * time)
    wave += 0.2 * np.exp(-time * 1000) * np.random.default_rng(round(hz)).standard_normal(len(time))
    return scaled(wave)


def voice(hz: float, count: float = 0.12, rate: int = RATE) -> Samples:
    """Pulses through three formants, with a vibrato of 20 cents."""
    time = seconds(count, rate)
    phase = 2 * np.pi * np.cumsum(hz * 2 ** (20 / 1200 * np.sin(2 * np.pi * 5.5 * time))) / rate
    wave = np.sum([np.cos(k * phase) for k in range(1, max(2, int(min(8000, 0.45 * rate) / hz)))], axis=0)
    for formant, width in ((500, 80), (1500, 100), (2500, 150)):
        radius = np.exp(-np.pi * width / rate)
        wave = signal.lfilter([1], [1, -2 * radius * np.cos(2 * np.pi * formant / rate), radius**2], wave)
    return scaled(wave)


PITCHED: tuple[Callable[..., Samples], ...] = (sine, sawtooth, square, hollow, pluck, voice)


def noise(random: np.random.Generator, count: float = 0.12) -> Samples:
    return scaled(random.standard_normal(round(count * RATE)))


def brown(random: np.random.Generator, count: float = 0.12) -> Samples:
    return scaled(np.cumsum(random.standard_normal(round(count * RATE))))


def low_noise(random: np.random.Generator, count: float = 0.12) -> Samples:
    return scaled(signal.lfilter(*signal.butter(2, 300, fs=RATE), noise(random, count)))


def click(random: np.random.Generator, count: float = 0.12) -> Samples:
    samples = np.zeros(round(count * RATE), np.float32)
    samples[random.integers(len(samples))] = random.choice([-0.5, 0.5])
    return samples


def thump(random: np.random.Generator, count: float = 0.12) -> Samples:
    """A step that fades."""
    samples = np.exp(-seconds(count) * 400)
    return np.roll(samples, random.integers(1000)).astype(np.float32)


def hat(random: np.random.Generator, count: float = 0.12) -> Samples:
    high = signal.lfilter(*signal.butter(2, 7000, "high", fs=RATE), noise(random, count))
    return scaled(high * np.exp(-40 * seconds(count)))


def snare(random: np.random.Generator, count: float = 0.12) -> Samples:
    time = seconds(count)
    skin = np.sin(2 * np.pi * random.uniform(160, 220) * time) * np.exp(-30 * time)
    return scaled(noise(random, count) * np.exp(-20 * time) + 0.04 * skin)


def clap(random: np.random.Generator, count: float = 0.12) -> Samples:
    wave = signal.lfilter(*signal.butter(2, [900, 2500], "band", fs=RATE), noise(random, count))
    return scaled(wave * np.exp(-25 * seconds(count)))


def whistle(random: np.random.Generator, count: float = 0.12) -> Samples:
    """Above all pitches."""
    return sine(random.uniform(2600, 9000), count)


def rumble(random: np.random.Generator, count: float = 0.12) -> Samples:
    """Below all pitches."""
    return sine(random.uniform(8, 20), count)


def constant(random: np.random.Generator, count: float = 0.12) -> Samples:
    return np.full(round(count * RATE), random.uniform(-1, 1), np.float32)


UNPITCHED: tuple[Callable[..., Samples], ...] = (
    *(noise, brown, low_noise, click, thump, hat, snare, clap, whistle, rumble, constant),
)
