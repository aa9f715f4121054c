"""How one would play a stem with grains if nothing had to be fast: librosa, NumPy and plain loops.

The engine is compared with it: note by note (:func:`play`), and from the stem on (:func:`trace`, :func:`imitate`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import librosa
import numpy as np
from numpy.typing import NDArray

from servers.grains.chance import Purpose, draws
from servers.grains.library import Library
from servers.grains.notes import Notes
from servers.grains.settings import Playing

Samples = NDArray[np.float32]
Values = NDArray[np.float64]

ANALYSIS_RATE = 22_050  # librosa's own
LOW_HZ, HIGH_HZ = 32.7032, 2093.0045


@dataclass(frozen=True)
class Heard:
    """What begins at a frame of a stem, and lasts until the next onset: its pitch in Hz, 0 if it has none; its peak.

    Its brightness is the spectral centroid of its first 120 ms, in Hz.
    """

    start: int
    frames: int
    pitch: float
    peak: float
    brightness: float


def trace(stem: Samples, rate: int) -> list[Heard]:
    """Onsets of a mono stem, each with the pitch of what follows by pYIN, and its peak in the first 120 ms."""
    analysed = librosa.resample(stem, orig_sr=rate, target_sr=ANALYSIS_RATE)
    found = librosa.onset.onset_detect(y=analysed, sr=ANALYSIS_RATE, units="samples") / ANALYSIS_RATE
    starts = sorted({_refined(stem, round(seconds * rate), rate) for seconds in found})
    heard = []
    for start, end in zip(starts, [*starts[1:], len(stem)], strict=True):
        segment = stem[start:end]
        analysed_segment = analysed[round(start * ANALYSIS_RATE / rate) : round(end * ANALYSIS_RATE / rate)]
        first = segment[: round(0.12 * rate)]
        peak, brightness = float(np.abs(first).max()), _brightness(first, rate)
        heard.append(Heard(start, end - start, _pitch(analysed_segment), peak, brightness))
    return heard


def _refined(stem: Samples, near: int, rate: int) -> int:
    """The first frame, 60 ms before an onset to 40 ms after it, that has a tenth of the peak."""
    begin = max(0, near - round(0.06 * rate))
    around = np.abs(stem[begin : near + round(0.04 * rate)])
    loud = np.abs(stem[begin : near + round(0.1 * rate)]).max(initial=0.0)
    return begin + int(np.argmax(around >= 0.1 * loud))


def _pitch(segment: Samples) -> float:
    """The median of pYIN's pitches where there is a voice."""
    if len(segment) < 2:
        return 0.0
    hz, voiced, _ = librosa.pyin(segment, fmin=LOW_HZ, fmax=HIGH_HZ, sr=ANALYSIS_RATE)
    return float(np.median(hz[voiced])) if voiced.any() else 0.0


def _brightness(sound: Samples, rate: int) -> float:
    """The mean of librosa's spectral centroids, the louder the more they count."""
    magnitudes = np.abs(librosa.stft(sound, center=False, n_fft=min(2048, len(sound))))
    hz = librosa.feature.spectral_centroid(S=magnitudes, sr=rate)
    return float(np.average(hz[0], weights=magnitudes.sum(axis=0) + 1e-20))


def imitate(stem: Samples, rate: int, library: Library, seconds: float = 0.12) -> Samples:
    """A mono stem played with the nearest grains, which fall by 60 dB, as loud as what they replace."""
    audio = np.zeros(len(stem))
    for heard in trace(stem, rate):
        add(audio, heard, nearest(library, heard), library, rate, round(seconds * rate))
    return audio.astype(np.float32)


def nearest(library: Library, heard: Heard) -> int:
    """The grain that is nearest in pitch, in octaves; if nothing has a pitch, in brightness."""
    pitched = heard.pitch > 0 and (library.pitches > 0).any()
    of, wanted = (library.pitches, heard.pitch) if pitched else (library.brightness, heard.brightness)
    far = {grain: abs(math.log2(own / wanted)) for grain, own in enumerate(of.tolist()) if own > 0}
    return min(far, key=lambda grain: far[grain])


def add(audio: Values, heard: Heard, grain: int, library: Library, rate: int, frames: int) -> None:
    """Play a grain, from its onset on."""
    begin = library.offsets[grain] + library.onsets[grain]
    end = library.offsets[grain] + library.lengths[grain]
    sound = library.audio[:, begin:end].mean(axis=0)
    if library.sample_rate != rate:
        sound = librosa.resample(sound, orig_sr=library.sample_rate, target_sr=rate)
    sound = sound[:frames]
    sound = sound * 10 ** (-3 * np.arange(len(sound)) / len(sound))
    sound *= heard.peak / np.abs(sound).max()
    sound = sound[: len(audio) - heard.start]
    audio[heard.start : heard.start + len(sound)] += sound


