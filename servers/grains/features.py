"""What grains sound like: level, brightness, where they begin and how fast they rise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from servers.grains.covering import coverings
from servers.grains.library import MIN_FRAMES

Samples = NDArray[np.float32]
Positions = NDArray[np.int64]

ONSET_DB = 20.0
"""A grain's onset is the first frame that is by less than this below its peak, but not in its last 512 frames."""
_FRAME_SECONDS = 0.0465


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Of n grains.

    Attributes:
        rms: float32 ``[n]``, of all samples of all channels.
        peaks: float32 ``[n]``, the largest magnitude.
        onsets: int64 ``[n]``, frames from a grain's beginning to its onset.
        attacks: int64 ``[n]``, frames from there to its peak.
    """

    rms: Samples
    peaks: Samples
    onsets: Positions
    attacks: Positions


def levels_of(audio: Samples, lengths: Positions) -> Levels:
    """Levels of grains that follow each other in ``audio``, float32 ``[channels, frames]``, of 1 frame or more each."""
    offsets = np.cumsum(lengths) - lengths
    squares = np.add.reduceat(np.square(audio).mean(axis=0), offsets, dtype=np.float64)
    magnitudes = np.abs(audio).max(axis=0)
    peaks = np.maximum.reduceat(magnitudes, offsets)
    audible = peaks * np.float32(10 ** (-ONSET_DB / 20))
    grains = [magnitudes[begin:end] for begin, end in zip(offsets.tolist(), np.cumsum(lengths).tolist(), strict=True)]
    onsets = np.array([np.argmax(grain >= level) for grain, level in zip(grains, audible, strict=True)], np.int64)
    onsets = np.minimum(onsets, np.maximum(lengths - MIN_FRAMES, 0))
    return Levels(
        rms=np.sqrt(squares / lengths).astype(np.float32),
        peaks=peaks,
        onsets=onsets,
        attacks=np.array([np.argmax(grain) for grain in grains], np.int64) - onsets,
    )


def brightness_of(
    segments: Samples | Sequence[Samples], rate: int, pause: Callable[[], object] = lambda: None
) -> Samples:
    """The spectral centroid of each segment: the mean frequency, weighted by magnitude, of Hann windows of 46 ms.

    A segment that is shorter than that has a window of its own length. Does not depend on the other segments.

    Args:
        segments: float32 ``[n, length]``, or n arrays ``[length]`` of any lengths: mono, finite.
        rate: in Hz.
        pause: called again and again; what it raises ends the work.

    Returns:
        float32 ``[n]``, in Hz; 0 of silence.
    """
    result = np.zeros(len(segments), np.float32)
    longest = 16 * fft.next_fast_len(round(_FRAME_SECONDS * rate / 16), real=True)  # fast to transform if halved, too
    for which, covering in coverings(segments, longest):
        sums = np.zeros((2, len(covering.owners)))
        hz = np.arange(covering.length // 2 + 1) * (rate / covering.length)
        for batch, frames, lengths in covering.batches():
            magnitudes = np.abs(fft.rfft(frames * _windows(lengths, covering.length), axis=1))
            sums[:, batch] = magnitudes @ hz, magnitudes.sum(axis=1, dtype=np.float64)
            pause()
        weighted, weights = (np.bincount(covering.owners, each, len(which)) for each in sums)
        result[which] = weighted / np.maximum(weights, np.finfo(np.float32).tiny)
    return result


def _windows(lengths: Positions, size: int) -> Samples:
    """Hann windows ``[m, size]``, each as long as its frame."""
    full = lengths == size
    windows = np.empty((len(lengths), size), np.float32)
    steps = np.arange(size, dtype=np.float32) + np.float32(0.5)
    windows[full] = np.square(np.sin(np.pi * steps / size))
    short = np.maximum(1, lengths[~full, None]).astype(np.float32)
    windows[~full] = np.square(np.sin(np.pi * np.minimum(steps / short, 1)))
    return windows


def in_phase(audio: Samples, lengths: Positions) -> Samples:
    """Mono of grains that follow each other: the mean of channels, the second inverted where that is louder.

    Args:
        audio: float32 ``[channels, frames]``, 1 or 2 channels.
        lengths: int64 ``[n]``, frames of each grain.

    Returns:
        float32 ``[frames]``.
    """
    if len(audio) == 1:
        only: Samples = audio[0]
        return only
    left, right = audio
    alike = np.add.reduceat(left * right, np.cumsum(lengths) - lengths, dtype=np.float64) >= 0
    signs = np.where(alike, np.float32(0.5), np.float32(-0.5))
    mono: Samples = np.float32(0.5) * left + right * np.repeat(signs, lengths)
    return mono
