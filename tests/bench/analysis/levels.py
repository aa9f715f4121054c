"""Loudness, dynamics, quality, stereo and waveform: against the truth, and beside FFmpeg's and pyloudnorm's meters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyloudnorm

from servers.analyzer.album import album_loudness
from servers.analyzer.dynamics import DynamicsMeter
from servers.analyzer.loudness import Loudness, LoudnessFeature
from servers.analyzer.quality import Quality, QualityFeature
from servers.analyzer.stereo import Stereo, StereoFeature
from servers.analyzer.waveform import WaveformFeature
from tests.analyzer import ebu
from tests.media import ffmpeg
from tests.media.signals import Samples, in_cuts, noise, sine

_PIECE = 65_536
_RATE = 44_100


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        feature: of the proto.
        case: what was measured.
        truth: what it should be.
        ours: what we say.
        others: what other meters say, by name.
        tolerance: below and above the truth, of the standard or of the documentation of the feature.
    """

    feature: str
    case: str
    truth: float
    ours: float
    others: dict[str, float]
    tolerance: tuple[float, float]

    @property
    def ok(self) -> bool:
        """Whether ours is within the tolerance."""
        return -self.tolerance[0] <= self.ours - self.truth <= self.tolerance[1]


def table() -> list[Row]:
    """Accuracy, case by case."""
    return [*_integrated(), *_highest(), *_ranges(), *_true_peaks(), *_dynamics(), *_albums(), *_quality(), *_stereo()]


def cpu_seconds(seconds: float = 180.0) -> dict[str, float]:
    """CPU time of one thread for so much stereo at 44.1 kHz, by what took it."""
    samples = _music(seconds)
    frames = samples.shape[1]
    features: dict[str, Callable[[], object]] = {
        "loudness": lambda: _fed(LoudnessFeature(_RATE, 2), samples),
        "quality": lambda: _fed(QualityFeature(_RATE, 2), samples),
        "stereo": lambda: _fed(StereoFeature(_RATE), samples),
        "waveform": lambda: _fed(WaveformFeature(_RATE, frames), samples),
        "pyloudnorm, integrated only": lambda: pyloudnorm.Meter(_RATE).integrated_loudness(samples.T),
        "ffmpeg ebur128 with true peak": lambda: ffmpeg.ebur128(samples, _RATE),
        "ffmpeg drmeter": lambda: ffmpeg.dynamic_range(samples[:, :-1], _RATE),  # it fails at multiples of 3 s
        "ffmpeg astats": lambda: ffmpeg.statistics(samples, _RATE),
    }
    found = {}
    for name, work in features.items():
        begun = time.process_time()
        work()
        found[name] = time.process_time() - begun
    return found


