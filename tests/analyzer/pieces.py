"""Short pieces of made-up music, as many as wanted: deterministic, varied, and confusable on purpose.

A *family* is a band with a habit: its instruments, drum pattern, tempo, scale, mix and room. The pieces of a family
share all that and differ in the music: key, chords, melody, fills. They are as near as two songs of one album: telling
them apart takes harmony and melody, not only sound.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import signal

RATE = 22_050
Samples = NDArray[np.float32]

_SCALES = (
    (0, 2, 4, 5, 7, 9, 11),
    (0, 2, 3, 5, 7, 8, 10),
    (0, 2, 3, 5, 7, 9, 10),
    (0, 2, 4, 5, 7, 9, 10),
    (0, 2, 3, 5, 7, 8, 11),
)
_TABLE = 4096
_STEPS = 16


@dataclass(frozen=True)
class Instrument:
    """How one sounds: ``kind`` is ``table``, ``fm`` or ``pluck``; times in seconds; the rest as its synthesis needs."""

    kind: str
    partials: tuple[float, ...]
    attack: float
    decay: float
    sustain: float
    darkening: float
    vibrato: float
    ratio: float
    depth: float


@dataclass(frozen=True)
class Family:
    """What the pieces of a family share."""

    tempo: float
    swing: float
    scale: tuple[int, ...]
    lead: Instrument
    chords: Instrument
    bass: Instrument
    drums: Samples  # [3, 16] probabilities of kick, snare, hat
    kit: tuple[float, ...]
    levels: tuple[float, ...]  # lead, chords, bass, drums
    chord_rhythm: str
    octave: int
    room: float
    wet: float
    drive: float
    tilt: float


def _instrument(rng: np.random.Generator) -> Instrument:
    count = int(rng.integers(3, 25))
    roll = rng.uniform(0.4, 2.2)
    partials = np.arange(1, count + 1) ** -roll * rng.uniform(0.2, 1, count)
    if rng.random() < 0.3:
        partials[1::2] *= 0.1  # hollow, as a clarinet
    percussive = rng.random() < 0.5
    return Instrument(
        kind=str(rng.choice(["table", "table", "fm", "pluck"])),
        partials=tuple(float(value) for value in partials),
        attack=float(rng.uniform(0.002, 0.02) if percussive else rng.uniform(0.02, 0.15)),
        decay=float(rng.uniform(0.1, 1.5)),
        sustain=0.0 if percussive else float(rng.uniform(0.3, 1)),
        darkening=float(rng.uniform(0.05, 1.0)),
        vibrato=float(rng.choice([0, 0, rng.uniform(0.001, 0.006)])),
        ratio=float(rng.choice([0.5, 1, 1, 2, 3, 1.41, 3.5])),
        depth=float(rng.uniform(0.5, 6)),
    )


def family(seed: int, number: int) -> Family:
    """Family ``number`` of the collection ``seed``."""
    rng = np.random.default_rng([seed, number])
    grid = np.zeros((3, _STEPS), np.float32)
    grid[0, [0, 8]] = 0.95
    grid[1, [4, 12]] = 0.95
    grid[2, :: int(rng.choice([1, 2, 4]))] = 0.9
    grid = np.clip(grid + (rng.random((3, _STEPS)) < 0.12) * rng.uniform(0.3, 0.9, (3, _STEPS)), 0, 1)
    if rng.random() < 0.25:
        grid[0, ::4] = 0.97
    levels = rng.uniform([0.4, 0.3, 0.4, 0.3], [1, 0.8, 1, 1.2])
    lineup = rng.random()
    if lineup < 0.15:
        levels[3] = 0  # no drums
    elif lineup < 0.22:
        levels[[2, 3]] = 0  # lead and chords
    elif lineup < 0.27:
        levels[1:] = 0  # solo
    elif lineup < 0.32:
        levels[0] = 0  # no melody
    return Family(
        tempo=float(rng.uniform(65, 175)),
        swing=float(rng.choice([0, 0, 0.16, 0.3])),
        scale=_SCALES[int(rng.integers(len(_SCALES)))],
        lead=_instrument(rng),
        chords=_instrument(rng),
        bass=_instrument(rng),
        drums=grid.astype(np.float32),
        kit=tuple(
            float(value) for value in rng.uniform([40, 0.08, 150, 0.05, 4000, 0.015], [80, 0.3, 260, 0.25, 8000, 0.12])
        ),
        levels=tuple(float(value) for value in levels),
        chord_rhythm=str(rng.choice(["held", "beats", "offbeats", "arpeggio", "half"])),
        octave=int(rng.choice([-12, 0, 0, 12])),
        room=float(rng.uniform(0.1, 1.5)),
        wet=float(rng.choice([0, 0.1, 0.25])),
        drive=float(rng.choice([0, 0, 2, 5])),
        tilt=float(rng.uniform(-0.6, 0.6)),
    )


@lru_cache(maxsize=3000)
def _note(instrument: Instrument, pitch: int, count: int) -> Samples:
    """One note of ``count`` samples, float32, peak near 1."""
    hertz = 440 * 2 ** ((pitch - 69) / 12)
    time = np.arange(count, dtype=np.float32) / RATE
    fall = np.exp(-time / instrument.decay)
    envelope = np.minimum(1, time / instrument.attack) * (instrument.sustain + (1 - instrument.sustain) * fall)
    envelope *= np.minimum(1, (count - np.arange(count)) / (0.01 * RATE))
    if instrument.kind == "pluck":
        return (_pluck(hertz, count, instrument) * envelope).astype(np.float32)
    phase = hertz * time + hertz * instrument.vibrato / (2 * np.pi * 5.5) * np.sin(2 * np.pi * 5.5 * time)
    dark = np.exp(-time / instrument.darkening)
    if instrument.kind == "fm":
        depth = min(instrument.depth, 6000 / hertz)
        wave = np.sin(2 * np.pi * phase + depth * dark * np.sin(2 * np.pi * instrument.ratio * phase))
        return (wave * envelope).astype(np.float32)
    index = (phase * _TABLE).astype(np.int64) % _TABLE
    audible = max(1, min(len(instrument.partials), int(9_500 / hertz)))
    bright = _table(instrument.partials[:audible])[index]
    dull = _table(instrument.partials[: max(1, audible // 4)])[index]
    return ((dark * bright + (1 - dark) * dull) * envelope).astype(np.float32)


@lru_cache(maxsize=500)
def _table(partials: tuple[float, ...]) -> Samples:
    phase = 2 * np.pi * np.arange(_TABLE) / _TABLE
    rng = np.random.default_rng(len(partials))
    wave = sum(level * np.sin((k + 1) * phase + rng.uniform(0, 6)) for k, level in enumerate(partials))
    return np.asarray(wave / np.abs(wave).max(), np.float32)


def _pluck(hertz: float, count: int, instrument: Instrument) -> Samples:
    """Karplus-Strong: noise in a damped loop."""
    period = max(2, round(RATE / hertz))
    noise = np.zeros(count)
    start = np.random.default_rng(period).uniform(-1, 1, period)
    noise[:period] = signal.lfilter([1 - instrument.darkening * 0.6], [1, -instrument.darkening * 0.6], start)[:count]
    loop = np.zeros(period + 2)
    loop[0], loop[period], loop[period + 1] = 1, -0.4985, -0.4985
    wave = signal.lfilter([1.0], loop, noise)
    return np.asarray(wave / (np.abs(wave).max() + 1e-9), np.float32)


def piece(seed: int, family_number: int, number: int, seconds: float = 30.0) -> Samples:
    """Piece ``number`` of a family, float32 ``[round(seconds * 22,050)]``, peak 0.5."""
    band = family(seed, family_number)
    rng = np.random.default_rng([seed, family_number, number, 7])
    count = round(seconds * RATE)
    tracks = np.zeros((4, count + 4 * RATE), np.float32)
    step = 60 / (band.tempo * rng.uniform(0.98, 1.02)) / 4
    key = int(rng.integers(0, 12))
    bars = int(np.ceil(seconds / (step * _STEPS)))
    sections = [_Section(band, rng) for _ in range(2)]
    for bar in range(bars):
        section = sections[(bar // 4) % 2]
        section.play(tracks, bar, step, key, rng)
    mix = np.tensordot(np.asarray(band.levels, np.float32), tracks, 1)
    return _mixed(mix, band)[:count]


class _Section:
    """Four bars: their chords, melody and drums."""

    def __init__(self, band: Family, rng: np.random.Generator) -> None:
        self._band = band
        self._degrees = rng.permutation(7)[:4] if rng.random() < 0.7 else rng.integers(0, 7, 4)
        self._degrees[0] = rng.choice([0, 0, 3, 5])
        density = rng.uniform(0.25, 0.6)
        self._melody: list[tuple[int, int, int]] = []  # step, scale degree, steps long
        motif = np.flatnonzero(rng.random(_STEPS) < density)
        degree = int(rng.integers(-2, 5))
        for bar in range(4):
            starts = motif if bar != 3 else np.flatnonzero(rng.random(_STEPS) < density)
            for index, start in enumerate(starts):
                degree = int(np.clip(degree + rng.choice([-3, -2, -1, -1, 0, 1, 1, 2, 3]), -5, 9))
                end = starts[index + 1] if index + 1 < len(starts) else _STEPS
                self._melody.append((bar * _STEPS + int(start), degree, min(8, int(end - start))))
        self._drums = rng.random(band.drums.shape) < band.drums
        self._bass = np.flatnonzero(rng.random(_STEPS) < 0.25)

    def play(self, tracks: Samples, bar: int, step: float, key: int, rng: np.random.Generator) -> None:
        band, local = self._band, bar % 4
        root = int(self._degrees[local])
        chord = [self._pitch(root + third) for third in (0, 2, 4)]
        for start, degree, length in self._melody:
            if start // _STEPS == local:
                pitch = 72 + band.octave + key + self._pitch(degree)
                self._add(tracks[0], bar, start % _STEPS, step, length, band.lead, pitch, rng.uniform(0.7, 1))
        for start, length, notes in _chord_rhythm(band.chord_rhythm, chord):
            for note in notes:
                self._add(tracks[1], bar, start, step, length, band.chords, 54 + key + note % 12, 0.4)
        for start in sorted({0, *self._bass}):
            self._add(tracks[2], bar, int(start), step, 3, band.bass, 33 + (key + chord[0]) % 12, 0.9)
        for row, hits in enumerate(self._drums):
            for start in np.flatnonzero(hits ^ (rng.random(_STEPS) < 0.02)):
                sound = _drum(row, band.kit)
                self._put(tracks[3], bar, int(start), step, sound * np.float32(rng.uniform(0.8, 1)))

    def _pitch(self, degree: int) -> int:
        octave, rest = divmod(degree, 7)
        return 12 * octave + self._band.scale[rest]

    def _add(
        self,
        track: Samples,
        bar: int,
        start: int,
        step: float,
        length: int,
        instrument: Instrument,
        pitch: int,
        level: float,
    ) -> None:
        self._put(
            track, bar, start, step, _note(instrument, pitch, int(length * step * RATE * 0.95)) * np.float32(level)
        )

    def _put(self, track: Samples, bar: int, start: int, step: float, sound: Samples) -> None:
        late = self._band.swing * step if start % 2 else 0.0
        at = int(((bar * _STEPS + start) * step + late) * RATE)
        end = min(len(track), at + len(sound))
        if at < end:
            track[at:end] += sound[: end - at]


def _chord_rhythm(name: str, chord: list[int]) -> list[tuple[int, int, list[int]]]:
    """Start step, length in steps and notes of each strike in a bar."""
    if name == "held":
        return [(0, 16, chord)]
    if name == "half":
        return [(0, 8, chord), (8, 8, chord)]
    if name == "beats":
        return [(start, 4, chord) for start in range(0, 16, 4)]
    if name == "offbeats":
        return [(start, 2, chord) for start in range(2, 16, 4)]
    return [(start, 2, [chord[(start // 2) % 3]]) for start in range(0, 16, 2)]


@lru_cache(maxsize=300)
def _drum(row: int, kit: tuple[float, ...]) -> Samples:
    low, low_decay, tone, snare_decay, bright, hat_decay = kit
    time = np.arange(int(0.4 * RATE)) / RATE
    noise = np.random.default_rng(row).standard_normal(len(time))
    if row == 0:
        sound = np.sin(2 * np.pi * (low * time + 8 * (1 - np.exp(-time * 30)) / 6)) * np.exp(-time / low_decay)
    elif row == 1:
        sound = (0.5 * np.sin(2 * np.pi * tone * time) + 0.4 * noise) * np.exp(-time / snare_decay)
    else:
        high = signal.sosfilt(signal.butter(2, bright, "highpass", fs=RATE, output="sos"), noise)
        sound = 0.5 * high * np.exp(-time / hat_decay)
    return np.asarray(sound * np.minimum(1, (len(time) - np.arange(len(time))) / 500), np.float32)


def _mixed(mix: Samples, band: Family) -> Samples:
    """Drive, room and tone of the whole mix."""
    mix = mix / (np.abs(mix).max() + 1e-9)
    if band.drive:
        mix = np.tanh(band.drive * mix) / np.tanh(band.drive)
    if band.wet:
        mix = reverberated(mix, band.room, band.wet)
    mix = signal.lfilter([1.0], [1, -0.5 * max(0, band.tilt)], mix - 0.5 * max(0, -band.tilt) * np.roll(mix, 1))
    return np.asarray(0.5 * mix / (np.abs(mix).max() + 1e-9), np.float32)


def reverberated(samples: Samples, seconds: float, wet: float) -> Samples:
    """In a room of decaying noise: -60 dB after ``seconds``; ``wet`` is the energy ratio of room to source."""
    length = int(seconds * RATE)
    room = np.random.default_rng(length).standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    room *= np.sqrt(wet / np.sum(room**2))
    room[0] += 1
    return np.asarray(signal.fftconvolve(samples, room)[: len(samples)], np.float32)
