"""Chroma of a stream, finer than semitones, so that it can be tuned when all of it has been heard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from servers.analyzer.frames import Framer

Samples = NDArray[np.float32]
Values = NDArray[np.float64]

RATE = 22_050
FINE = 120  # bins of an octave, of 10 cents each; bin 0 is C
_LENGTH, _HOP = 8192, 4096
_LOWEST, _HIGHEST = 55.0, 2100.0  # Hz: below, semitones are narrower than bins; above are overtones
_SPLIT = 262.0  # Hz: what is below is bass
_FIRST, _LAST = int(_LOWEST * _LENGTH / RATE), int(_HIGHEST * _LENGTH / RATE) + 1
_BLOCK = 24  # bins over which noise is taken to be flat
_ABOVE_NOISE = 16.0  # 12 dB over the median power: one in 65,000 bins of white noise
_GATE = 1e-9  # power of a full-scale sine is 1: nothing below -90 dBFS is heard
_C0 = 440 * 2 ** (-57 / 12)


class ChromaStream:
    """Sums the square roots of the amplitudes of spectral peaks by pitch class, per stretch of about 6 s.

    Peaks are bins that stand 12 dB out of the noise around them and are there in the frame before or after, too:
    that leaves clicks, drums and hiss out. Roots let quiet voices count beside loud ones (spectral whitening would
    let hiss count as well). An empty frame weighs nothing.
    """

    _STRETCH = 32  # frames

    def __init__(self) -> None:
        self._framer = Framer(_LENGTH, _HOP)
        self._window = np.hanning(_LENGTH + 1)[:-1].astype(np.float32)
        self._window *= 2 / self._window.sum()
        self._before: tuple[Values, NDArray[np.bool_]] | None = None
        self._held: Samples | None = None
        self._stretches: list[Values] = []
        self._frames = 0
        self.power = 0.0  # of all frames
        self.tonal = 0.0  # of their peaks
        
    def process(self, samples: Samples) -> None:
        """Take in float32 ``[n]``, mono at 22,050 Hz."""
