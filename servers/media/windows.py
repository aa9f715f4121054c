"""Overlapping windows of a stream, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


class WindowCutter:
    """Cuts a stream into windows; what comes out does not depend on how the stream was cut before.

    Args:
        window, hop: in samples; ``hop`` is at most ``window``.
        at_once: windows that come together, but for the last.
    """

    def __init__(self, window: int, hop: int, at_once: int) -> None:
        self._window, self._hop, self._at_once = window, hop, at_once
        self._parts: list[Samples] = []
        self._waiting = 0
        self._begun = False

    def process(self, mono: Samples) -> Iterator[Samples]:
        """Take in float32 ``[n]``; what is complete, float32 ``[at_once, window]`` each."""
        self._parts.append(mono.copy())
        self._waiting += len(mono)
        batch = self._window + (self._at_once - 1) * self._hop
        while self._waiting >= batch:
            data = np.concatenate(self._parts)
            self._parts = [data[self._at_once * self._hop :]]
            self._waiting = len(self._parts[0])
            self._begun = True
            yield self._cut(data[:batch])

    def finish(self) -> Iterator[Samples]:
        """The rest, if there is one: fewer windows ``[n, window]``, the last filled up with zeros."""
        if self._waiting > (self._window - self._hop if self._begun else 0):
            windows = max(1, -(-(self._waiting - self._window) // self._hop) + 1)
            end = self._window + (windows - 1) * self._hop
            yield self._cut(np.pad(np.concatenate(self._parts), (0, end - self._waiting)))
        self._parts, self._waiting = [], 0

    def _cut(self, samples: Samples) -> Samples:
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(samples, self._window)[:: self._hop])
