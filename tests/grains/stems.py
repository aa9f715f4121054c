"""Stems of which every onset is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from servers.grains.notes import Notes, join
from servers.grains.trace import Tracing

Samples = NDArray[np.float32]
Values = NDArray[np.float64]
Random = np.random.Generator


@dataclass
class Stem:
    """A sound, and what is played in it.

    Attributes:
        samples: ``[n]``.
        rate: in Hz.
        onsets: first samples of what is played, ascending.
        pitches: of each in Hz; 0: none.
    """

    samples: Samples
    rate: int
    onsets: list[int] = field(default_factory=list)
    pitches: list[float] = field(default_factory=list)

    @classmethod
    def silent(cls, seconds: float, rate: int) -> Stem:
        return cls(np.zeros(round(seconds * rate), np.float32), rate)

    def play(self, seconds: float, sound: Values, pitch: float = 0.0) -> None:
        """Adds a sound; together with one at the same time it is one onset."""
        start = round(seconds * self.rate)
        sound = sound[: len(self.samples) - start]
        self.samples[start : start + len(sound)] += sound.astype(np.float32)
        if start not in self.onsets:
            self.onsets.append(start)
            self.pitches.append(pitch)

    def with_noise(self, below_db: float, seed: int = 0) -> Stem:
        """The same in white noise, by so many dB below its peak."""
        noise = np.random.default_rng(seed).standard_normal(len(self.samples))
        scale = np.abs(self.samples).max() * 10 ** (-below_db / 20)
        return Stem((self.samples + scale * noise).astype(np.float32), self.rate, self.onsets, self.pitches)


def tone(hertz: float, seconds: float, rate: int, *, attack: float = 0.0, decay: float = 0.4) -> Values:
    """Six harmonics that rise evenly in ``attack`` seconds, fall by e in ``decay``, and stop in the last 8 ms."""
    time = np.arange(round(seconds * rate)) / rate
    harmonics = [k for k in range(1, 7) if k * hertz < 0.45 * rate]
    wave = np.sum([np.cos(2 * np.pi * k * hertz * time) / k for k in harmonics], axis=0) / np.sum(
        1 / np.array(harmonics)
    )
    rise = np.minimum(1, (time + 1 / rate) / attack) if attack else 1.0
    result: Values = wave * rise * np.exp(-time / decay) * np.minimum(1, (seconds - time) / 0.008)
    return result


def burst(seconds: float, rate: int, random: Random, *, above_hertz: float = 0.0) -> Values:
    """Noise that begins at its loudest and falls by 35 dB."""
    count = round(seconds * rate)
    noise = random.standard_normal(count)
    if above_hertz:
        noise = signal.sosfilt(signal.butter(2, above_hertz, "high", fs=rate, output="sos"), noise)
    noise[0] = 3.0
    faded: Values = noise / 3 * np.exp(-4 * np.arange(count) / count)
    return faded


def kick(rate: int) -> Values:
    """A sine that falls from 170 to 50 Hz."""
    time = np.arange(round(0.3 * rate)) / rate
    phase = 2 * np.pi * np.cumsum(50 + 120 * np.exp(-35 * time)) / rate
    return np.cos(phase) * np.exp(-14 * time)


def drums(seconds: float, rate: int, seed: int) -> Stem:
    """A bar of chance in sixteenths, again and again: kick, snare and hi-hat, each hit as loud as chance wants."""
    random, stem = np.random.default_rng(seed), Stem.silent(seconds, rate)
    sixteenth = 60 / random.uniform(80, 170) / 4
    played = random.random((3, 16)) < np.array([[0.3], [0.2], [0.6]])
    played[0, 0] = True
    sounds: list[Callable[[], Values]] = [
        lambda: 0.8 * kick(rate),
        lambda: 0.6 * burst(0.2, rate, random),
        lambda: 0.3 * burst(0.06, rate, random, above_hertz=0.15 * rate),
    ]
    for place in range(int((seconds - 0.1) / sixteenth)):
        loudness = random.uniform(0.4, 1)
        for has, sound in zip(played[:, place % 16], sounds, strict=True):
            if has:
                stem.play(place * sixteenth, loudness * sound())
    return stem


def melody(seconds: float, rate: int, seed: int, *, low: float = 220.0) -> Stem:
    """Notes of two octaves from ``low`` Hz on, one after the other, with rests; of a bass if that is low."""
    random, stem = np.random.default_rng(seed), Stem.silent(seconds, rate)
    eighth = 60 / random.uniform(80, 150) / 2
    at, last = 0.1, -1
    while at < seconds - 4 * eighth:
        length = eighth * random.choice([1, 1, 2, 3])
        if random.random() > 0.15:
            last = (last + int(random.integers(1, 24))) % 24
            hertz = low * 2 ** (last / 12)
            decay = random.uniform(0.3, 1.0)
            sound = tone(hertz, length, rate, attack=random.uniform(0.002, 0.01), decay=decay)
            stem.play(at, random.uniform(0.3, 0.8) * sound, hertz)
        at += length
    return stem


def traced(samples: Samples, rate: int, *, block: int = 65_536) -> Notes:
    """The notes of ``[n]`` or ``[channels, n]``."""
    planes = np.atleast_2d(samples)
    tracing = Tracing(rate, len(planes), planes.shape[1])
    parts = [tracing.process(planes[:, begin : begin + block]) for begin in range(0, planes.shape[1], block)]
    return join([*parts, tracing.finish()])


def errors(onsets: list[int], notes: Notes, within: int) -> tuple[NDArray[np.int64], int]:
    """How far notes begin from the onsets that have one, in samples; and how many more notes there are."""
    away = notes.starts - np.array(onsets)[:, None]
    nearest = away[np.arange(len(onsets)), np.abs(away).argmin(axis=1)]
    hits = nearest[np.abs(nearest) <= within]
    return hits, len(notes) - len(hits)
