"""Where a sound is cut into grains."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
from contrafact.v1 import grain_pb2
from numpy.typing import NDArray

from servers.grains.chance import Purpose, draws
from servers.grains.library import MAX_GRAINS, MIN_FRAMES
from servers.grains.onsets import Onsets, refined

Samples = NDArray[np.float32]
Positions = NDArray[np.int64]
Spans = NDArray[np.int64]

SILENT = 10 ** (-70 / 20)
TOP_DB = 20.0
GRAIN_MS = 120.0
_FRAME, _HOP = 2048, 512
_LEAST_POWER = np.float32(1e-10)  # librosa's
_FRAMES_AT_ONCE = 2048
_BLOCK_SECONDS = 10
_SPLITTING_SHARE = 0.2  # of the work
_MARGIN_SECONDS = 0.1  # `refined` looks at less


class CannotCut(ValueError):
    """A sound gives no library.

    Attributes:
        reason: STYLE_SILENT, NO_GRAINS or TOO_MANY_GRAINS.
    """

    def __init__(self, reason: Literal["STYLE_SILENT", "NO_GRAINS", "TOO_MANY_GRAINS"], message: str) -> None:
        super().__init__(message)
        self.reason = reason


def spans_of(samples: Samples, rate: int, cut: grain_pb2.Cut, progress: Callable[[float], None]) -> Spans:
    """Where each grain begins and ends.

    What sounds is what ``librosa.effects.split`` finds; pieces of less than 512 frames are dropped. With ONSETS each
    piece is cut at its onsets, but for those that would leave less than 512 frames before them or after. With FIXED it
    is cut into grains of ``grain_ms``, give or take the jitter, and at least 512 frames; a rest of less than half of
    ``grain_ms``, or 512 frames, stays with the grain before it.

    Args:
        samples: float32 ``[channels, frames]``, finite.
        rate: in Hz.
        progress: called with the share that is done, at least for every 10 s of sound; what it raises ends the work.

    Returns:
        int64 ``[n, 2]``: first frames, and those after the last; ascending, not overlapping, 512 frames or longer.

    Raises:
        CannotCut: it is silent, or has no grain, or more than 200,000.
    """
    if max(samples.max(), -samples.min()) <= SILENT:
        raise CannotCut("STYLE_SILENT", "Nothing in it is above -70 dBFS.")
    pieces = sounding(samples, cut.top_db if cut.HasField("top_db") else TOP_DB, progress)
    pieces = pieces[pieces[:, 1] - pieces[:, 0] >= MIN_FRAMES]
    if not len(pieces):
        raise CannotCut("NO_GRAINS", f"Nothing in it sounds for {MIN_FRAMES} frames without a silence.")
    if cut.segmentation == grain_pb2.SEGMENTATION_ONSETS:
        pieces = _at_onsets(pieces, _onsets(samples, rate, progress))
    elif cut.segmentation == grain_pb2.SEGMENTATION_FIXED:
        length = (cut.grain_ms if cut.HasField("grain_ms") else GRAIN_MS) / 1000 * rate
        pieces = _evenly(pieces, length, cut.jitter, cut.seed)
    if len(pieces) > MAX_GRAINS:
        raise CannotCut("TOO_MANY_GRAINS", f"It would give {len(pieces):,} grains; at most {MAX_GRAINS:,} are kept.")
    return pieces


def sounding(samples: Samples, top_db: float, progress: Callable[[float], None]) -> Spans:
    """What ``librosa.effects.split(samples, top_db=top_db)`` finds, in memory that does not grow beyond the samples'.

    Where the RMS of a frame, of any channel, is less than ``top_db`` dB below that of the loudest. librosa itself is
    not asked: it takes 5 s to load, and on a new machine a quarter of a minute.
    """
    frames = 1 + samples.shape[1] // _HOP
    parts = []
    for first in range(0, frames, _FRAMES_AT_ONCE):
        begin = first * _HOP - _FRAME // 2
        end = begin + (min(_FRAMES_AT_ONCE, frames - first) - 1) * _HOP + _FRAME
        overlapping = np.lib.stride_tricks.sliding_window_view(_part(samples, begin, end), _FRAME, axis=1)[:, ::_HOP]
        parts.append(np.square(overlapping).mean(axis=2))
        progress(_SPLITTING_SHARE * first / frames)
    powers = np.maximum(np.concatenate(parts, axis=1), _LEAST_POWER)
    decibels = (10 * np.log10(powers) - 10 * np.log10(powers.max())).max(axis=0)
    edges = np.flatnonzero(np.diff(decibels > -top_db, prepend=False, append=False))
    spans: Spans = np.minimum(edges * _HOP, samples.shape[1]).reshape(-1, 2)
    return spans


def _part(samples: Samples, begin: int, end: int) -> Samples:
    """Frames from ``begin`` to ``end``, zeros where there are none."""
    inside = samples[:, max(0, begin) : end]
    return np.pad(inside, ((0, 0), (max(0, -begin), max(0, end - samples.shape[1]))))


def _onsets(samples: Samples, rate: int, progress: Callable[[float], None]) -> Positions:
    """All onsets, to the sample."""
    detector, sign, block = Onsets(rate), sign_of(samples, rate), _BLOCK_SECONDS * rate
    rough = []
    for begin in range(0, samples.shape[1], block):
        rough.append(detector.process(mono_of(samples[:, begin : begin + block], sign)))
        progress(_SPLITTING_SHARE + (1 - _SPLITTING_SHARE) * begin / samples.shape[1] / 2)
    places, margin = np.concatenate([*rough, detector.finish()]), round(_MARGIN_SECONDS * rate)
    exact = [np.zeros(0, np.int64)]
    for begin in range(0, samples.shape[1], block):
        here = places[(places >= begin) & (places < begin + block)]
        first = max(0, begin - margin)
        mono = mono_of(samples[:, first : begin + block + margin], sign)
        found, _ = refined(mono, here - first, rate)
        exact.append(found + first)
        progress(_SPLITTING_SHARE + (1 - _SPLITTING_SHARE) * (1 + begin / samples.shape[1]) / 2)
    return np.unique(np.concatenate(exact))


def sign_of(samples: Samples, rate: int) -> float:
    """Of the second channel in :func:`mono_of`: -1 where the sum of both is louder so, in all of them together."""
    if len(samples) == 1:
        return 1.0
    block = _BLOCK_SECONDS * rate
    parts = (samples[:, begin : begin + block] for begin in range(0, samples.shape[1], block))
    return 1.0 if sum(float((left * right).sum(dtype=np.float64)) for left, right in parts) >= 0 else -1.0


def mono_of(samples: Samples, sign: float) -> Samples:
    """The mean of the channels, the second times ``sign``: float32 ``[frames]``."""
    mono: Samples = samples[0] if len(samples) == 1 else np.float32(0.5) * (samples[0] + np.float32(sign) * samples[1])
    return mono


def _at_onsets(pieces: Spans, onsets: Positions) -> Spans:
    cuts: list[tuple[int, int]] = []
    for begin, end in pieces.tolist():
        for onset in onsets[np.searchsorted(onsets, begin) : np.searchsorted(onsets, end)].tolist():
            if onset - begin >= MIN_FRAMES and end - onset >= MIN_FRAMES:
                cuts.append((begin, onset))
                begin = onset
        cuts.append((begin, end))
    return np.array(cuts, np.int64)


def _evenly(pieces: Spans, length: float, jitter: float, seed: int) -> Spans:
    cuts: list[tuple[int, int]] = []
    least = max(MIN_FRAMES, length / 2)
    for begin, end in pieces.tolist():
        most = int((end - begin) / max(MIN_FRAMES, length * (1 - jitter))) + 1
        numbers = np.arange(most, dtype=np.int64)
        chance = 2 * draws(seed, np.full(most, begin, np.int64), numbers, Purpose.CUT) - 1
        lengths = np.maximum(MIN_FRAMES, length * (1 + jitter * chance))
        inner = begin + np.rint(np.cumsum(lengths)).astype(np.int64)
        inner = inner[inner <= end - least]
        edges = [begin, *inner.tolist(), end]
        cuts.extend(pairwise(edges))
    return np.array(cuts, np.int64)
