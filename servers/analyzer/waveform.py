"""The shape of a recording, to be drawn."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.pieces import Samples

POINTS_PER_SECOND = 100


@dataclass(frozen=True, slots=True, eq=False)
class Peaks:
    """The shape of a stretch of a recording, all channels in one; all arrays are of one length.

    Attributes:
        minima: lowest sample of each point, int8: -127 is -1.0 or below.
        maxima: highest sample of each point, int8: 127 is 1.0 or above.
        rms: root mean square of each point, over all channels, uint8: 255 is 1.0 or above.
        start_seconds: where the first point begins.
        points_per_second: point ``i`` begins ``i / points_per_second`` later, to the nearest hundredth of a second.
    """

    minima: NDArray[np.int8]
    maxima: NDArray[np.int8]
    rms: NDArray[np.uint8]
    start_seconds: float = 0.0
    points_per_second: float = POINTS_PER_SECOND


class WaveformFeature:
    """The shape of one stream, 100 points a second. The result does not depend on how it is cut into arrays.

    Point ``i`` is of the frames from ``floor(i * sample_rate / 100)`` to before the next one's first, so there is no
    drift at any rate; the last point may be shorter. Memory: 3 bytes a point.

    Args:
        sample_rate: in Hz, at least 100.
        frames: exactly how many will come.
    """

    def __init__(self, sample_rate: int, frames: int) -> None:
        self._rate = sample_rate
        points = -(-frames * POINTS_PER_SECOND // sample_rate)
        self._peaks = Peaks(np.zeros(points, np.int8), np.zeros(points, np.int8), np.zeros(points, np.uint8))
        self._rest: Samples | None = None
        self._done = 0

    def process(self, samples: Samples) -> None:
        """Take in float32 ``[channels, n]``."""
        data = samples if self._rest is None else np.concatenate([self._rest, samples], axis=1)
        first = self._first(self._done)
        end = ((first + data.shape[1] + 1) * POINTS_PER_SECOND - 1) // self._rate
        used = self._first(end) - first
        self._add(data[:, :used], end)
        self._rest = data[:, used:].copy()

    def finish(self) -> Peaks:
        """The result. Call once, last."""
        if self._rest is not None and self._rest.shape[1]:
            self._add(self._rest, self._done + 1)
        return self._peaks

    def _first(self, point: int) -> int:
        """First frame of a point."""
        return point * self._rate // POINTS_PER_SECOND

    def _add(self, data: Samples, end: int) -> None:
        """Add the points up to ``end``, whose frames are in ``data``."""
        if end == self._done:
            return
        edges = np.arange(self._done, end) * self._rate // POINTS_PER_SECOND
        edges -= edges[0]
        new = slice(self._done, end)
        lowest = np.minimum.reduceat(data, edges, axis=1).min(axis=0)
        highest = np.maximum.reduceat(data, edges, axis=1).max(axis=0)
        powers = np.add.reduceat(np.square(data), edges, axis=1).mean(axis=0) / np.diff(edges, append=data.shape[1])
        self._peaks.minima[new] = np.rint(127 * np.clip(lowest, -1, 1))
        self._peaks.maxima[new] = np.rint(127 * np.clip(highest, -1, 1))
        self._peaks.rms[new] = np.rint(255 * np.minimum(np.sqrt(powers), 1))
        self._done = end


def reduced(peaks: Peaks, start: float, end: float, points: int) -> Peaks:
    """The shape of a stretch in at most so many points: fewer where there are not as many.

    Args:
        peaks: as of a ``WaveformFeature``.
        start: where to begin, in seconds; rounded down to a point.
        end: where to end, in seconds, rounded up to a point; 0, or beyond the end: the end.
        points: at least 1.

    Returns:
        The lowest minimum, the highest maximum and the root mean square of as equal shares as there are; no points
        where ``start`` is not before the end.
    """
    total = len(peaks.minima)
    # What is a hundredth of a second but for rounding is one.
    first = min(total, math.floor(start * POINTS_PER_SECOND + 1e-6))
    last = min(total, math.ceil(end * POINTS_PER_SECOND - 1e-6)) if end > 0 else total
    found = max(0, last - first)
    count = min(points, found)
    if not count:
        return Peaks(peaks.minima[:0], peaks.maxima[:0], peaks.rms[:0], first / POINTS_PER_SECOND)
    edges = np.arange(count) * found // count
    stretch = slice(first, last)
    powers = np.add.reduceat(np.square(peaks.rms[stretch].astype(np.float64)), edges) / np.diff(edges, append=found)
    return Peaks(
        minima=np.minimum.reduceat(peaks.minima[stretch], edges),
        maxima=np.maximum.reduceat(peaks.maxima[stretch], edges),
        rms=np.rint(np.sqrt(powers)).astype(np.uint8),
        start_seconds=first / POINTS_PER_SECOND,
        points_per_second=POINTS_PER_SECOND * count / found,
    )
