"""Pieces of equal length, however a stream was cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


class Pieces:
    """Cuts a stream into pieces of equal length: what is computed of each does not depend on how the stream came.

    Args:
        length: of a piece, in frames, at least 1.
        channels: how many.
    """

    def __init__(self, length: int, channels: int) -> None:
        self._length = length
        self._rest = np.zeros((channels, 0), np.float32)

    def process(self, samples: Samples) -> Samples:
        """Take in float32 ``[channels, n]``; returns the pieces completed, float32 ``[channels, pieces, length]``."""
        if self._rest.shape[1]:
            samples = np.concatenate([self._rest, samples], axis=1)
        count = samples.shape[1] // self._length
        end = count * self._length
        self._rest = samples[:, end:].copy()
        # Copied: the sums of what is not contiguous may be rounded otherwise.
        return np.ascontiguousarray(samples[:, :end]).reshape(len(samples), count, self._length)

    def finish(self) -> Samples:
        """What is left, float32 ``[channels, n]``, less than a piece. Call once, last."""
        return self._rest


def sliding_sums(values: NDArray[np.float64], count: int, step: int = 1) -> NDArray[np.float64]:
    """Sums of ``count`` values, ``step`` apart, from each on: ``[n, ...]`` to ``[n - (count - 1) * step, ...]``.

    They are added in order: each sum is the same wherever ``values`` begins.
    """
    length = len(values) - (count - 1) * step
    if length <= 0:
        return np.zeros((0, *values.shape[1:]))
    sums = values[:length].copy()
    for place in range(1, count):
        sums += values[place * step : place * step + length]
    return sums
