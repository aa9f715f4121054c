"""True peaks: what lies between the samples, by oversampling as in ITU-R BS.1770-4, annex 2.

Eight times and with a longer filter than its example (4 times, 12 taps), which reads up to 0.7 dB too little at half of
the sample rate and is not flat: so what is within a ceiling here is within it for other meters too.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

TAPS = 64
"""Length of the interpolation filter in frames."""
REACH = TAPS // 2
"""Frames before and after that the value between two frames depends on."""
_OVERSAMPLING = 8
_BLOCK = 32


@cache
def _interpolation() -> Samples:
    """A banded matrix: ``[TAPS + BLOCK - 1]`` frames to ``[7 * BLOCK]`` values between them.

    One matrix product does more arithmetic than a filter and is yet several times faster.
    """
    taps = np.arange(TAPS) - (REACH - 1)
    window = np.kaiser(_OVERSAMPLING * TAPS + 1, 6.0)
    matrix = np.zeros((TAPS + _BLOCK - 1, _OVERSAMPLING - 1, _BLOCK), np.float32)
    for phase in range(1, _OVERSAMPLING):
        # The window's centre lies on the value that is asked for.
        steps = _OVERSAMPLING * taps - phase
        kernel = np.sinc(steps / _OVERSAMPLING) * window[_OVERSAMPLING * REACH + steps]
        for frame in range(_BLOCK):
            matrix[frame : frame + TAPS, phase - 1, frame] = kernel / kernel.sum()
    return matrix.reshape(TAPS + _BLOCK - 1, -1)


def between(samples: Samples) -> Samples:
    """Largest absolute value strictly between frame ``REACH - 1 + i`` and the next, of seven values there.

    Args:
        samples: float32 ``[channels, TAPS - 1 + n]``.

    Returns:
        float32 ``[channels, n]``.
    """
    channels, count = samples.shape[0], samples.shape[1] - (TAPS - 1)
    blocks = -(-count // _BLOCK)
    padded = np.pad(samples, ((0, 0), (0, blocks * _BLOCK - count)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, TAPS + _BLOCK - 1, axis=1)[:, ::_BLOCK]
    values: Samples = windows.reshape(-1, TAPS + _BLOCK - 1) @ _interpolation()
    np.abs(values, out=values)
    peaks: Samples = values.reshape(-1, _OVERSAMPLING - 1, _BLOCK).max(axis=1)
    return peaks.reshape(channels, -1)[:, :count]


class TruePeakMeter:
    """True peak of one stream, silent before and after."""

    def __init__(self, channels: int) -> None:
        self._context = np.zeros((channels, TAPS - 1), np.float32)
        self._peak = 0.0

    def process(self, samples: Samples) -> None:
        """Measure float32 ``[channels, n]``."""
        if samples.shape[1]:
            extended = np.concatenate([self._context, samples], axis=1)
            self._context = extended[:, -(TAPS - 1) :].copy()
            self._peak = max(self._peak, float(np.abs(samples).max()), float(between(extended).max()))

    def finish(self) -> float:
        """The true peak in dBTP; -infinity for digital silence. Call once, last."""
        self.process(np.zeros((len(self._context), REACH), np.float32))
        return 20 * math.log10(self._peak) if self._peak > 0 else -math.inf
