"""Test signals of EBU Tech 3341 (2023) and 3342 (2023), table 1 of each: those that can be made.

Of Tech 3341, case 6 is missing, as it has five channels, and 7 and 8, as of Tech 3342 5 and 6, which are programmes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import signal

from tests.media.signals import Samples, sine

RATE = 48_000
SILENCE = -999.0

INTEGRATED: dict[str, tuple[Sequence[tuple[float, float]], float]] = {
    "1": ([(-23, 20)], -23.0),
    "2": ([(-33, 20)], -33.0),
    "3": ([(-36, 10), (-23, 60), (-36, 10)], -23.0),
    "4": ([(-72, 10), (-36, 10), (-23, 60), (-36, 10), (-72, 10)], -23.0),
    "5": ([(-26, 20), (-20, 20.1), (-26, 20)], -23.0),
}
"""Cases of Tech 3341: levels in dBFS with their seconds, and the integrated loudness, within 0.1 LU."""

SHORT_TERM = [(-20.0, 1.34), (-30.0, 1.66)] * 5
"""Case 9: 3 s of it, wherever they begin, have -23 LUFS."""
MOMENTARY = [(-20.0, 0.18), (-30.0, 0.22)] * 25
"""Case 12: as case 9, 0.4 s."""

RANGES: dict[str, tuple[Sequence[tuple[float, float]], float]] = {
    "1": ([(-20, 20), (-30, 20)], 10.0),
    "2": ([(-20, 20), (-15, 20)], 5.0),
    "3": ([(-40, 20), (-20, 20)], 20.0),
    "4": ([(-50, 20), (-35, 20), (-20, 20), (-35, 20), (-50, 20)], 15.0),
}
"""Cases of Tech 3342: levels in dBFS with their seconds, and the loudness range, within 1 LU."""

TRUE_PEAKS: dict[str, tuple[float, float, float, float]] = {
    "15": (4, 0.0, 0.50, -6.0),
    "16": (4, 45.0, 0.50, -6.0),
    "17": (6, 60.0, 0.50, -6.0),
    "18": (8, 67.5, 0.50, -6.0),
    "19": (4, 45.0, 1.41, 3.0),
}
"""Cases of Tech 3341: the rate over the frequency, phase in degrees, amplitude and true peak, +0.2 or -0.4 dB."""


def tones(levels: Sequence[tuple[float, float]], hertz: float = 1000.0) -> Samples:
    """Stereo sines of these levels and seconds, one after the other, in phase."""
    gains = np.concatenate([np.full(round(seconds * RATE), 10 ** (level / 20)) for level, seconds in levels])
    return (sine(hertz, len(gains) / RATE, 0, rate=RATE) * gains).astype(np.float32)


def segment(number: int, *, live: bool, step: float, length: float) -> Samples:
    """A tone after some silence: cases 10 and 13, or for live meters 11 and 14, segment ``number`` of 0 to 19."""
    level = -38.0 + number if live else -23.0
    after = length - step * number if live else 1.0
    return tones([(SILENCE, step * number), (level, length), (SILENCE, after)])


def peak_tone(case: str) -> Samples:
    """Stereo, 1 s with 10 ms of fading at the ends."""
    divisor, phase, amplitude, _ = TRUE_PEAKS[case]
    tone = amplitude * sine(RATE / divisor, 1, 0, rate=RATE, phase=np.deg2rad(phase))
    return (tone * signal.windows.tukey(RATE, 0.02)).astype(np.float32)


def hidden_peak(offset: int) -> Samples:
    """Cases 20 to 23: a sine at a sixth of the rate, 0.5, with one period at a fourth, 1.0, which peaks at 0 dBTP.

    Made at four times the rate, filtered, and every fourth sample taken from ``offset`` on.
    """
    length = 4 * RATE
    slow = 0.5 * np.sin(2 * np.pi * np.arange(length) / 24)
    middle = length // 2 // 24 * 24
    fast = np.sin(2 * np.pi * np.arange(16) / 16)
    wave = np.concatenate([slow[:middle], fast, slow[middle:-16]]) * signal.windows.tukey(length, 0.02)
    low = signal.firwin(1025, 0.96 * RATE / 2, fs=4 * RATE)
    band = signal.fftconvolve(wave, low, mode="same")[offset::4]
    return np.stack([band, band]).astype(np.float32)
