"""Plays a short sound slower or faster and keeps its pitch.

WSOLA: W. Verhelst and M. Roelands, "An overlap-add technique based on waveform similarity (WSOLA) for high quality
time-scale modification of speech", ICASSP 1993.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import signal

Samples = NDArray[np.float32]

_HOP_SECONDS = 0.015
_SILENT = 1e-9  # sum of squares


def frames_needed(frames: int, factor: float, rate: int) -> int:
    """How many frames of a sound are looked at to make ``frames`` of it ``factor`` times as long."""
    return frames if factor == 1 else math.ceil(frames / factor) + 4 * _hop(rate)


def stretched(sound: Samples, factor: float, frames: int, rate: int) -> Samples:
    """The first frames of a sound that lasts longer, its pitch kept.

    Every 15 ms it goes on, by a crossfade, with what lies nearest to where it should be, within 15 ms, and is most
    similar to what would have followed. The first 15 ms stay as they are: an attack is not smeared.

    Args:
        sound: float32 ``[channels, n]``; what comes after it is silence.
        factor: 2 plays it at half its speed; 1: nothing changes.
        frames: at most so many come back.
        rate: in Hz.

    Returns:
        float32 ``[channels, min(frames, round(n * factor))]``.
    """
    frames = min(frames, round(sound.shape[1] * factor))
    if factor == 1:
        return sound[:, :frames]
    hop = _hop(rate)
    steps = -(-frames // hop)
    padded = np.pad(sound, ((0, 0), (0, max(0, frames_needed(steps * hop, factor, rate) - sound.shape[1]))))
    mono = padded.mean(axis=0)
    rise = (np.sin(np.pi / 2 * (np.arange(hop) + 0.5) / hop) ** 2).astype(np.float32)
    longer = np.empty((len(sound), steps * hop), np.float32)
    follows = 0
    for step in range(steps):
        here = slice(step * hop, (step + 1) * hop)
        old = padded[:, follows : follows + hop]
        goes_on = _most_similar(mono, follows, round(step * hop / factor), hop) if step else 0
        longer[:, here] = old + rise * (padded[:, goes_on : goes_on + hop] - old)
        follows = goes_on + hop
    return longer[:, :frames]


def _most_similar(mono: Samples, follows: int, ideal: int, hop: int) -> int:
    """Where, at most ``hop`` from ``ideal``, the ``hop`` frames are most similar to those at ``follows``."""
    begin = max(0, ideal - hop)
    around = mono[begin : ideal + 2 * hop]
    wanted = mono[follows : follows + hop]
    likeness = signal.correlate(around, wanted, mode="valid", method="fft")
    squares = np.concatenate([[0.0], np.cumsum(np.square(around, dtype=np.float64))])
    likeness /= np.sqrt(np.maximum(squares[hop:] - squares[:-hop], _SILENT))
    return begin + int(likeness.argmax())


def _hop(rate: int) -> int:
    return max(1, round(_HOP_SECONDS * rate))
