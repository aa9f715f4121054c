"""What is wrong with a recording: silence, clipping, DC."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.clipping import ClippingMeter
from servers.analyzer.pieces import Pieces, Samples

GATE = 10 ** (-70 / 20)
"""-70 dBFS."""
_WINDOWS_PER_SECOND = 20


@dataclass(frozen=True, slots=True)
class Quality:
    """What is wrong with a recording, or not.

    Attributes:
        clipped_runs: runs of samples at which the wave was cut off; see ``ClippingMeter``.
        clipped_samples: samples in them.
        dc_offsets: mean of each channel; 1.0 is full scale.
        leading_silence_seconds: what comes before the first sample above -70 dBFS of any channel; all, if it is silent.
        trailing_silence_seconds: what comes after the last such sample; all, if it is silent.
        silent_share: share of it, 0 to 1, that is in windows of 50 ms without such a sample.
        silent: whether there is no such sample.
        sample_peak: largest absolute sample.
    """

    clipped_runs: int
    clipped_samples: int
    dc_offsets: tuple[float, ...]
    leading_silence_seconds: float
    trailing_silence_seconds: float
    silent_share: float
    silent: bool
    sample_peak: float


class QualityFeature:
    """The quality of one stream. The result does not depend on how it is cut into arrays.

    Args:
        sample_rate: in Hz.
        channels: 1 or 2.
    """

    def __init__(self, sample_rate: int, channels: int) -> None:
        self._rate = sample_rate
        self._clipping = ClippingMeter(channels)
        self._pieces = Pieces(max(1, sample_rate // _WINDOWS_PER_SECOND), channels)
        self._frames = 0
        self._silent_frames = 0
        self._sums = np.zeros(channels)
        self._peak = 0.0
        self._first: int | None = None  # frame above the gate
        self._last = 0

    def process(self, samples: Samples) -> None:
        """Measure float32 ``[channels, n]``."""
        if samples.shape[1]:
            self._clipping.process(samples)
            self._add(self._pieces.process(samples))

    def finish(self) -> Quality:
        """The result. Call once, last."""
        self._add(self._pieces.finish()[:, None])
        runs, clipped = self._clipping.finish()
        silent = self._first is None
        frames = max(1, self._frames)
        return Quality(
            clipped_runs=runs,
            clipped_samples=clipped,
            dc_offsets=tuple(float(value) for value in self._sums / frames),
            leading_silence_seconds=(self._frames if self._first is None else self._first) / self._rate,
            trailing_silence_seconds=(self._frames if silent else self._frames - 1 - self._last) / self._rate,
            silent_share=self._silent_frames / frames,
            silent=silent,
            sample_peak=self._peak,
        )

    def _add(self, pieces: Samples) -> None:
        """Add windows, float32 ``[channels, windows, n]``."""
        if not pieces.size:
            return
        _, windows, length = pieces.shape
        for sums in pieces.sum(axis=2).astype(np.float64).T:
            self._sums += sums
        peaks = np.maximum(pieces.max(axis=2), -pieces.min(axis=2)).max(axis=0)
        self._peak = max(self._peak, float(peaks.max()))
        loud = np.flatnonzero(peaks > GATE)
        if len(loud):
            if self._first is None:
                self._first = self._frames + int(loud[0]) * length + int(_above(pieces[:, loud[0]])[0])
            self._last = self._frames + int(loud[-1]) * length + int(_above(pieces[:, loud[-1]])[-1])
        self._silent_frames += (windows - len(loud)) * length
        self._frames += windows * length


def _above(window: Samples) -> NDArray[np.intp]:
    """Frames above the gate in one window, float32 ``[channels, n]``."""
    return np.flatnonzero((np.abs(window) > GATE).any(axis=0))
