"""Loudness matching: the gain that gives one stream the loudness of another, while both are still coming."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

LOOK_AHEAD_HOPS = 20
"""The gain knows what comes in the next 2 s, so it has mostly settled when singing begins."""
MAX_GAIN_DB = 12.0
MAX_STEP_DB = 0.6
"""Per hop of 100 ms."""


class LoudnessMatch:
    """Follow the difference between the loudness of a reference and of an input, both since their start.

    Every 100 ms there is a target: the difference 2 s later, by at most ±12 dB, the last one where there is none. The
    gain starts at the first target and approaches the following ones by 6 dB a second; in between it is interpolated
    (linearly in dB).

    Attributes:
        min_gain_db, max_gain_db, gain_db: lowest, highest and last gain so far.
    """

    def __init__(self, hop: int) -> None:
        """Args: hop: frames in 100 ms."""
        self._hop = hop
        self._reference: deque[float] = deque()
        self._own: deque[float] = deque()
        self._to_skip = LOOK_AHEAD_HOPS
        self._target = 0.0
        self._started = False
        self.gain_db = self.min_gain_db = self.max_gain_db = 0.0

    def add_reference(self, loudness: Iterable[float]) -> None:
        """Loudness of the reference from its start to the end of each following hop, in LUFS; NaN: unknown."""
        self._reference.extend(loudness)

    def add_own(self, loudness: Iterable[float]) -> None:
        """As ``add_reference``, of the input."""
        self._own.extend(loudness)

    def gains(self, frames: int) -> NDArray[np.float64]:
        """Factors for the next frames, ``[frames]``; whole hops, but at the end.

        The hops up to 2 s ahead must have been added, or all there are.
        """
        while self._to_skip and self._reference and self._own:
            self._follow()
            self._to_skip -= 1
        self._to_skip = 0
        nodes = []
        for _ in range(-(-frames // self._hop)):
            self._follow()
            if not self._started:
                self._started = True
                self.gain_db = self.min_gain_db = self.max_gain_db = self._target
            nodes.append(self.gain_db)
            self.gain_db += min(max(self._target - self.gain_db, -MAX_STEP_DB), MAX_STEP_DB)
            self.min_gain_db = min(self.min_gain_db, self.gain_db)
            self.max_gain_db = max(self.max_gain_db, self.gain_db)
        nodes.append(self.gain_db)
        decibels = np.interp(np.arange(frames), np.arange(len(nodes)) * self._hop, nodes)
        factors: NDArray[np.float64] = np.exp(decibels * (math.log(10) / 20))
        return factors

    def _follow(self) -> None:
        """Take in one more hop, where there is one of both."""
        if self._reference and self._own:
            difference = self._reference.popleft() - self._own.popleft()
            if not math.isnan(difference):
                self._target = min(max(difference, -MAX_GAIN_DB), MAX_GAIN_DB)
