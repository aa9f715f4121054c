"""A pitch contour of bounded size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float32]

LIMIT = 250_000
_CENTS = 9600  # from 16.35 Hz (C0) up: eight octaves
_C0 = 440 * 2 ** (-57 / 12)


class Contour:
    """A growing list of f0 that is thinned to at most ``limit`` points, and a histogram of all of it.

    A point stands for ``2 ** k`` frames. It has a pitch where at least half of them have: that of one of them, so that
    no pitch is made up between two notes. The points do not depend on how the frames came.

    Args:
        limit: even.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._group = 1
        self._hz: list[Values] = []
        self._votes: list[NDArray[np.int64]] = []
        self._points = 0
        self._waiting = np.zeros(0, np.float32)
        self._histogram = np.zeros(_CENTS, np.int64)
        self.frames = 0

    @property
    def voiced(self) -> int:
        """Frames that have a pitch."""
        return int(self._histogram.sum())

    def extend(self, hz: Values) -> None:
        """Take in float32 ``[n]`` in Hz, 0 where there is no pitch."""
        self.frames += len(hz)
        heard = hz[hz > 0]
        if len(heard):
            cents = np.clip(np.rint(1200 * np.log2(heard / _C0)), 0, _CENTS - 1).astype(np.int64)
            self._histogram += np.bincount(cents, minlength=_CENTS)
        data = np.concatenate([self._waiting, hz])
        while len(data) > (room := (self._limit - self._points) * self._group):
            self._append(data[:room])
            data = data[room:]
            self._halve()
        whole = len(data) // self._group * self._group
        self._append(data[:whole])
        self._waiting = data[whole:]

    def percentiles(self, *percents: float) -> list[float]:
        """Percentiles of what has a pitch, in Hz, to half a cent."""
        ranks = np.array(percents) / 100 * (self.voiced - 1)
        cents = np.searchsorted(np.cumsum(self._histogram), ranks, side="right")
        return [float(_C0 * 2 ** (one / 1200)) for one in cents]

    def finish(self) -> tuple[Values, int]:
        """The points in Hz, float32 ``[n]``, 0 where there is no pitch, and how many frames one stands for."""
        if len(self._waiting):
            self._append(np.pad(self._waiting, (0, self._group - len(self._waiting))))
            self._waiting = self._waiting[:0]
        hz, votes = self._all()
        return np.where(2 * votes >= self._group, hz, 0).astype(np.float32), self._group

    def _append(self, hz: Values) -> None:
        votes = (hz > 0).astype(np.int64)
        size = self._group
        while size > 1:
            hz, votes = _merged(hz, votes)
            size //= 2
        self._hz.append(hz)
        self._votes.append(votes)
        self._points += len(hz)

    def _all(self) -> tuple[Values, NDArray[np.int64]]:
        return np.concatenate([np.zeros(0, np.float32), *self._hz]), np.concatenate([np.zeros(0, int), *self._votes])

    def _halve(self) -> None:
        hz, votes = _merged(*self._all())
        self._hz, self._votes, self._points = [hz], [votes], len(hz)
        self._group *= 2


def _merged(hz: Values, votes: NDArray[np.int64]) -> tuple[Values, NDArray[np.int64]]:
    """Pairs as one point each: the pitch of the one that more frames have, the first of equals."""
    hz, votes = hz.reshape(-1, 2), votes.reshape(-1, 2)
    second = votes[:, 1] > votes[:, 0]
    return np.where(second, hz[:, 1], hz[:, 0]), votes.sum(axis=1)
