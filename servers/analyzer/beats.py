"""Where the beats are, and which begin a bar."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_TIGHTNESS = 100.0  # librosa's
_METERS = (3, 4)
_BEATS = 16  # below this many, bars are not looked for
_UNEVEN = 0.05  # of the greatest: what deviates less is equal
_CLEAR = 1.0  # standard deviations by which beats that begin bars stand out
_APART = 0.7  # standard deviations by which they do so more than any others that might


def track_beats(strength: Floats, periods: Floats) -> Floats:
    """The beats that a recording's onsets agree with best, by dynamic programming.

    D. Ellis, "Beat Tracking by Dynamic Programming", 2007, with a period that may differ from frame to frame.

    Args:
        strength: onset strength ``[frames]``, at least 0.
        periods: frames a beat takes at each frame ``[frames]``.

    Returns:
        The beats in frames, ascending, between frames where the strength has a peak.
    """
    frames = len(strength)
    level = strength / max(float(strength.std()), 1e-9)
    score, back = _scores(level, np.ascontiguousarray(periods))
    tail = max(0, frames - round(1.5 * periods[-1]))
    beats = [tail + int(score[tail:].argmax())]
    while back[beats[-1]] >= 0:
        beats.append(int(back[beats[-1]]))
    return _refined(level, np.array(beats[::-1]))


@numba.njit(nogil=True)
def _scores(level: Floats, periods: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """How well the best beats that end at each frame agree, and the beat before it; -1: it is the first."""
    score = level.copy()
    back = np.full(len(level), -1, np.int32)
    for frame in range(len(level)):
        period, most = periods[frame], 0.0
        for last in range(max(0, frame - round(1.8 * period)), frame - round(0.55 * period) + 1):
            way = score[last] - _TIGHTNESS * np.log((frame - last) / period) ** 2
            if way > most:
                most, back[frame] = way, last
        score[frame] += most
    return score, back


def _refined(level: Floats, beats: NDArray[np.int64]) -> Floats:
    """The top of the parabola through the strongest frame within one of each beat."""
    padded = np.concatenate([[0.0, 0.0], level, [0.0, 0.0]])
    moves = np.array([0, -1, 1])  # in this order: where all are equal, a beat stays
    tops = beats + 2 + moves[padded[beats[:, None] + 2 + moves].argmax(axis=1)]
    left, top, right = padded[tops - 1], padded[tops], padded[tops + 1]
    curve = left - 2 * top + right
    move = np.where(curve < -1e-9, 0.5 * (left - right) / np.minimum(curve, -1e-9), 0)
    refined: Floats = tops - 2 + np.clip(move, -0.5, 0.5)
    return refined


def bars(accents: Floats) -> tuple[int, int]:
    """Beats a bar, 3 or 4, and the first beat that begins one; ``(0, 0)`` where it cannot be told.

    Args:
        accents: ``[kinds, beats]``: how each beat stands out, in several ways.
    """
    beats = accents.shape[1]
    if beats < _BEATS:
        return 0, 0
    spread = accents.std(axis=1, keepdims=True)
    told = spread > _UNEVEN * np.abs(accents).max(axis=1, keepdims=True)
    accents = np.where(told, (accents - accents.mean(axis=1, keepdims=True)) / np.maximum(spread, 1e-9), 0)
    found = []
    for meter in _METERS:
        for first in range(meter):
            chosen = np.arange(beats) % meter == first
            gain = accents[:, chosen].mean(axis=1) - accents[:, ~chosen].mean(axis=1)
            found.append((float(gain.mean()), meter, first))
    (best, meter, first), (second, *_), *_ = sorted(found, reverse=True)
    return (meter, first) if best >= _CLEAR and best - second >= _APART else (0, 0)
