"""Dynamics: the power of the whole, and the dynamic range (DR)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.pieces import Pieces, Samples
from servers.media.loudness import hop_frames

_HOPS_PER_BLOCK = 30  # 3 s
_LOUDEST = 0.2
_MIN_SECONDS = 6  # two blocks
_MIN_POWER = 1e-7  # -70 dBFS


class DynamicsMeter:
    """Mean power of a stream, and its dynamic range as by the Pleasurize Music Foundation's "TT Dynamic Range Meter".

    Of each channel and each block of 3 s (30 hops of 100 ms, to the nearest frame): its RMS times the square root of
    2, so that a sine has that of its peak, and its largest sample. The dynamic range of a channel is the second largest
    of those samples over the root of the mean square of the loudest 20 % (rounded down, at least one) of those RMS
    values, in dB; that of the stream is the mean of its channels. The last, shorter block counts as any.

    Differences from the original (and from ``dr14_t.meter``): it is not rounded to an integer; a channel that is silent
    is left out instead of counting as 0; blocks are 3 s at 44.1 kHz too, where the original takes 132,480 frames.

    Memory: 2 numbers a channel and 3 s.

    Args:
        sample_rate: in Hz.
        channels: 1 or 2.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._hop = hop_frames(sample_rate)
        self._min_frames = _MIN_SECONDS * sample_rate
        self._pieces = Pieces(self._hop, channels)
        self._hops = 0
        self._frames = 0
        self._sums = np.zeros((channels, 1))  # of squares, of each block
        self._peaks = np.zeros((channels, 1), np.float32)

    def process(self, samples: Samples) -> None:
        """Measure float32 ``[channels, n]``."""
        pieces = self._pieces.process(samples)
        if pieces.shape[1]:
            self._add(pieces)

    def finish(self) -> None:
        """The end. Call once, last, before the results are read."""
        rest = self._pieces.finish()
        if rest.shape[1]:
            self._add(rest[:, None])

    @property
    def power(self) -> float:
        """Mean square of all samples of all channels."""
        return float(self._sums.sum()) / max(1, self._frames * len(self._sums))

    @property
    def range_db(self) -> float | None:
        """The dynamic range in dB; None where it is shorter than 6 s, or where all channels are silent."""
        if self._frames < self._min_frames:
            return None
        block = _HOPS_PER_BLOCK * self._hop
        blocks = -(-self._frames // block)
        lengths = np.full(blocks, block)
        lengths[-1] = self._frames - (blocks - 1) * block
        found = [
            _range(2 * sums[:blocks] / lengths, peaks[:blocks])
            for sums, peaks in zip(self._sums, self._peaks, strict=True)
        ]
        heard = [each for each in found if each is not None]
        return sum(heard) / len(heard) if heard else None

    def _add(self, pieces: Samples) -> None:
        """Add hops, float32 ``[channels, hops, n]``."""
        places = np.arange(self._hops, self._hops + pieces.shape[1]) // _HOPS_PER_BLOCK
        if (missing := int(places[-1]) + 1 - self._sums.shape[1]) > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, missing)))
            self._peaks = np.pad(self._peaks, ((0, 0), (0, missing)))
        sums = np.square(pieces).sum(axis=2)
        peaks = np.maximum(pieces.max(axis=2), -pieces.min(axis=2))
        for channel in range(len(pieces)):
            np.add.at(self._sums[channel], places, sums[channel])
            np.maximum.at(self._peaks[channel], places, peaks[channel])
        self._hops += pieces.shape[1]
        self._frames += pieces.shape[1] * pieces.shape[2]


def _range(powers: NDArray[np.float64], peaks: Samples) -> float | None:
    """Dynamic range of a channel, of the doubled mean square and the peak of each block; None: it is silent."""
    loudest = np.sort(powers)[-max(1, int(_LOUDEST * len(powers))) :].mean()
    second = float(np.sort(peaks)[-2])
    if loudest < _MIN_POWER or second == 0:
        return None
    return 20 * math.log10(second) - 10 * math.log10(float(loudest))
