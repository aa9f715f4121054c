"""One analysis: which features take in which audio, cut into steps that a server can put in order."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.embedding import EmbeddingFeature
from servers.analyzer.envelope import EnvelopeFeature
from servers.analyzer.key import KeyFeature
from servers.analyzer.loudness import LoudnessFeature
from servers.analyzer.onsets import find_onsets
from servers.analyzer.pitch import Method, PitchFeature
from servers.analyzer.quality import QualityFeature
from servers.analyzer.stereo import StereoFeature
from servers.analyzer.tempo import find_tempo
from servers.analyzer.unknown import Unknown
from servers.analyzer.waveform import WaveformFeature
from servers.media.frames import Framer, power_spectra
from servers.media.mono import Mono
from servers.media.resample import Resampler

Samples = NDArray[np.float32]

CHUNK_SECONDS = 1
"""All arithmetic is done on chunks of this length, so that no result depends in any bit on how the stream was cut."""
LOWEST_RATE = 8000
"""Telephone's, in Hz. What is heard of music below that is too little for its rhythm, tones and sound."""
_TOO_LOW = Unknown("SAMPLE_RATE_TOO_LOW", f"Its sample rate is below {LOWEST_RATE:,} Hz.")
_MONO_RATE, _PITCH_RATE = 22_050, 16_000
_FRAME, _HOP = 2048, 512


class Feature(StrEnum):
    """What can be measured, named as in the proto."""

    WAVEFORM = "WAVEFORM"
    QUALITY = "QUALITY"
    LOUDNESS = "LOUDNESS"
    STEREO = "STEREO"
    ONSETS = "ONSETS"
    TEMPO = "TEMPO"
    KEY = "KEY"
    PITCH = "PITCH"
    EMBEDDING = "EMBEDDING"


SHARED = "SHARED"  # CPU time of what several features need


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a feature: what its module says, or Unknown."""

    feature: Feature
    result: Any


class Lane(ABC):
    """Features that take in the same audio. One step at a time; different lanes may take theirs at once.

    Attributes:
        cpu_seconds: by feature, and SHARED.
    """

    def __init__(self) -> None:
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)

    @abstractmethod
    def process(self, samples: Samples) -> Any:
        """A step: take in the next chunk."""

    @abstractmethod
    def results(self) -> Iterator[Found]:
        """The last steps: each is to ask for the next result."""

    @contextmanager
    def _cost(self, of: str) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        finally:
            self.cpu_seconds[of] += time.thread_time() - began

    def _found(self, feature: Feature, result: Callable[[], Any]) -> Found:
        with self._cost(feature):
            return Found(feature, result())


class NativeLane(Lane):
    """What needs all channels at the stream's own rate, and the conversion of the stream for the other lanes."""

    def __init__(self, sample_rate: int, channels: int, frames: int, asked: Collection[Feature], mono: bool) -> None:
        super().__init__()
        self._features: dict[Feature, Any] = {}
        if Feature.WAVEFORM in asked:
            self._features[Feature.WAVEFORM] = WaveformFeature(sample_rate, frames)
        if Feature.QUALITY in asked:
            self._features[Feature.QUALITY] = QualityFeature(sample_rate, channels)
        if Feature.LOUDNESS in asked:
            self._features[Feature.LOUDNESS] = LoudnessFeature(sample_rate, channels)
        if Feature.STEREO in asked and channels == 2:
            self._features[Feature.STEREO] = StereoFeature(sample_rate)
        self._mono = Mono(sample_rate, channels) if mono else None
        self._resampler = Resampler(sample_rate, _MONO_RATE, channels=1)

    def process(self, samples: Samples) -> Samples:
        """A step: take in float32 ``[channels, n]``; returns mono, float32 ``[n]`` at 22,050 Hz, for the others."""
        for feature, each in self._features.items():
            with self._cost(feature):
                each.process(samples)
        if self._mono is None:
            return np.zeros(0, np.float32)
        with self._cost(SHARED):
            mono: Samples = self._resampler.process(self._mono.process(samples)[None])[0]
        return mono

    def rest(self) -> Samples:
        """A step: the last samples for the others. Call once, after the last chunk."""
        mono: Samples = self._resampler.finish()[0]
        return mono

    def results(self) -> Iterator[Found]:
        return (self._found(feature, each.finish) for feature, each in self._features.items())


