"""Cutting a track into segments and putting the model's answers back together.

Matches ``demucs.apply.apply_model(shifts=0, split=True)``: segments start every ``stride`` frames, the last
one is centred in real context, and answers are blended with triangular weights. With less than 50 %
overlap at most two segments meet in any frame, so all frames before the next segment's start are final
as soon as a segment is done: the state that is kept does not grow with the track.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a model wants its segments, in frames.

    ``length`` is the window that the model infers on; ``stride`` the distance between the starts of
    neighbours. ``length / 2 <= stride <= length``.
    """

    length: int
    stride: int

    def __post_init__(self) -> None:
        if not self.length / 2 <= self.stride <= self.length:
            raise ValueError(f"a stride of {self.stride} does not suit segments of {self.length} frames")


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment: it answers for frames ``start`` to ``start + frames`` of the track.

    The model sees the ``length`` frames from ``window`` on; before and after the track there is silence.
    """

    index: int
    start: int
    frames: int
    window: int
    last: bool


def plan(total: int, geometry: Geometry, *, skip_covered: bool = False, first: int = 0) -> Iterator[Segment]:
    """The segments of a track of ``total`` frames, in order.

    Args:
        total: Length of the track; at least 1.
        geometry: The model's.
        skip_covered: Leave out a last segment that only covers frames which the one before it covers too.
            Saves one inference; the tail is then not blended (see the documentation for what that costs).
        first: Leave out the segments without which the frames from this one's start on can be made: all before it
            but the last of them, with whose answer its own is blended.
    """
    starts = range(0, total, geometry.stride)
    count = len(starts)
    if skip_covered and count > 1 and starts[-2] + geometry.length >= total:
        count -= 1
    for index in range(max(0, min(first, count - 1) - 1), count):
        start = starts[index]
        frames = min(geometry.length, total - start)
        yield Segment(index, start, frames, start - (geometry.length - frames) // 2, index == count - 1)


class History:
    """The most recent part of a stream of frames, from which windows are cut.

    Args:
        channels: Channels of the stream.
        mean: Subtracted from every frame that is given, and
        scale: what the difference is multiplied with.
    """

    def __init__(self, channels: int, mean: float, scale: float) -> None:
        self._frames: Samples = np.zeros((channels, 0), np.float32)
        self._start = 0
        self._mean = np.float32(mean)
        self._scale = np.float32(scale)

    @property
    def end(self) -> int:
        """Position after the last frame that was given."""
        return self._start + self._frames.shape[1]

    def append(self, samples: Samples) -> None:
        """Add ``samples`` [channels, n] at the end."""
        self._frames = np.concatenate([self._frames, (samples - self._mean) * self._scale], axis=1)

    def window(self, start: int, length: int, out: Samples) -> None:
        """Write frames ``start`` to ``start + length`` to ``out`` [channels, length], silence outside."""
        first, last = max(start, self._start), min(start + length, self.end)
        out[:, : first - start] = 0.0
        out[:, first - start : last - start] = self._frames[:, first - self._start : last - self._start]
        out[:, last - start :] = 0.0

    def forget(self, before: int) -> None:
        """Drop frames before position ``before``."""
        drop = min(max(0, before - self._start), self._frames.shape[1])
        if drop:
            self._frames = self._frames[:, drop:].copy()
            self._start += drop


class OverlapAdd:
    """Blends the answers to consecutive segments.

    Answers are [..., frames]; leading axes are the caller's.
    """

    def __init__(self, geometry: Geometry) -> None:
        half = geometry.length // 2
        rise, fall = np.arange(1, half + 1), np.arange(geometry.length - half, 0, -1)
        weight = np.concatenate([rise, fall]).astype(np.float32)
        self._weight: Samples = weight / weight.max()
        self._geometry = geometry
        self._tail: Samples | None = None  # the previous answer beyond its stride, weighted

    def add(self, segment: Segment, answer: Samples) -> Samples:
        """Add the answer to ``segment`` and return the frames that are final now, from its start on."""
        blended = answer * self._weight[: segment.frames]
        weights = self._weight[: segment.frames].copy()
        if self._tail is not None:
            shared = min(self._tail.shape[-1], segment.frames)
            blended[..., :shared] += self._tail[..., :shared]
            stride = self._geometry.stride
            weights[:shared] += self._weight[stride : stride + shared]
        final = segment.frames if segment.last else self._geometry.stride
        self._tail = blended[..., final:].copy()
        return np.asarray(blended[..., :final] / weights[:final], np.float32)
