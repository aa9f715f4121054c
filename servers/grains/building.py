"""Makes a grain library of a sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
from contrafact.v1 import grain_pb2
from numpy.typing import NDArray

from servers.grains.cutting import CannotCut, Spans, mono_of, sign_of, spans_of
from servers.grains.features import ONSET_DB, Levels, brightness_of, in_phase, levels_of
from servers.grains.library import MIN_FRAMES, Library
from servers.grains.pitch import pitches

__all__ = ["CannotCut", "build"]

Samples = NDArray[np.float32]

_CUTTING_SHARE = 0.3  # of the work
_SECONDS_AT_ONCE = 10.0
_NO_ACCOUNT = 10 ** (-50 / 20)


def build(samples: Samples, rate: int, cut: grain_pb2.Cut, progress: Callable[[float], None]) -> Library:
    """Cuts a sound into grains and measures them, without what is constant in it. The same gives the same library.

    Beside the sound and what is cut out of it, it takes memory of half as much at most.

    Args:
        samples: float32 ``[channels, frames]``, 1 or 2 channels, at least 1 frame, finite: the part that is used.
        rate: in Hz.
        cut: valid. ``start_seconds`` is where the samples begin in the whole sound.
        progress: called with the share that is done, 0 to 1, again and again; what it raises ends the work.

    Raises:
        CannotCut: it is silent, or has no grain, or more than 200,000.
    """
    spans = spans_of(samples, rate, cut, lambda share: progress(share * _CUTTING_SHARE))
    (begin, end), *others = spans.tolist()
    audio = np.concatenate([samples[:, b:e] for b, e in spans.tolist()], axis=1) if others else samples[:, begin:end]
    lengths = spans[:, 1] - spans[:, 0]
    offsets = np.cumsum(lengths) - lengths
    constant = _constant(samples, rate)
    found, share = [], _CUTTING_SHARE
    for first, last in _groups(spans, round(_SECONDS_AT_ONCE * rate)):
        part = audio[:, offsets[first] : offsets[last - 1] + lengths[last - 1]]
        found.append(_measured(part, lengths[first:last], constant, rate, partial(progress, share)))
        share = 1 - (1 - _CUTTING_SHARE) * (1 - last / len(spans))
        progress(share)
    rms, peaks, onsets, attacks, hertz, brightness = (np.concatenate(column) for column in zip(*found, strict=True))
    return Library(
        sample_rate=rate,
        channels=len(samples),
        audio=audio,
        offsets=offsets,
        lengths=lengths,
        starts=cut.start_seconds + spans[:, 0] / rate,
        pitches=hertz,
        rms=rms,
        peaks=peaks,
        brightness=brightness,
        attacks=attacks,
        onsets=onsets,
    )


def _constant(samples: Samples, rate: int) -> Samples:
    """The mean of each channel, ``[channels, 1]``; 0 where that is 50 dB below the largest magnitude: of no account."""
    block = round(_SECONDS_AT_ONCE * rate)
    parts = [samples[:, b : b + block].sum(axis=1, dtype=np.float64) for b in range(0, samples.shape[1], block)]
    means = np.sum(parts, axis=0) / samples.shape[1]
    counts = np.abs(means) > _NO_ACCOUNT * max(samples.max(), -samples.min())
    constant: Samples = np.where(counts, means, 0).astype(np.float32)[:, None]
    return constant


def _measured(
    part: Samples, lengths: NDArray[np.int64], constant: Samples, rate: int, pause: Callable[[], None]
) -> list[NDArray[np.generic]]:
    """RMS, peaks, onsets, attacks, pitches and brightness of consecutive grains."""
    if part.shape[1] > round(_SECONDS_AT_ONCE * rate):
        levels, mono = _of_one(part, constant, rate, pause)
        monos = [mono]
    else:
        part = part - constant
        levels = levels_of(part, lengths)
        monos = np.split(in_phase(part, lengths), np.cumsum(lengths)[:-1])
    measured = (levels.rms, levels.peaks, levels.onsets, levels.attacks)
    return [*measured, pitches(monos, rate, pause), brightness_of(monos, rate, pause)]


def _of_one(grain: Samples, constant: Samples, rate: int, pause: Callable[[], None]) -> tuple[Levels, Samples]:
    """What ``levels_of`` and ``in_phase`` say of one long grain, block by block."""
    frames, block = grain.shape[1], round(_SECONDS_AT_ONCE * rate)
    begins = range(0, frames, block)
    sign = sign_of(grain, rate)
    mono = np.empty(frames, np.float32)
    squares, magnitudes = 0.0, []
    for begin in begins:
        part = grain[:, begin : begin + block] - constant
        mono[begin : begin + block] = mono_of(part, sign)
        squares += float(np.square(part).mean(axis=0).sum(dtype=np.float64))
        magnitudes.append(float(np.abs(part).max()))
        pause()
    peak = max(magnitudes)

    def first(level: float) -> int:
        number = int(np.argmax(np.array(magnitudes) >= level))
        part = grain[:, begins[number] : begins[number] + block] - constant
        return begins[number] + int(np.argmax(np.abs(part).max(axis=0) >= level))

    onset = min(first(peak * 10 ** (-ONSET_DB / 20)), frames - MIN_FRAMES)
    rms, peaks = (np.array([value], np.float32) for value in (np.sqrt(squares / frames), peak))
    return Levels(rms, peaks, np.array([onset]), np.array([first(peak) - onset])), mono


def _groups(spans: Spans, frames: int) -> Iterator[tuple[int, int]]:
    """Consecutive grains of about so many frames together, or one that is longer: first, and the one after the last."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    first = 0
    while first < len(spans):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + frames, "right")))
        yield first, last
        first = last