class SpectralLane(Lane):
    """What is found in the spectra of mono audio at 22,050 Hz."""

    def __init__(self, asked: Collection[Feature]) -> None:
        super().__init__()
        self._asked = asked
        self._framer = Framer(_FRAME, _HOP)
        self._window = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
        rhythm, spectra = {Feature.ONSETS, Feature.TEMPO}, {Feature.ONSETS, Feature.TEMPO, Feature.EMBEDDING}
        self._needs_spectra = not spectra.isdisjoint(asked)
        self._envelope = None if rhythm.isdisjoint(asked) else EnvelopeFeature()
        self._key = KeyFeature() if Feature.KEY in asked else None
        self._embedding = EmbeddingFeature() if Feature.EMBEDDING in asked else None

    def process(self, samples: Samples) -> None:
        """A step: take in float32 ``[n]``."""
        if self._key is not None:
            with self._cost(Feature.KEY):
                self._key.process(samples)
        if self._needs_spectra:
            self._frames(samples, self._framer.process(samples))

    def results(self) -> Iterator[Found]:
        if self._needs_spectra:
            self._frames(np.zeros(0, np.float32), self._framer.finish())
        if self._envelope is not None:
            with self._cost(SHARED):
                envelope = self._envelope.finish()
            if Feature.ONSETS in self._asked:
                yield self._found(Feature.ONSETS, lambda: find_onsets(envelope))
            if Feature.TEMPO in self._asked:
                yield self._found(Feature.TEMPO, lambda: find_tempo(envelope))
        if self._key is not None:
            yield self._found(Feature.KEY, self._key.finish)
        if self._embedding is not None:
            yield self._found(Feature.EMBEDDING, self._embedding.finish)

    def _frames(self, samples: Samples, frames: Samples) -> None:
        with self._cost(SHARED):
            powers = power_spectra(frames, self._window)
            if self._envelope is not None:
                self._envelope.process(powers)
        if self._embedding is not None:
            with self._cost(Feature.EMBEDDING):
                self._embedding.process(samples, powers)


class PitchLane(Lane):
    """The pitch, which takes longer than all else."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self._resampler = Resampler(_MONO_RATE, _PITCH_RATE, channels=1)
        self._pitch = PitchFeature(method)

    def process(self, samples: Samples) -> None:
        """A step: take in float32 ``[n]`` at 22,050 Hz."""
        with self._cost(Feature.PITCH):
            self._pitch.process(self._resampler.process(samples[None])[0])

    def results(self) -> Iterator[Found]:
        yield self._found(Feature.PITCH, self._last)

    def _last(self) -> Any:
        self._pitch.process(self._resampler.finish()[0])
        return self._pitch.finish()


class Analysis:
    """What is measured of one stream, in memory that grows by a few numbers a second.

    Feed chunks of :attr:`chunk_frames`, the last one shorter, to ``native.process``, and what that returns, then
    ``native.rest()``, to each of ``others``; then take the results of each.

    Args:
        sample_rate: of the stream, 1,000 to 384,000 Hz.
        channels: 1 or 2.
        frames: that will come; at least 1.
        features: what to measure; none: everything.
        pitch_method: "swift-f0" or "pyin", ten times slower.

    Attributes:
        native: the lane that takes in the stream.
        others: lanes that take in mono audio at 22,050 Hz.
        too_low: what can be said of features that need a higher sample rate.
        chunk_frames: frames of a chunk.
    """

    def __init__(
        self,
        sample_rate: int,
        channels: int,
        frames: int,
        features: Collection[Feature] = (),
        pitch_method: Method = "swift-f0",
    ) -> None:
        asked = set(features or Feature)
        spectral = asked & {Feature.ONSETS, Feature.TEMPO, Feature.KEY, Feature.EMBEDDING}
        pitch = asked & {Feature.PITCH}
        self.too_low: tuple[Found, ...] = ()
        if sample_rate < LOWEST_RATE:
            self.too_low = tuple(Found(each, _TOO_LOW) for each in Feature if each in spectral | pitch)
            spectral, pitch = set(), set()
        self.chunk_frames = CHUNK_SECONDS * sample_rate
        self.native = NativeLane(sample_rate, channels, frames, asked, mono=bool(spectral or pitch))
        self.others: tuple[Lane, ...] = ()
        if spectral:
            self.others += (SpectralLane(spectral),)
        if pitch:
            self.others += (PitchLane(pitch_method),)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of each feature so far, and of what they share."""
        total: defaultdict[str, float] = defaultdict(float)
        for lane in (self.native, *self.others):
            for name, seconds in lane.cpu_seconds.items():
                total[name] += seconds
        return dict(total)


def analyze(
    samples: Samples, sample_rate: int, features: Collection[Feature] = (), pitch_method: Method = "swift-f0"
) -> Iterator[Found]:
    """Analyse float32 ``[channels, frames]`` at once: as a stream, but all of it is in memory."""
    analysis = Analysis(sample_rate, len(samples), samples.shape[1], features, pitch_method)
    native, others = analysis.native, analysis.others
    for start in range(0, samples.shape[1], analysis.chunk_frames):
        mono = native.process(samples[:, start : start + analysis.chunk_frames])
        for lane in others:
            lane.process(mono)
    yield from native.results()
    yield from analysis.too_low
    rest = native.rest()
    for lane in others:
        lane.process(rest)
        yield from lane.results()


def warm_up() -> None:
    """Compile and load what the first analysis would wait for."""
    seconds = 12
    noise = np.random.default_rng(0).standard_normal((2, seconds * _MONO_RATE)).astype(np.float32) * 0.01
    noise[:, :: _MONO_RATE // 2] = 1
    for _ in analyze(noise, _MONO_RATE):
        pass
