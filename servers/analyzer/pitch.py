"""The pitch of the loudest voice: a contour, and its range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import librosa
import numpy as np
from swift_f0 import core as swift_f0
from numpy.typing import NDArray

from servers.analyzer.contour import Contour
from servers.analyzer.unknown import Unknown

Samples = NDArray[np.float32]
Method = Literal["swift-f0", "pyin"]

RATE = 16_000
_SILENT = 10 ** (-70 / 20)
_SHORTEST = 0.1  # seconds
_VOICED = 0.25  # seconds of pitch at least, all in all
_HOP = swift_f0.HOP


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
        if self._contour.voiced * hop < min(_VOICED, self._samples / RATE / 2):
            return Unknown("NO_PITCH", "Nothing in it has a pitch.")
        low, median, high = self._contour.percentiles(5, 50, 95)
        points, group = self._contour.finish()
        share = self._contour.voiced / self._contour.frames
        return Pitch(median, low, high, share, hop * group, points, self._method)


class _SwiftF0:
    """swift-f0 in chunks that each see all that its convolutions reach: the same as one call over the whole.

    The package's own stream runs the model at every push; its cost then depends on how the stream is cut.
    """

    hop = _HOP
    _CHUNK = 128  # frames; longer ones leave the cache

    def __init__(self, threads: int) -> None:
        self._detector = _detector(threads)
        self._stream = self._detector.stream()
        self._waiting: list[Samples] = []
        self._count = 0

    def process(self, samples: Samples) -> Samples:
        self._waiting.append(samples)
        self._count += len(samples)
        found = []
        if self._count >= self._CHUNK * _HOP:
            data = np.concatenate(self._waiting)
            whole = len(data) // (self._CHUNK * _HOP) * self._CHUNK * _HOP
            for start in range(0, whole, self._CHUNK * _HOP):
                found.append(self._f0(self._stream.push(data[start : start + self._CHUNK * _HOP], RATE)))
            self._waiting = [data[whole:]]
            self._count = len(data) - whole
        return np.concatenate([np.zeros(0, np.float32), *found])

    def finish(self) -> Samples:
        if self._count:
            before = self._f0(self._stream.push(np.concatenate(self._waiting), RATE))
            return np.concatenate([before, self._f0(self._stream.flush())])
        return self._f0(self._stream.flush())

    @staticmethod
    def _f0(result: swift_f0.PitchResult) -> Samples:
        return np.where(result.confidence >= 0.5, result.pitch_hz, 0.0).astype(np.float32)


def _detector(threads: int) -> swift_f0.SwiftF0:
    return swift_f0.SwiftF0(threads=threads, spin=False)


class _Pyin:
    """librosa's pYIN in chunks, each with a second of context on either side."""

    hop = 512
    _CHUNK = 320 * hop  # samples
    _CONTEXT = 32 * hop

    def __init__(self) -> None:
        self._data = np.zeros(0, np.float32)
        self._left = 0  # samples of context before those whose pitch is wanted

    def process(self, samples: Samples) -> Samples:
        self._data = np.concatenate([self._data, samples])
        found = [np.zeros(0, np.float32)]
        while len(self._data) >= self._left + self._CHUNK + self._CONTEXT:
            end = self._left + self._CHUNK
            found.append(self._f0(self._data[: end + self._CONTEXT])[self._left // self.hop : end // self.hop])
            self._data = self._data[end - self._CONTEXT :]
            self._left = self._CONTEXT
        return np.concatenate(found)

    def finish(self) -> Samples:
        if not len(self._data):
            return np.zeros(0, np.float32)
        return self._f0(self._data)[self._left // self.hop :]

    @classmethod
    def _f0(cls, samples: Samples) -> Samples:
        f0, _, _ = librosa.pyin(
            samples,
            fmin=float(librosa.note_to_hz("C1")),
            fmax=float(librosa.note_to_hz("C7")),
            sr=RATE,
            frame_length=2048,
            hop_length=cls.hop,
            fill_na=0.0,
        )
        return np.asarray(f0, np.float32)
