"""Key and tuning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from servers.analyzer.chroma import FINE, RATE, ChromaStream
from servers.analyzer.unknown import Unknown

Samples = NDArray[np.float32]
Values = NDArray[np.float64]

# I. Sha'ath, Estimation of key in digital music recordings, 2011 (KeyFinder): Krumhansl's profiles, altered for popular
# music. Of six published pairs (Krumhansl-Kessler, Temperley 1999 and 2005, Faraldo's edma and bgate) these and edma
# tell most of our progressions right (97 to 98 %), and these relative keys apart best. By degree, from the tonic up.
_MAJOR = (6.6, 2.0, 3.5, 2.3, 4.6, 4.0, 2.5, 5.2, 2.4, 3.7, 2.3, 3.4)
_MINOR = (6.5, 2.7, 3.5, 5.4, 2.6, 3.5, 2.5, 5.2, 4.0, 2.7, 4.3, 3.2)
_BASS_WEIGHT = 1.25  # of what is below middle C: it has the roots of chords

_SILENT = 10 ** (-70 / 20)
_SHORTEST = 2.0  # seconds
# Measured: the tones of music weigh 1 to 8 times the root of its level in each frame, those of drums 0.01; peaks of
# music agree in their tuning by 0.5 to 1.0, those of speech by 0.1 to 0.4.
_LEAST_TONES = 0.1
_LEAST_TUNED = 0.45
_LEAST_CLASSES = 1.5  # pitch classes of equal weight: one tone has no key
_LEAST_CORRELATION = 0.55  # a chromatic scale has 0.5
_TEMPERATURE = 0.06  # correlations that differ by this are e : 1 as likely
_POSSIBLE = 0.05  # share of the evidence that makes an alternative


class Mode(IntEnum):
    """As the proto enum ``Key.Mode``."""

    MAJOR = 1
    MINOR = 2


@dataclass(frozen=True, slots=True)
class Key:
    """As the proto message ``Key``."""

    tonic: int
    mode: Mode
    name: str
    camelot: str
    open_key: str
    confidence: float
    tuning_hz: float
    alternatives: tuple[str, ...]


_KEYS = [(tonic, mode) for mode in Mode for tonic in range(12)]
_NAMES = {
    # The spelling with the fewer accidentals; of F sharp and G flat major, which have six each, the former.
    Mode.MAJOR: ("C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"),
    Mode.MINOR: ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"),
}


def name(tonic: int, mode: Mode) -> str:
    """As people write it, "F# minor"."""
    return f"{_NAMES[mode][tonic]} {mode.name.lower()}"


def camelot(tonic: int, mode: Mode) -> str:
    """The Camelot code, "11A": an hour for each fifth upwards, C major at 8B, A minor at 8A."""
    return f"{(_fifths(tonic, mode) + 7) % 12 + 1}{'B' if mode is Mode.MAJOR else 'A'}"


def open_key(tonic: int, mode: Mode) -> str:
    """The Open Key code, "4m": as Camelot's, but C major is at 1d and A minor at 1m."""
    return f"{_fifths(tonic, mode) + 1}{'d' if mode is Mode.MAJOR else 'm'}"


def _fifths(tonic: int, mode: Mode) -> int:
    """From C major, or the relative of C major, up to a key, 0 to 11."""
    return 7 * (tonic if mode is Mode.MAJOR else tonic + 3) % 12


class KeyFeature:
    """The key of a stream, in constant memory.

    Chroma (`ChromaStream`) is tuned and compared with the profile of each key. Silence weighs nothing.
    """

    def __init__(self) -> None:
        self._chroma = ChromaStream()
        self._samples = 0
        self._energy = 0.0
        self._peak = 0.0

    def process(self, samples: Samples) -> None:
        """Take in float32 ``[n]``, mono at 22,050 Hz."""
        if len(samples):
            self._samples += len(samples)
            self._energy += float(np.dot(samples, samples))
            self._peak = max(self._peak, float(np.abs(samples).max()))
            self._chroma.process(samples)

    def finish(self) -> Key | Unknown:
        """The key, or TOO_SHORT, SILENT or NO_TONALITY. Call once, last."""
        self._chroma.finish()
        if self._samples < _SHORTEST * RATE:
            return Unknown("TOO_SHORT", f"Shorter than {_SHORTEST:g} s.")
        if self._peak <= _SILENT:
            return Unknown("SILENT", "Nothing is above -70 dBFS.")
        return self._told() or Unknown("NO_TONALITY", "Too few steady tones, or none on a common scale.")

    def _told(self) -> Key | None:
        weight = self._chroma.fine.sum()
        level = (self._energy / self._samples) ** 0.25
        if weight < _LEAST_TONES * level * self._chroma.frames or abs(self._chroma.phasor) < _LEAST_TUNED * weight:
            return None
        deviation = float(np.angle(self._chroma.phasor)) / (2 * np.pi)
        chroma = tuned(_BASS_WEIGHT * self._chroma.fine[0] + self._chroma.fine[1], deviation)
        scores = correlations(chroma)
        if chroma.sum() ** 2 < _LEAST_CLASSES * (chroma**2).sum() or scores.max() < _LEAST_CORRELATION:
            return None
        shares = np.exp((scores - scores.max()) / _TEMPERATURE)
        shares /= shares.sum()
        first, *others = (int(index) for index in np.argsort(-shares)[:4])
        tonic, mode = _KEYS[first]
        return Key(
            tonic=tonic,
            mode=mode,
            name=name(tonic, mode),
            camelot=camelot(tonic, mode),
            open_key=open_key(tonic, mode),
            confidence=float(shares[first]),
            tuning_hz=440 * 2 ** (deviation / 12),
            alternatives=tuple(camelot(*_KEYS[other]) for other in others if shares[other] >= _POSSIBLE),
        )


def tuned(fine: Values, deviation: float) -> Values:
    """Chroma ``[12]`` of fine chroma ``[120]`` that is ``deviation`` (-0.5 to 0.5) semitones above A = 440 Hz.

    What lies between two semitones counts less (a raised cosine).
    """
    cents = np.arange(FINE) * 10.0
    away = (cents - 100 * (np.arange(12)[:, None] + deviation) + 600) % 1200 - 600
    window = np.where(np.abs(away) < 50, np.cos(np.pi * away / 100) ** 2, 0.0)
    values: Values = window @ fine
    return values


def correlations(chroma: Values) -> Values:
    """Pearson correlation of chroma ``[12]`` with the profile of each key, ``[24]``: major from C up, then minor."""
    keys = np.array([np.roll(profile, tonic) for profile in (_MAJOR, _MINOR) for tonic in range(12)])
    keys -= keys.mean(axis=1, keepdims=True)
    centred = chroma - chroma.mean()
    values: Values = keys @ centred / np.maximum(np.linalg.norm(keys, axis=1) * np.linalg.norm(centred), 1e-30)
    return values
