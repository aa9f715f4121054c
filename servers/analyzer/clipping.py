"""Waves that were cut off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.pieces import Samples

FULL_SCALE = float(np.float32(0.9999))
MIN_RUN = 3
_MIN_LEVEL = 2**-5
_MIN_STEP = 1e-3


class ClippingMeter:
    """Counts runs of 3 or more successive samples of a channel that

    * are all at or above full scale (from 0.9999 on), or all at or below the negative one; or, where the highest (or
      lowest) sample of that channel is less than that,
    * all are that very sample, and the wave comes to it or leaves it by a step of more than a thousandth of it: it was
      cut off, then made quieter. Soft peaks, which are flat for some samples by quantization, have no such step; below
      1/32 of full scale those of 16 bits have, so nothing is counted there. A square wave cannot be told from a wave
      that was cut off, nor can soft peaks of 8 bits.

    Args:
        channels: how many.
    """

    def __init__(self, channels: int) -> None:
        self._tops = [(_Top(), _Top()) for _ in range(channels)]

    def process(self, samples: Samples) -> None:
        """Look at float32 ``[channels, n]``, ``n`` at least 1."""
        highest, lowest = samples.max(axis=1), samples.min(axis=1)
        for channel, (top, bottom) in enumerate(self._tops):
            top.process(samples[channel], float(highest[channel]), 1)
            bottom.process(samples[channel], -float(lowest[channel]), -1)

    def finish(self) -> tuple[int, int]:
        """Runs, and samples in them, of all channels. Call once, last."""
        found = [each.finish() for both in self._tops for each in both]
        return sum(runs for runs, _ in found), sum(samples for _, samples in found)


class _Top:
    """Runs at the highest sample so far of one channel; it sees the channel upside down where ``sign`` is -1."""

    def __init__(self) -> None:
        self._level = 0.0  # full scale, at most
        self._runs = self._samples = 0
        self._open = 0  # samples of a run that has not ended
        self._stepped = False  # whether there was a step to it
        self._last = math.nan

    def process(self, samples: Samples, highest: float, sign: int) -> None:
        if highest > self._level and self._level < FULL_SCALE:
            self._level = min(highest, FULL_SCALE)
            self._runs = self._samples = self._open = 0
        if highest >= self._level > 0:
            self._look(sign * samples)
        elif self._open:
            self._close(sign * float(samples[0]))
        self._last = sign * float(samples[-1])

    def finish(self) -> tuple[int, int]:
        self._close(math.nan)
        return (self._runs, self._samples) if self._level >= _MIN_LEVEL else (0, 0)

    def _look(self, samples: Samples) -> None:
        """Find the runs of samples of which one at least is as high as the level."""
        edges = np.flatnonzero(np.diff(samples >= self._level, prepend=False, append=False))
        begins, ends = edges[::2], edges[1::2]
        lengths = ends - begins
        stepped = self._steps(np.append(self._last, samples[:-1])[begins])
        if self._open and begins[0] == 0:
            lengths[0] += self._open
            stepped[0] = self._stepped
        elif self._open:
            self._close(float(samples[0]))
        self._open, self._stepped = 0, False
        if ends[-1] == len(samples):
            self._open, self._stepped = int(lengths[-1]), bool(stepped[-1])
            lengths, stepped, ends = lengths[:-1], stepped[:-1], ends[:-1]
        self._count(lengths, stepped | self._steps(samples[ends]))

    def _close(self, following: float) -> None:
        self._count(np.array([self._open]), self._steps(np.array([following])) | self._stepped)
        self._open = 0

    def _steps(self, neighbours: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Whether a wave that is cut off goes on like this beside the run; no neighbour (NaN) says nothing."""
        if self._level == FULL_SCALE:
            return np.ones(len(neighbours), bool)
        return self._level - neighbours > _MIN_STEP * self._level

    def _count(self, lengths: NDArray[np.intp], stepped: NDArray[np.bool_]) -> None:
        clipped = lengths[(lengths >= MIN_RUN) & stepped]
        self._runs += len(clipped)
        self._samples += int(clipped.sum())
