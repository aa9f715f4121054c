"""Pieces of sound of any lengths, in frames of few lengths, so that many are measured at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
Positions = NDArray[np.int64]

_HALVINGS = 4
_BATCH_SAMPLES = 1 << 20


class Covering:
    """Frames of one length that cover segments evenly; a segment that is shorter is in one frame.

    Args:
        segments: float32 ``[n, length]``, or n arrays ``[length]``.
        length: of the frames.

    Attributes:
        length: of the frames.
        owners: int64 ``[frames]``, the segment of each frame, ascending.
    """

    def __init__(self, segments: Samples | Sequence[Samples], length: int) -> None:
        self.length = length
        self._segments = segments
        sizes = np.array([len(segment) for segment in segments], np.int64)
        counts = np.maximum(1, -(-sizes // length))
        self.owners: Positions = np.repeat(np.arange(len(sizes)), counts)
        within = np.arange(len(self.owners)) - np.repeat(np.cumsum(counts) - counts, counts)
        spare = np.maximum(0, sizes - length)[self.owners]
        self._starts = within * spare // np.maximum(1, counts - 1)[self.owners]
        self._sizes = np.minimum(sizes, length)[self.owners]

    def batches(self) -> Iterator[tuple[slice, Samples, Positions]]:
        """Some frames at a time: which, ``[m, length]`` with zeros after their ends, and how many samples each has."""
        rows = max(1, _BATCH_SAMPLES // self.length)
        for first in range(0, len(self.owners), rows):
            which = slice(first, first + rows)
            owners, starts, sizes = self.owners[which], self._starts[which], self._sizes[which]
            frames = np.zeros((len(owners), self.length), np.float32)
            for frame, owner, start, size in zip(frames, owners.tolist(), starts.tolist(), sizes.tolist(), strict=True):
                frame[:size] = self._segments[owner][start : start + size]
            yield which, frames, sizes


def coverings(segments: Samples | Sequence[Samples], longest: int) -> Iterator[tuple[Positions, Covering]]:
    """Segments in frames of at most ``longest``: of half as much, and so on, those that fit.

    Yields:
        Which segments, and their frames. A segment's frames depend on its own length alone.
    """
    sizes = np.array([len(segment) for segment in segments], np.int64)
    lengths = [longest >> halvings for halvings in range(_HALVINGS + 1)]
    for length, half in zip(lengths, [*lengths[1:], -1], strict=True):
        fits = (sizes > half) & ((sizes <= length) | (length == longest))
        which = np.flatnonzero(fits)
        if len(which):
            yield which, Covering([segments[index] for index in which.tolist()], length)
