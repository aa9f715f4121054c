"""What a recording sounds like, as one vector: recordings are as similar as the angle between theirs is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from servers.analyzer.logspectrum import (
    FFT_LENGTH,
    FRAMES_PER_SECOND,
    HOP,
    PITCH_FFT_LENGTH,
    PITCH_HOP,
    Samples,
    log_spectra,
    pitch_spectra,
)
from servers.analyzer.signal_model import DIMENSIONS, MODEL, embed
from servers.analyzer.unknown import Unknown
from servers.media.frames import Framer, power_spectra

_HOP_FRAMES = 216
_PITCH_RATIO = PITCH_HOP // HOP
_FEWEST_FRAMES = 43
_SILENT_POWER = 1e-7 * (FFT_LENGTH / 2) * (FFT_LENGTH * 3 / 8)
"""The sum over a frame of POWER22 at an RMS of -70 dBFS: half of Parseval's, as the bins are half of all."""
_FIRST_BIN = 2  # below is what DC leaves
_PITCH_WINDOW = signal.get_window("hann", PITCH_FFT_LENGTH).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What a recording and its segments sound like.

    Attributes:
        track: float32 ``[512]`` of norm 1.
        segments: float16 ``[n, 512]``; each of norm 1 or, where there is silence, 0.
        window_seconds: length of a segment; the last may be shorter, down to a half.
        hop_seconds: from the beginning of one to that of the next.
        model: with its version; embeddings of different models do not compare.
    """

    track: Samples
    segments: NDArray[np.float16]
    window_seconds: float
    hop_seconds: float
    model: str


class EmbeddingFeature:
    """Embeds a stream, in windows of 10 s, one every 5 s. The result does not depend on how the stream was cut.

    Args:
        embed: makes float32 ``[512]`` of norm 1 of a window's spectra, ``[frames, BINS]`` and ``[frames, PITCH_BINS]``.
    """

    def __init__(self, embed: Callable[[Samples, Samples], Samples] = embed) -> None:
        self._embed = embed
        self._framer = Framer(PITCH_FFT_LENGTH, PITCH_HOP)
        self._power = _Queue(FFT_LENGTH // 2 + 1)
        self._pitch = _Queue(PITCH_FFT_LENGTH)
        self._frames = 0
        self._previous: _Spectra | None = None
        self._segments: list[Samples] = []

    def process(self, mono: Samples, power: Samples) -> None:
        """Take in MONO22, float32 ``[n]``, and POWER22, float32 ``[frames, 1025]``; they need not keep step."""
        self._power.put(power)
        self._pitch.put(self._framer.process(mono))
        self._advance()

    def finish(self) -> Embeddings | Unknown:
        """The embeddings; TOO_SHORT for less than a second, SILENT where nothing is above -70 dBFS."""
        self._pitch.put(self._framer.finish())
        self._advance()
        if self._power.length:
            self._hop(self._power.length)
        if self._frames < _FEWEST_FRAMES:
            return Unknown("TOO_SHORT", "The recording is shorter than a second.")
        if not self._segments and self._previous is not None:
            self._segments.append(self._embedded(self._previous))
        window, hop = (frames / FRAMES_PER_SECOND for frames in (2 * _HOP_FRAMES, _HOP_FRAMES))
        return pooled(np.array(self._segments, np.float32), window, hop, MODEL)

    def _advance(self) -> None:
        while self._power.length >= _HOP_FRAMES and self._pitch.length >= _HOP_FRAMES // _PITCH_RATIO:
            self._hop(_HOP_FRAMES)

    def _hop(self, frames: int) -> None:
        """Always the same frames at once: a product of matrices may depend in its last digits on their sizes."""
        self._frames += frames
        power = self._power.take(frames)
        pitch = power_spectra(self._pitch.take(-(-frames // _PITCH_RATIO)), _PITCH_WINDOW)
        loudest = float(power[:, _FIRST_BIN:].sum(axis=1).max())
        spectra = _Spectra(log_spectra(power), pitch_spectra(pitch), loudest)
        if self._previous is not None:
            self._segments.append(self._embedded(self._previous.before(spectra)))
        self._previous = spectra

    def _embedded(self, spectra: _Spectra) -> Samples:
        if spectra.loudest < _SILENT_POWER or not (spectra.power.any() and spectra.pitch.any()):
            return np.zeros(DIMENSIONS, np.float32)
        return self._embed(spectra.power, spectra.pitch)


def pooled(segments: Samples, window_seconds: float, hop_seconds: float, model: str) -> Embeddings | Unknown:
    """All of a recording: the direction of the mean of its segments, float32 ``[n, 512]``, each of norm 1 or 0."""
    total = segments.sum(axis=0)
    norm = np.linalg.norm(total)
    if norm < 1e-6:
        return Unknown("SILENT", "Nothing in the recording is above -70 dBFS.")
    return Embeddings(
        (total / norm).astype(np.float32), segments.astype(np.float16), window_seconds, hop_seconds, model
    )


@dataclass(frozen=True, slots=True)
class _Spectra:
    """Of a stretch: ``[frames, BINS]``, ``[frames, PITCH_BINS]`` and the power of the loudest frame."""

    power: Samples
    pitch: Samples
    loudest: float

    def before(self, other: _Spectra) -> _Spectra:
        power, pitch = np.concatenate([self.power, other.power]), np.concatenate([self.pitch, other.pitch])
        return _Spectra(power, pitch, max(self.loudest, other.loudest))


class _Queue:
    """Frames on their way, float32 ``[length, n]``."""

    def __init__(self, n: int) -> None:
        self._parts = [np.zeros((0, n), np.float32)]
        self.length = 0

    def put(self, frames: Samples) -> None:
        self._parts.append(frames.copy())
        self.length += len(frames)

    def take(self, count: int) -> Samples:
        frames = np.concatenate(self._parts)
        self._parts = [frames[count:]]
        self.length = len(self._parts[0])
        return frames[:count]