def _music(seconds: float) -> Samples:
    """Noise whose level changes each quarter of a second, as music's does."""
    frames = round(seconds * _RATE)
    levels = 10 ** (np.random.default_rng(1).uniform(-35, -12, math.ceil(4 * seconds)) / 20)
    gains = np.repeat(levels, _RATE // 4)[:frames]
    return np.clip(noise(seconds, 0, seed=2) * gains, -0.99, 0.99).astype(np.float32)


def _fed(feature: LoudnessFeature | QualityFeature | StereoFeature | WaveformFeature, samples: Samples) -> object:
    for part in in_cuts(samples, range(0, samples.shape[1], _PIECE)):
        feature.process(part)
    return feature.finish()


def _loudness(samples: Samples, rate: int = ebu.RATE) -> Loudness:
    found = _fed(LoudnessFeature(rate, len(samples)), samples)
    assert isinstance(found, Loudness)
    return found


def _pyloudnorm(samples: Samples, rate: int = ebu.RATE) -> float:
    return float(pyloudnorm.Meter(rate).integrated_loudness(samples.T.astype(np.float64)))


def _integrated() -> Iterator[Row]:
    for case, (levels, truth) in ebu.INTEGRATED.items():
        tones = ebu.tones(levels)
        others = {"ffmpeg": ffmpeg.ebur128(tones, ebu.RATE)["I"], "pyloudnorm": _pyloudnorm(tones)}
        yield Row("integrated", f"Tech 3341, {case}", truth, _loudness(tones).integrated_lufs, others, (0.1, 0.1))
    for rate in (8_000, 22_050, 44_100, 96_000, 192_000):
        tone = sine(997, 5, -18, rate=rate)
        others = {"ffmpeg": ffmpeg.ebur128(tone, rate)["I"], "pyloudnorm": _pyloudnorm(tone, rate)}
        ours = _loudness(tone, rate).integrated_lufs
        yield Row("integrated", f"997 Hz at -18 dBFS, {rate} Hz", -18.0, ours, others, (0.25, 0.25))


def _highest() -> Iterator[Row]:
    """Of 20 segments each, that which is furthest off."""
    short = _loudness(ebu.tones(ebu.SHORT_TERM)).short_term_max_lufs
    assert short is not None
    yield Row("short-term", "Tech 3341, 9", -23.0, short, {}, (0.1, 0.1))
    momentary = _loudness(ebu.tones(ebu.MOMENTARY)).momentary_max_lufs
    yield Row("momentary", "Tech 3341, 12", -23.0, momentary, {}, (0.1, 0.1))
    for name, cases, step, length in (("short-term", (10, 11), 0.15, 3.0), ("momentary", (13, 14), 0.02, 0.4)):
        for case, live in zip(cases, (False, True), strict=True):
            errors = []
            for number in range(20):
                found = _loudness(ebu.segment(number, live=live, step=step, length=length))
                ours = found.short_term_max_lufs if name == "short-term" else found.momentary_max_lufs
                assert ours is not None
                errors.append(ours - (number - 38.0 if live else -23.0))
            yield Row(name, f"Tech 3341, {case}: error", 0.0, max(errors, key=abs), {}, (0.1, 0.1))


def _ranges() -> Iterator[Row]:
    for case, (levels, truth) in ebu.RANGES.items():
        tones = ebu.tones(levels)
        ours = _loudness(tones).range_lu
        assert ours is not None
        others = {"ffmpeg": ffmpeg.ebur128(tones, ebu.RATE)["LRA"]}
        yield Row("range", f"Tech 3342, {case}", truth, ours, others, (1.0, 1.0))


def _true_peaks() -> Iterator[Row]:
    cases = {case: (ebu.peak_tone(case), truth) for case, (_, _, _, truth) in ebu.TRUE_PEAKS.items()}
    cases |= {str(20 + offset): (ebu.hidden_peak(offset), 0.0) for offset in range(4)}
    for case, (samples, truth) in cases.items():
        others = {"ffmpeg": ffmpeg.ebur128(samples, ebu.RATE)["true_peak"]}
        yield Row("true peak", f"Tech 3341, {case}", truth, _loudness(samples).true_peak_db, others, (0.4, 0.2))


def _dynamics() -> Iterator[Row]:
    """The truth of noise is its definition, in double precision; of a sine, 0."""
    blocks = 10 ** (np.random.default_rng(3).uniform(-30, -12, 20) / 20)
    changing = (noise(59, 0, seed=4) * np.repeat(blocks, 3 * _RATE)[: 59 * _RATE]).clip(-0.99, 0.99).astype(np.float32)
    for case, samples in (("a sine", sine(441, 59, -12)), ("20 levels of noise", changing)):
        pieces = np.array_split(samples.astype(np.float64), range(3 * _RATE, samples.shape[1], 3 * _RATE), axis=1)
        powers = np.sort([2 * np.square(piece).mean(axis=1) for piece in pieces], axis=0)
        peaks = np.sort([np.abs(piece).max(axis=1) for piece in pieces], axis=0)
        truth = float(np.mean(20 * np.log10(peaks[-2]) - 10 * np.log10(powers[-(len(pieces) // 5) :].mean(axis=0))))
        meter = DynamicsMeter(_RATE, 2)
        meter.process(samples)
        meter.finish()
        assert meter.range_db is not None
        others = {"ffmpeg": ffmpeg.dynamic_range(samples, _RATE)}
        yield Row("dynamic range", case, truth, meter.range_db, others, (0.01, 0.01))


def _albums() -> Iterator[Row]:
    """The truth is the measurement of all in one."""
    songs = [noise(20, -20, seed=1), sine(700, 15, -26), noise(30, -55, seed=2), noise(9, -14, seed=3)]
    whole = np.concatenate(songs, axis=1)
    album = album_loudness(_loudness(song, _RATE).histogram for song in songs)
    assert album is not None
    others = {"pyloudnorm": _pyloudnorm(whole, _RATE)}
    truth = ffmpeg.ebur128(whole, _RATE)["I"]
    yield Row("album", "four songs", truth, album.integrated_lufs, others, (0.05, 0.05))


def _quality() -> Iterator[Row]:
    offset = noise(5, -20, seed=1) + np.array([[0.01], [-0.2]], np.float32)
    cut = 0.5 * np.clip(1.2 * sine(441, 5, 0, phase=0.3), -1, 1)
    silent = np.pad(sine(441, 6, -20, phase=1.0), ((0, 0), (2 * _RATE, 2 * _RATE)))
    measured = [_fed(QualityFeature(_RATE, 2), samples.astype(np.float32)) for samples in (offset, cut, silent)]
    dc, clipping, silence = (each for each in measured if isinstance(each, Quality))
    others = {"ffmpeg": ffmpeg.statistics(offset, _RATE)["2.DC_offset"]}
    yield Row("quality", "DC", float(offset[1].mean(dtype=np.float64)), dc.dc_offsets[1], others, (1e-6, 1e-6))
    yield Row("quality", "clipped runs of a sine, -6 dB", 4 * 441 * 5, clipping.clipped_runs, {}, (0, 0))
    yield Row("quality", "silence before, s", 2.0, silence.leading_silence_seconds, {}, (1e-4, 1e-4))
    yield Row("quality", "silent share", 0.4, silence.silent_share, {}, (0.01, 0.01))


def _stereo() -> Iterator[Row]:
    for degrees in (0, 60, 90, 180):
        samples = np.stack([sine(100, 5, -20)[0], sine(100, 5, -14, phase=math.radians(degrees))[0]])
        found = _fed(StereoFeature(_RATE), samples)
        assert isinstance(found, Stereo)
        truth = math.cos(math.radians(degrees))
        yield Row("stereo", f"correlation at {degrees}°", truth, found.correlation, {}, (1e-4, 1e-4))
        yield Row("stereo", f"balance at {degrees}°", 6.0, found.balance_db, {}, (1e-3, 1e-3))
