"""Music with a known key: chord progressions, played."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]

RATE = 22_050
# Root (semitones above the tonic) and third (4: major, 3: minor) of each chord; each song ends on its tonic.
MAJOR = {
    "I-IV-V-I": [(0, 4), (5, 4), (7, 4), (0, 4)],
    "ii-V-I": [(2, 3), (7, 4), (0, 4), (0, 4)],
    "vi-IV-I-V": [(9, 3), (5, 4), (0, 4), (7, 4)],
}
MINOR = {
    "i-iv-V-i": [(0, 3), (5, 3), (7, 4), (0, 3)],
    "i-VI-III-VII": [(0, 3), (8, 4), (3, 4), (10, 4)],
}
# Amplitudes of harmonics, seconds until a note has decayed to 1/e (0: it does not), vibrato in cents.
TIMBRES = {
    "organ": ([1, 0.5, 0.3, 0.25, 0.1, 0.1], 0.0, 0),
    "piano": ([1, 0.6, 0.4, 0.25, 0.15, 0.1, 0.05], 0.6, 0),
    "saw": ([1 / h for h in range(1, 16)], 0.0, 0),
    "clarinet": ([1, 0, 0.6, 0, 0.35, 0, 0.2], 0.0, 0),
    "strings": ([1, 0.7, 0.5, 0.4, 0.3, 0.2, 0.15], 0.0, 15),
}


@dataclass(frozen=True)
class Playing:
    """How a progression is played."""

    timbre: str = "piano"
    inversion: int = 0
    bass: bool = True
    drums: bool = False
    noise: float = 0.0  # standard deviation; music peaks near 0.5
    cents: float = 0.0  # above A = 440 Hz
    octave: int = 4
    melody: bool = False  # of chord tones and, now and then, the tones beside them


def song(
    tonic: int, chords: list[tuple[int, int]], playing: Playing, rounds: int = 2, chord_seconds: float = 1.0
) -> Samples:
    """A progression, some times over, and its tonic at the end, float32 ``[n]`` at 22,050 Hz."""
    home = next(chord for chord in chords if chord[0] == 0)
    sequence = [*chords * rounds, home, home]
    length = round(chord_seconds * RATE)
    random = np.random.default_rng(1)
    music = np.concatenate([_chord(tonic + root, third, playing, length) for root, third in sequence])
    if playing.melody:
        music = music + np.concatenate(
            [_melody(tonic + root, third, playing, length, random) for root, third in sequence]
        )
    if playing.drums:
        music = music + drums(len(music), random)
    if playing.noise:
        music = music + playing.noise * random.standard_normal(len(music))
    return music.astype(np.float32)


def drums(length: int, random: np.random.Generator) -> Samples:
    """Kick on each half second, snare between, hi-hats; all of them without a pitch that lasts."""
    out = np.zeros(length + RATE)
    time = np.arange(RATE // 4) / RATE
    kick = 0.6 * np.sin(2 * np.pi * (50 * time + 4 * (1 - np.exp(-time * 30)))) * np.exp(-time * 12)
    for beat, start in enumerate(range(0, length, RATE // 4)):
        hat = 0.1 * random.standard_normal(len(time)) * np.exp(-time * 60)
        snare = 0.4 * random.standard_normal(len(time)) * np.exp(-time * 18)
        out[start : start + len(time)] += hat + (kick if beat % 4 == 0 else snare if beat % 4 == 2 else 0)
    return out[:length].astype(np.float32)


def tone(midi: float, timbre: str, length: int, level: float = 0.1) -> Samples:
    """A note, float32 ``[length]``."""
    amplitudes, decay, vibrato = TIMBRES[timbre]
    time = np.arange(length) / RATE
    cents = vibrato * np.sin(2 * np.pi * 5.5 * time)
    hz = 440 * 2 ** ((midi - 69 + cents / 100) / 12)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    wave = np.zeros(length)
    for harmonic, amplitude in enumerate(amplitudes, 1):
        if amplitude and harmonic * float(hz.max()) < RATE / 2:
            wave += amplitude * np.sin(harmonic * phase) * (np.exp(-time * harmonic**0.5 / decay) if decay else 1)
    fade = np.clip(np.minimum(time, time[::-1]) / 0.01, 0, 1)
    return (level * fade * wave).astype(np.float32)


@cache
def _chord(root: int, third: int, playing: Playing, length: int) -> Samples:
    pitches = sorted((root + step) % 12 + 12 * (playing.octave + 1) for step in (0, third, 7))
    pitches = pitches[playing.inversion :] + [pitch + 12 for pitch in pitches[: playing.inversion]]
    notes = [tone(pitch + playing.cents / 100, playing.timbre, length) for pitch in pitches]
    if playing.bass:
        notes.append(tone(root % 12 + 36 + playing.cents / 100, playing.timbre, length, 0.2))
    return np.sum(notes, axis=0, dtype=np.float32)


def _melody(root: int, third: int, playing: Playing, length: int, random: np.random.Generator) -> Samples:
    steps = random.choice([0, third, 7, 12, 2, 10], 4, p=[0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    notes = [tone(root % 12 + 72 + step + playing.cents / 100, "strings", length // 4) for step in steps]
    return np.concatenate([*notes, np.zeros(length % 4, np.float32)])
