"""Noise that depends on its place in the stream, not on how the stream was cut: a frame always gets the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 100  # frames that are drawn at once


class Noise:
    """Standard normal numbers for each frame of a stream.

    Args:
        seed: 0 and above; different seeds, different noise.
        kind: keeps uses apart.
        width: numbers of a frame.
    """

    def __init__(self, seed: int, kind: int, width: int) -> None:
        self._key = (seed, kind, width)
        self._width = width

    def frames(self, first: int, count: int) -> NDArray[np.float32]:
        """Numbers of ``count`` frames from ``first`` (which may be negative), (count, width)."""
        blocks = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
        drawn = np.concatenate([self._block(block) for block in blocks])
        start = first - blocks[0] * BLOCK
        return drawn[start : start + count]

    def _block(self, block: int) -> NDArray[np.float32]:
        # Context before the stream has negative frames; seeds cannot.
        place = np.random.SeedSequence((*self._key, block + (1 << 40)))
        return np.random.Generator(np.random.Philox(place)).standard_normal((BLOCK, self._width), np.float32)
