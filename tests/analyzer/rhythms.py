"""Generated rhythms whose beats are known, and sounds that have none; mono at 22,050 Hz."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import signal

RATE = 22_050
Samples = NDArray[np.float32]
Random = np.random.Generator

# Sixteenths of a bar: "x" is loud, "o" half as loud. Chords and bass follow where they are asked for.
PATTERNS: dict[str, dict[str, str]] = {
    "rock": {"kick": "x.......x.x.....", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."},
    "house": {"kick": "x...x...x...x...", "snare": "....x.......x...", "hat": "..x...x...x...x."},
    "ballad": {"kick": "x.......x.......", "snare": "....x.......x...", "hat": "x...x...x...x..."},
    "hiphop": {"kick": "x..x..x...x.....", "snare": "....x.......x...", "hat": "xoxoxoxoxoxoxoxo"},
    "motown": {"kick": "x.....x.x.....x.", "snare": "x...x...x...x...", "hat": "x.x.x.x.x.x.x.x."},
    "breakbeat": {"kick": "x.x.......xx....", "snare": "....x..o.o..x..o", "hat": "x.x.x.x.x.x.x.x."},
    "jazz": {"ride": "x...x.o.x...x.o.", "hat": "....x.......x..."},
    "bossa": {"kick": "x..ox..ox..ox..o", "rim": "x..x..x...x..x..", "hat": "xoxoxoxoxoxoxoxo"},
    "waltz": {"kick": "x...........", "snare": "....o...o...", "hat": "x...x...x..."},
    "jazz waltz": {"ride": "x...x.o.x...", "hat": "....x.......", "kick": "x..........."},
}


@dataclass(frozen=True)
class Rhythm:
    """A sound, and what is true of it.

    Attributes:
        samples: float32 ``[n]``.
        bpm: its median tempo; 0: it has none.
        beats: in seconds.
        downbeats: those of ``beats`` that begin a bar, in seconds.
    """

    samples: Samples
    bpm: float
    beats: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))
    downbeats: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))


class Clock:
    """When beats are: tempo, its drift and swing.

    Args:
        bpm: at the middle.
        seconds: to fill.
        drift: share by which the tempo rises linearly from one end to the other, half below and half above ``bpm``.
        swing: where in the beat its second eighth is.
        first: when the first beat is, in seconds.
    """

    def __init__(
        self, bpm: float, seconds: float, *, drift: float = 0.0, swing: float = 0.5, first: float = 0.3
    ) -> None:
        moments = np.arange(0, seconds + 8, 0.01)
        tempo = bpm * (1 + drift * (moments / seconds - 0.5))
        passed = np.concatenate([[0.0], np.cumsum(tempo[:-1] / 60 * 0.01)])
        self._moments, self._passed, self._swing, self._first = moments, passed, swing, first
        self.count = int(np.interp(seconds - first - 0.05, moments, passed)) + 1

    def at(self, beat: float) -> float:
        """When a position in beats is, in seconds."""
        whole, part = divmod(beat, 1)
        part = 2 * part * self._swing if part < 0.5 else self._swing + (2 * part - 1) * (1 - self._swing)
        return float(np.interp(whole + part, self._passed, self._moments)) + self._first


class Band:
    """Writes notes into a recording."""

    def __init__(self, seconds: float, random: Random, *, jitter: float = 0.0) -> None:
        self.samples = np.zeros(int(seconds * RATE), np.float32)
        self._random, self._jitter = random, jitter
        self._sounds = {
            name: sound(name, random) for name in ("kick", "snare", "hat", "ride", "rim", "click", "accent")
        }

    def play(self, name: str, moment: float, gain: float = 1.0) -> None:
        """One stroke."""
        self.add(self._sounds[name], moment, gain * self._random.uniform(0.85, 1.0))

    def add(self, sound: Samples, moment: float, gain: float) -> None:
        """Any sound; it is cut off at the end."""
        begin = max(0, int((moment + self._random.normal(0, self._jitter)) * RATE))
        part = self.samples[begin : begin + len(sound)]
        part += gain * sound[: len(part)]


def sound(name: str, random: Random) -> Samples:
    """A stroke on an instrument without pitch."""
    seconds, decay = {"kick": (0.3, 0.08), "snare": (0.25, 0.06), "hat": (0.1, 0.02), "ride": (0.4, 0.1)}.get(
        name, (0.05, 0.01)
    )
    time = np.arange(int(seconds * RATE)) / RATE
    noise = random.normal(0, 0.3, len(time))
    body: Any
    match name:
        case "kick":
            body = np.sin(2 * np.pi * (50 * time + 60 * 0.03 * (1 - np.exp(-time / 0.03))))
        case "snare":
            body = 0.5 * np.sin(2 * np.pi * 190 * time) + noise
        case "hat" | "ride":
            body = 0.6 * signal.sosfilt(signal.butter(4, 5_000, "high", fs=RATE, output="sos"), noise)
        case _:
            body = 0.7 * np.sin(2 * np.pi * {"rim": 1_700, "click": 1_000, "accent": 1_500}[name] * time)
    return (body * np.exp(-time / decay)).astype(np.float32)


def tone(midi: float, seconds: float, *, decay: float, attack: float = 0.004, harmonics: int = 6) -> Samples:
    """A note of an instrument with pitch."""
    time = np.arange(int(seconds * RATE)) / RATE
    orders = np.arange(1, harmonics + 1)
    hertz = 440 * 2 ** ((midi - 69) / 12)
    waves = np.sin(2 * np.pi * hertz * np.outer(orders, time)) / orders[:, None]
    shape = np.minimum(time / attack, 1) * np.exp(-time / decay) * np.minimum((seconds - time) / 0.01, 1)
    return (0.3 * waves.sum(axis=0) * shape).astype(np.float32)


def chord(root: float, seconds: float, *, decay: float, attack: float = 0.004) -> Samples:
    """A triad."""
    notes = [tone(root + step, seconds, decay=decay, attack=attack) for step in (0, 4, 7)]
    return np.sum(notes, axis=0, dtype=np.float32)


def clicks(bpm: float, seconds: float, random: Random, *, meter: int = 0, noise: float = 0.0, **clock: float) -> Rhythm:
    """A click on each beat; with ``meter``, a higher and louder one each bar; ``noise``: amplitude of white noise."""
    times, band = Clock(bpm, seconds, **clock), Band(seconds, random)
    for beat in range(times.count):
        first = meter and beat % meter == 0
        band.play("accent" if first else "click", times.at(beat), 1.0 if first or not meter else 0.5)
        if "swing" in clock:
            band.play("click", times.at(beat + 0.5), 0.4)
    return _rhythm(band, times, bpm, meter, random, noise)


def drums(
    pattern: str | Mapping[str, str],
    bpm: float,
    seconds: float,
    random: Random,
    *,
    noise: float = 0.0,
    jitter: float = 0.003,
    bass: bool = False,
    chords: bool = False,
    gains: Mapping[str, float] | None = None,
    **clock: float,
) -> Rhythm:
    """A pattern of drums, with walking bass and a chord each bar if wanted."""
    voices = PATTERNS[pattern] if isinstance(pattern, str) else pattern
    times, band = Clock(bpm, seconds, **clock), Band(seconds, random, jitter=jitter)
    meter = len(next(iter(voices.values()))) // 4
    root = 48.0
    for beat in range(times.count):
        if beat % meter == 0:
            root = 48 + float(random.choice([0, 2, 4, 5, 7, 9]))
        length = times.at(beat + 1) - times.at(beat)
        for voice, steps in voices.items():
            for part in range(4):
                stroke = steps[(4 * beat + part) % len(steps)]
                if stroke != ".":
                    gain = (gains or {}).get(voice, 0.8) * (1.0 if stroke == "x" else 0.5)
                    band.play(voice, times.at(beat + part / 4), gain)
        if bass:
            step = float(random.choice([0, 4, 7, 12])) if beat % meter else 0
            band.add(tone(root - 12 + step, 0.9 * length, decay=0.4, attack=0.01), times.at(beat), 0.5)
        if chords and beat % meter == 0:
            band.add(chord(root, meter * length, decay=1.5, attack=0.02), times.at(beat), 0.3)
    return _rhythm(band, times, bpm, meter, random, noise)


def strums(bpm: float, seconds: float, random: Random, *, meter: int = 4, noise: float = 0.0, **clock: float) -> Rhythm:
    """A guitar in eighths: a new chord each bar, and of what is between the beats, which is softer, some left out."""
    times, band = Clock(bpm, seconds, **clock), Band(seconds, random, jitter=0.006)
    kept = random.random(2 * meter) < 0.75
    root = 50.0
    for beat in range(times.count):
        if beat % meter == 0:
            root = 50 + float(random.choice([0, 2, 4, 5, 7, 9]))
        length = times.at(beat + 1) - times.at(beat)
        band.add(chord(root, length, decay=0.3), times.at(beat), 0.8 if beat % meter == 0 else 0.6)
        if beat % meter == 0:
            band.add(tone(root - 12, 2 * length, decay=0.6), times.at(beat), 0.7)
        if kept[2 * (beat % meter)]:
            band.add(chord(root, length / 2, decay=0.2), times.at(beat + 0.5), 0.35)
    return _rhythm(band, times, bpm, meter, random, noise)


def notes(bpm: float, seconds: float, random: Random, *, meter: int = 4, noise: float = 0.0, **clock: float) -> Rhythm:
    """A melody of quarters, eighths and halves over a bass on the first beat of each bar and some of the others."""
    times, band = Clock(bpm, seconds, **clock), Band(seconds, random, jitter=0.006)
    position, root = 0.0, 45.0
    while position < times.count:
        length = float(random.choice([0.5, 1, 1, 1.5, 2], p=[0.4, 0.2, 0.2, 0.1, 0.1]))
        seconds_long = times.at(position + length) - times.at(position)
        pitch = 60 + float(random.choice([0, 2, 4, 5, 7, 9, 11, 12]))
        band.add(tone(pitch, seconds_long, decay=0.5, attack=0.01), times.at(position), random.uniform(0.4, 0.7))
        position += length
    for beat in range(times.count):
        if beat % meter == 0:
            root = 40 + float(random.choice([0, 2, 4, 5, 7, 9]))
        if beat % meter in (0, 2) or random.random() < 0.3:
            band.add(tone(root, times.at(beat + 1) - times.at(beat), decay=0.6, attack=0.01), times.at(beat), 0.6)
    return _rhythm(band, times, bpm, meter, random, noise)


def mixed(*parts: tuple[Rhythm, float]) -> Rhythm:
    """Rhythms of one clock at once, each with its gain; beats and bars are those of the first."""
    first = parts[0][0]
    samples = np.sum([gain * rhythm.samples for rhythm, gain in parts], axis=0)
    samples /= max(1.0, float(np.abs(samples).max()))
    return Rhythm(samples.astype(np.float32), first.bpm, first.beats, first.downbeats)


def without_beat(kind: str, seconds: float, random: Random) -> Rhythm:
    """Noise, a drone, talk-like bursts, rubato or single strokes far apart."""
    band = Band(seconds, random)
    count = len(band.samples)
    moment = 0.2
    match kind:
        case "noise":
            slow = np.interp(np.arange(count) / RATE, np.arange(seconds + 1), random.uniform(0.2, 1, int(seconds) + 1))
            band.samples += (0.2 * slow * random.normal(0, 1, count)).astype(np.float32)
        case "drone":
            for pitch in random.integers(36, 70, 4):
                wobble = 1 + 0.3 * np.sin(2 * np.pi * random.uniform(0.05, 0.3) * np.arange(count) / RATE)
                band.samples += (0.2 * wobble * tone(pitch, seconds, decay=1e6, attack=2.0)).astype(np.float32)
        case "talk":
            while moment < seconds:
                pause = random.random() < 0.12
                length = random.uniform(0.08, 0.3)
                voice = tone(random.normal(48, 2), length, decay=0.2, attack=0.02, harmonics=20)
                hiss = random.normal(0, 0.3, len(voice)) * np.hanning(len(voice))
                band.add(voice if random.random() < 0.7 else hiss.astype(np.float32), moment, random.uniform(0.2, 0.8))
                moment += length * random.uniform(0.8, 1.3) + (random.uniform(0.3, 1.0) if pause else 0)
        case "rubato":
            length = random.uniform(0.3, 0.9)
            while moment < seconds:
                pitch = 55 + float(random.choice([0, 2, 4, 5, 7, 9, 11, 12]))
                step = length * float(np.exp(random.normal(0, 0.45)))
                band.add(tone(pitch, step, decay=0.6, attack=0.015), moment, random.uniform(0.3, 0.8))
                moment += step
        case "strokes":
            while moment < seconds:
                band.play("snare", moment)
                moment += random.exponential(1.0) + 0.15
    return Rhythm(band.samples, 0)


def _rhythm(band: Band, times: Clock, bpm: float, meter: int, random: Random, noise: float) -> Rhythm:
    samples = band.samples / max(1.0, float(np.abs(band.samples).max()))
    samples += noise * random.normal(0, 1, len(samples)).astype(np.float32)
    beats = np.array([times.at(beat) for beat in range(times.count)])
    return Rhythm(samples.astype(np.float32), bpm, beats, beats[::meter] if meter else np.zeros(0))
