"""Overlapping frames of a stream, and their spectra."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Samples = NDArray[np.float32]


class Framer:
    """Cuts a mono stream into overlapping frames, as ``librosa.util.frame`` with ``center=True`` would.

    Frame ``i`` is centred on sample ``i * hop``; the stream is continued by zeros at both ends. The frames do not
    depend on how the stream was cut into arrays.

    Args:
        length: of a frame, in samples; even.
        hop: from one frame to the next, in samples, at most ``length``.
    """

    def __init__(self, length: int, hop: int) -> None:
        self._length, self._hop = length, hop
        self._rest = np.zeros(length // 2, np.float32)
        self._samples = 0
        self._given = 0

    def process(self, samples: Samples) -> Samples:
        """Take in float32 ``[n]``; returns the frames that are complete, float32 ``[frames, length]`` (read-only)."""
        self._samples += len(samples)
        return self._frames(samples)

    def finish(self) -> Samples:
        """The last frames: in all there are ``1 + samples // hop``. Call once, last."""
        missing = 1 + self._samples // self._hop - self._given
        end = (missing - 1) * self._hop + self._length
        return self._frames(np.zeros(max(0, end - len(self._rest)), np.float32))[:missing]

    def _frames(self, samples: Samples) -> Samples:
        data = np.concatenate([self._rest, samples])
        count = max(0, 1 + (len(data) - self._length) // self._hop)
        self._rest = data[count * self._hop :]
        self._given += count
        if not count:
            return np.zeros((0, self._length), np.float32)
        return np.lib.stride_tricks.sliding_window_view(data, self._length)[:: self._hop][:count]


def power_spectra(frames: Samples, window: Samples) -> Samples:
    """Squared magnitudes of windowed frames.

    Args:
        frames: float32 ``[frames, n]``.
        window: float32 ``[n]``.

    Returns:
        float32 ``[frames, n // 2 + 1]``.
    """
    spectra = fft.rfft(frames * window, axis=1)
    powers: Samples = spectra.real**2 + spectra.imag**2
    return powers
