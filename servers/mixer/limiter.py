"""A true-peak limiter that leaves alone what is below its ceiling."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from servers.media.truepeak import REACH, TAPS, between

Samples = NDArray[np.float32]

ATTACK_SECONDS = 0.005
RELEASE_SECONDS = 0.08
_NOTHING_DB = 1e-3  # a reduction so small ends


class Limiter:
    """Keep the true peak of one stream below a ceiling; all channels get the same gain.

    What is wanted at a frame is a reduction of as many dB as the samples there and the values between them exceed the
    ceiling. It decays exponentially, is held for 2.5 ms to both sides and smoothed by a triangle of the same width: so
    the gain falls within 5 ms *before* a peak, and is never above what the peak needs. Frames further than that from a
    peak and its decay come out bit by bit as they went in.

    The delay is removed: the first frame that comes out is the first that went in.

    Attributes:
        max_reduction_db: largest reduction so far.
    """

    def __init__(self, sample_rate: int, channels: int, ceiling_db: float) -> None:
        self._ceiling = 10 ** (ceiling_db / 20)
        self._half = max(1, round(sample_rate * ATTACK_SECONDS / 4))
        self._reach = 4 * self._half  # frames to each side that the gain of a frame depends on
        self._decay = 1 / (RELEASE_SECONDS * sample_rate)  # nepers a frame
        self._context = np.zeros((channels, TAPS - 1), np.float32)
        self._last_between = 0.0
        self._reduction = 0.0  # of the last frame
        self._reductions = np.zeros(self._reach)  # from `reach` frames before the first of those kept
        self._kept = np.zeros((channels, 0), np.float32)
        self._skip = REACH  # detection lags by so much: its first values are of frames before the first
        self.max_reduction_db = 0.0

    def process(self, samples: Samples) -> Samples:
        """Feed float32 ``[channels, n]``; return what is ready, about 7 ms less than came in all."""
        self._kept = np.concatenate([self._kept, samples], axis=1)
        extended = np.concatenate([self._context, samples], axis=1)
        self._context = extended[:, -(TAPS - 1) :].copy()
        reductions = self._wanted(extended)
        skipped = min(self._skip, len(reductions))
        self._skip -= skipped
        self._reductions = np.concatenate([self._reductions, reductions[skipped:]])
        ready = max(0, len(self._reductions) - 2 * self._reach)
        return self._limited(ready)

    def finish(self) -> Samples:
        """Return the rest. Call once, last."""
        left = self._kept.shape[1]
        rest = self.process(np.zeros((len(self._kept), REACH + self._reach), np.float32))
        return rest[:, :left]

    def _wanted(self, extended: Samples) -> NDArray[np.float64]:
        """Reductions in dB, decay included, of the frames from ``REACH - 1`` on."""
        peaks_between = between(extended).max(axis=0, initial=0.0)
        before = np.concatenate([[self._last_between], peaks_between[:-1]])
        self._last_between = float(peaks_between[-1]) if len(peaks_between) else self._last_between
        frames = np.abs(extended[:, REACH - 1 : REACH - 1 + len(peaks_between)]).max(axis=0, initial=0.0)
        peaks = np.maximum(np.maximum(frames, peaks_between), before).astype(np.float64)
        over = peaks > self._ceiling
        if self._reduction == 0.0 and not over.any():
            return np.zeros(len(peaks))
        wanted = np.zeros(1 + len(peaks))
        wanted[0] = self._reduction
        wanted[1:][over] = 20 * np.log10(peaks[over] / self._ceiling)
        # max over k of wanted[k] * exp(-decay * (n - k)), as a running maximum of logarithms
        slope = self._decay * np.arange(len(wanted))
        with np.errstate(divide="ignore"):
            decayed: NDArray[np.float64] = np.exp(np.maximum.accumulate(np.log(wanted) + slope) - slope)
        decayed[decayed < _NOTHING_DB] = 0.0
        self._reduction = float(decayed[-1])
        return decayed[1:]

    def _limited(self, count: int) -> Samples:
        """The first ``count`` of the kept frames, with their gain."""
        reductions = self._reductions[: count + 2 * self._reach]
        samples = self._kept[:, :count]
        self._reductions = self._reductions[count:].copy()
        self._kept = self._kept[:, count:].copy()
        if not count or not reductions.any():
            return samples
        held = maximum_filter1d(reductions, 4 * self._half + 1)
        for _ in range(2):
            held = uniform_filter1d(held, 2 * self._half + 1)
        smooth = held[self._reach : self._reach + count]
        self.max_reduction_db = max(self.max_reduction_db, float(smooth.max()))
        limited: Samples = (samples * np.exp(smooth * (-math.log(10) / 20))).astype(np.float32)
        return limited