def play(library: Library, notes: Notes, playing: Playing, rate: int, channels: int, frames: int) -> Samples:
    """Notes played one by one: all settings but those that resample."""
    audio = np.zeros((channels, frames))
    last = -1
    sounds: dict[int, Values] = {}
    for note in range(len(notes)):
        start, length = int(notes.starts[note]), int(notes.frames[note])
        whole = math.floor(playing.density)
        count = whole + (chance(playing, start, 0, Purpose.COUNT) < playing.density - whole)
        spacing = max(length / max(count, 1), 0.01 * rate)
        offsets = [offset for offset in (int(number * spacing) for number in range(count)) if offset < length]
        for number, offset in enumerate(offsets):
            level = level_at(notes, note, offset, rate)
            if level > 0 and start + offset < frames:
                last = choose(library, notes, note, playing, rate, last, chance(playing, start, number, Purpose.CHOOSE))
                if last not in sounds:
                    sounds[last] = shaped(library, last, playing, rate, channels)
                sound = sounds[last]
                if playing.follow_level:
                    loud = max(np.abs(sound).max(), 0.03 * library.peaks[last], 1e-4)
                    sound = sound * level / loud / together(sound, spacing, len(offsets), rate)
                if channels == 2:
                    angle = math.pi / 4 * (1 + playing.spread * (2 * chance(playing, start, number, Purpose.PLACE) - 1))
                    sound = sound * math.sqrt(2) * np.array([[math.cos(angle)], [math.sin(angle)]])
                sound = sound[:, : frames - start - offset]
                audio[:, start + offset : start + offset + sound.shape[1]] += sound
    return audio.astype(np.float32)


def together(sound: Values, spacing: float, count: int, rate: int) -> float:
    """By how much louder, as powers add up, so many sounds are than one."""
    block, each = round(0.01 * rate), []
    for begin in range(0, sound.shape[1], block):
        each.append(float(np.abs(sound[:, begin : begin + block]).max() / np.abs(sound).max()) ** 2)
    lags = [int(number * spacing / (0.01 * rate)) for number in range(count)]
    sums = [sum(each[place + lag] for lag in lags if place + lag < len(each)) for place in range(len(each))]
    return math.sqrt(max(sums))


def chance(playing: Playing, start: int, number: int, purpose: Purpose) -> float:
    """What chance says."""
    return float(draws(playing.seed, np.array([start]), np.array([number]), purpose)[0])


def level_at(notes: Notes, note: int, offset: int, rate: int) -> float:
    """How loud a note is so many frames after it began."""
    levels = notes.levels[notes.level_edges[note] : notes.level_edges[note + 1]].tolist()
    if offset == 0 or not levels:
        return float(notes.peaks[note])
    level = levels[min(offset * 50 // rate, len(levels) - 1)]
    return float(10 ** ((level - 200) / 40)) if level else 0.0


def choose(library: Library, notes: Notes, note: int, playing: Playing, rate: int, last: int, chance: float) -> int:
    """A grain, by its distance from the note."""
    candidates = list(range(len(library)))
    by_pitch = playing.pitch_mapping and notes.pitches[note] > 0 and library.pitches.max() > 0
    if by_pitch:
        candidates = [grain for grain in candidates if library.pitches[grain] > 0]
    far = {grain: distance(library, grain, notes, note, playing, rate, by_pitch) for grain in candidates}
    if last in far and len(far) > 1 and not playing.allow_repeats:
        others = {grain: far[grain] for grain in far if grain != last}
        if min(others.values()) <= far[last] + 1 / 12:
            far = others
    near = [grain for grain in sorted(far) if far[grain] <= min(far.values()) + playing.variation]
    in_order = sorted(near, key=lambda grain: (library.pitches if by_pitch else library.brightness)[grain])
    return in_order[int(chance * len(near))] if playing.variation else near[0]


def distance(
    library: Library, grain: int, notes: Notes, note: int, playing: Playing, rate: int, by_pitch: bool
) -> float:
    """In octaves."""
    level = octaves(library.rms[grain], notes.rms[note])
    brightness = octaves(library.brightness[grain], notes.brightness[note])
    seconds = (library.lengths[grain] - library.onsets[grain]) / library.sample_rate
    duration = octaves(seconds, notes.frames[note] / rate)
    pitch = octaves(library.pitches[grain], notes.pitches[note]) + playing.brightness_weight * brightness
    rest = playing.level_weight * level + playing.duration_weight * duration
    return (pitch if by_pitch else brightness) + rest


def octaves(one: float, other: float) -> float:
    """How far apart two numbers are; 100 if there is none."""
    return abs(math.log2(one / other)) if one > 0 and other > 0 else 100.0


def shaped(library: Library, grain: int, playing: Playing, rate: int, channels: int) -> Values:
    """A grain as it is heard at full level, ``[channels, n]``."""
    begin = library.offsets[grain] + library.onsets[grain]
    end = library.offsets[grain] + library.lengths[grain]
    sound = library.audio[:, begin : min(end, begin + round(playing.seconds * rate))].astype(np.float64)
    if channels < len(sound):
        sound = sound.mean(axis=0, keepdims=True)
    length = sound.shape[1]
    for i in range(length):
        sound[:, i] *= factor(playing.shape.value, i, length, rate)
    return np.broadcast_to(sound, (channels, length))


def factor(shape: str, i: int, length: int, rate: int) -> float:
    """Of frame ``i`` of a grain."""
    t = i / length
    match shape:
        case "EXPONENTIAL":
            return float(10 ** (-60 * t / 20))
        case "LINEAR":
            return 1 - t
        case "HANN":
            return math.sin(math.pi * t) ** 2
        case "ADSR" if t < 0.1:
            return t / 0.1
        case "ADSR" if t < 0.3:
            return 1 - 0.3 * (t - 0.1) / 0.2
        case "ADSR" if t < 0.7:
            return 0.7
        case "ADSR":
            return 0.7 * (1 - t) / 0.3
    return min(1.0, (length - i) / min(length, round(0.002 * rate)))
