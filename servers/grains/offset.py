"""Levels of a stem without its constant part."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Samples = NDArray[np.float32]

_HZ = 10.0
_STEADY_SECONDS = 0.05


class Offset:
    """A high pass of one pole at 10 Hz. Memory does not grow.

    A stem that begins with 50 ms of one value, to a hundred thousandth, has had it for ever; in any other silence goes
    before.

    Args:
        rate: in Hz.
    """

    def __init__(self, rate: int) -> None:
        pole = np.exp(-2 * np.pi * _HZ / rate)
        self._numerator, self._denominator = np.array([1.0, -1.0]), np.array([1.0, -pole])
        self._steady = round(_STEADY_SECONDS * rate)
        self._state: NDArray[np.float64] | None = None

    def levels(self, samples: Samples) -> Samples:
        """Magnitude and power of each frame.

        What a filter makes of the end of a sound is none: the magnitude is that of the sample itself where that is
        smaller.

        Args:
            samples: float32 ``[channels, n]``, n above 0.

        Returns:
            float32 ``[2, n]``: of the channels the largest magnitude, and the mean power.
        """
        if self._state is None:
            first, begin = samples[:, :1].astype(np.float64), samples[:, : self._steady]
            is_steady = begin.shape[1] == self._steady and np.ptp(begin, axis=1).max() <= 1e-5
            self._state = -first if is_steady else np.zeros_like(first)
        moving, self._state = signal.lfilter(self._numerator, self._denominator, samples, zi=self._state)
        magnitudes = np.minimum(np.abs(moving), np.abs(samples)).max(axis=0)
        levels: Samples = np.stack([magnitudes, np.square(moving).mean(axis=0)]).astype(np.float32)
        return levels
