"""The pitch of the loudest voice: a contour, and its range."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from swift_f0 import core as swift_f0

from servers.analyzer.contour import Contour
from servers.analyzer.unknown import Unknown
from servers.media.reference import librosa

Samples = NDArray[np.float32]
Method = Literal["swift-f0", "pyin"]

RATE = 16_000
_SILENT = 10 ** (-70 / 20)
_SHORTEST = 0.1  # seconds
_LEAST_VOICED = 0.1  # seconds of pitch at least, all in all, and
_LEAST_SHARE = 0.002  # of the recording; swift-f0 finds none in a minute of white noise
_NOTHING = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Pitch:
    """As the proto message ``Pitch``.

    Attributes:
        contour_hz: float32 ``[n]``, n at most 250,000; 0 where there is no pitch.
    """

    median_hz: float
    low_hz: float
    high_hz: float
    voiced_share: float
    hop_seconds: float
    contour_hz: Samples
    method: str


class _Estimator(Protocol):
    """Turns a stream into f0.

    Attributes:
        hop: from one value to the next, in samples.
    """

    hop: int

    def process(self, samples: Samples) -> Samples:
        """Values known by now, in Hz, 0 where there is no pitch."""
        ...

    def finish(self) -> Samples:
        """The last values."""
        ...


class PitchFeature:
    """The pitch contour of a stream, in memory that does not grow beyond that of 250,000 points.

    Args:
        method: "swift-f0" (47 to 2094 Hz, every 16 ms), or "pyin" (C1 to C7, every 32 ms), ten times slower.
        threads: of one call of the model; an engine runs many streams at once, and one each serves it best.

    Raises:
        ValueError: there is no such method.
    """

    def __init__(self, method: Method = "swift-f0", threads: int = 1) -> None:
        if method not in ("swift-f0", "pyin"):
            raise ValueError(f"pitch is found by swift-f0 or pyin, not {method!r}")
        self._method = method
        self._estimator: _Estimator = _SwiftF0(threads) if method == "swift-f0" else _Pyin()
        self._contour = Contour()
        self._samples = 0
        self._peak = 0.0

    def process(self, samples: Samples) -> None:
        """Take in float32 ``[n]``, mono at 16,000 Hz."""
        if len(samples):
            self._samples += len(samples)
            self._peak = max(self._peak, float(np.abs(samples).max()))
            self._contour.extend(self._estimator.process(samples))

    def finish(self) -> Pitch | Unknown:
        """The pitch, or TOO_SHORT, SILENT or NO_PITCH. Call once, last."""
        self._contour.extend(self._estimator.finish())
        if self._samples < _SHORTEST * RATE:
            return Unknown("TOO_SHORT", f"Shorter than {_SHORTEST} s.")
        if self._peak <= _SILENT:
            return Unknown("SILENT", "Nothing is above -70 dBFS.")
        hop = self._estimator.hop / RATE
        share = self._contour.voiced / self._contour.frames
        if self._contour.voiced * hop < _LEAST_VOICED or share < _LEAST_SHARE:
            return Unknown("NO_PITCH", "Nothing in it has a pitch.")
        low, median, high = self._contour.percentiles(5, 50, 95)
        points, group = self._contour.finish()
        return Pitch(median, low, high, share, hop * group, points, self._method)


class _SwiftF0:
    """swift-f0 in chunks that each see all that its convolutions reach: the same as one call over the whole.

    A chunk without a sample above -60 dBFS is not run: the package calls its frames unvoiced whatever the model says.
    """

    hop = 256
    _CHUNK = 256  # frames: of 32 to 1,024, the cheapest; the arrays of more leave the processor's cache
    _LEFT, _RIGHT = 11, 10  # frames that a frame depends on

    def __init__(self, threads: int) -> None:
        self._detector = _detector(threads)
        self._data = _Buffer()
        self._context = 0  # frames at the beginning of the data that are known already

    def process(self, samples: Samples) -> Samples:
        self._data.append(samples)
        found = []
        while self._data.length >= (self._context + self._CHUNK + self._RIGHT) * self.hop:
            last = self._context + self._CHUNK
            found.append(self._f0(self._data.first((last + self._RIGHT) * self.hop), last))
            self._data.drop((last - self._LEFT) * self.hop)
            self._context = self._LEFT
        return np.concatenate([_NOTHING, *found])

    def finish(self) -> Samples:
        samples = self._data.first(self._data.length)
        if not len(samples):
            return _NOTHING
        # Less than a frame is one frame, if it is all there is.
        return self._f0(samples, max(len(samples) // self.hop, 0 if self._context else 1))

    def _f0(self, samples: Samples, last: int) -> Samples:
        if np.abs(samples[self._context * self.hop :]).max(initial=0) < swift_f0.SILENCE_PEAK:
            return np.zeros(last - self._context, np.float32)
        # What is far beyond full scale, DC above all, would have a pitch.
        found = self._detector.detect(samples / np.float32(max(1.0, np.abs(samples).max())), RATE)
        f0 = np.where(found.confidence >= 0.5, found.pitch_hz, 0.0)
        return f0[self._context : last].astype(np.float32)


@cache
def _detector(threads: int) -> swift_f0.SwiftF0:
    """One for all streams: it has no state, and threads that spin between calls would take the cores of others."""
    return swift_f0.SwiftF0(threads=threads, spin=False)


class _Pyin:
    """librosa's pYIN in chunks of 10 s, each with half a second of context on either side.

    Frames without any trough in their difference function are not guessed to be voiced (``no_trough_prob``; librosa's
    0.01 finds a pitch near 35 Hz in 94 % of white noise).
    """

    hop = 512
    _CHUNK, _CONTEXT = 312, 16  # frames

    def __init__(self) -> None:
        self._data = _Buffer()
        self._context = 0  # frames at the beginning of the data that are known already

    def process(self, samples: Samples) -> Samples:
        self._data.append(samples)
        found = []
        while self._data.length >= (self._context + self._CHUNK + self._CONTEXT) * self.hop:
            last = self._context + self._CHUNK
            found.append(self._f0(self._data.first((last + self._CONTEXT) * self.hop))[self._context : last])
            self._data.drop((last - self._CONTEXT) * self.hop)
            self._context = self._CONTEXT
        return np.concatenate([_NOTHING, *found])

    def finish(self) -> Samples:
        samples = self._data.first(self._data.length)
        return self._f0(samples)[self._context :] if len(samples) else _NOTHING

    def _f0(self, samples: Samples) -> Samples:
        if np.abs(samples).max() <= _SILENT:
            return np.zeros(1 + len(samples) // self.hop, np.float32)
        library = librosa()  # here, since it takes seconds, and few want it
        low, high = library.note_to_hz(["C1", "C7"])
        f0, _, _ = library.pyin(
            samples,
            fmin=low,
            fmax=high,
            sr=RATE,
            frame_length=2048,
            hop_length=self.hop,
            no_trough_prob=0.001,
            fill_na=0.0,
        )
        return np.asarray(f0, np.float32)


class _Buffer:
    """Samples that wait, joined only when they are taken."""

    def __init__(self) -> None:
        self._parts: list[Samples] = []
        self.length = 0

    def append(self, samples: Samples) -> None:
        self._parts.append(samples)
        self.length += len(samples)

    def first(self, count: int) -> Samples:
        if len(self._parts) != 1:
            self._parts = [np.concatenate([_NOTHING, *self._parts])]
        return self._parts[0][:count]

    def drop(self, count: int) -> None:
        self._parts = [self.first(self.length)[count:]]
        self.length -= count
