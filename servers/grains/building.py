"""Makes a grain library of a sound."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from contrafact.v1 import grain_pb2
from numpy.typing import NDArray

from servers.grains.cutting import CannotCut, Spans, spans_of
from servers.grains.features import brightness_of, in_phase, levels_of
from servers.grains.library import Library
from servers.grains.pitch import pitches

__all__ = ["CannotCut", "build"]

Samples = NDArray[np.float32]

_CUTTING_SHARE = 0.3  # of the work
_SECONDS_AT_ONCE = 10.0


def build(samples: Samples, rate: int, cut: grain_pb2.Cut, progress: Callable[[float], None]) -> Library:
    """Cuts a sound into grains and measures them. The same gives the same library.

    Args:
        samples: float32 ``[channels, frames]``, 1 or 2 channels, at least 1 frame, finite: the part that is used.
        rate: in Hz.
        cut: valid. ``start_seconds`` is where the samples begin in the whole sound.
        progress: called with the share that is done, 0 to 1, again and again; what it raises ends the work.

    Raises:
        CannotCut: it is silent, or has no grain, or more than 200,000.
    """
    spans = spans_of(samples, rate, cut, lambda share: progress(share * _CUTTING_SHARE))
    audio = np.concatenate([samples[:, begin:end] for begin, end in spans.tolist()], axis=1)
    lengths = spans[:, 1] - spans[:, 0]
    offsets = np.cumsum(lengths) - lengths
    found = []
    for first, last in _groups(spans, round(_SECONDS_AT_ONCE * rate)):
        part = audio[:, offsets[first] : offsets[last - 1] + lengths[last - 1]]
        mono = np.split(in_phase(part, lengths[first:last]), (offsets[first:last] - offsets[first])[1:])
        levels = levels_of(part, lengths[first:last])
        measured = (levels.rms, levels.peaks, levels.onsets, levels.attacks)
        found.append((*measured, pitches(mono, rate), brightness_of(mono, rate)))
        progress(1 - (1 - _CUTTING_SHARE) * (1 - last / len(spans)))
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


def _groups(spans: Spans, frames: int) -> Iterator[tuple[int, int]]:
    """Consecutive grains of about so many frames together, or one that is longer: first, and the one after the last."""
    ends = np.cumsum(spans[:, 1] - spans[:, 0])
    first = 0
    while first < len(spans):
        done = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, done + frames, "right")))
        yield first, last
        first = last
