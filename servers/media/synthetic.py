"""A short synthetic song to demonstrate and test with: drums, bass, chords and a voice-like melody.

``python -m servers.media.synthetic OUT.flac`` writes one. Everything is computed from the seed, so the same
arguments give the same samples.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from servers.media.encode import AudioFormat, Encoder

Signal = NDArray[np.float64]

_TEMPO = 108.0
_CHORDS = ((57, 60, 64), (53, 57, 60), (60, 64, 67), (55, 59, 62))  # Am F C G, MIDI notes, one a bar
_ROOTS = (33, 29, 36, 31)
_SCALE = (69, 72, 74, 76, 79)  # A minor pentatonic
_VOWELS = (
    (800, 1150, 2900),
    (350, 2000, 2800),
    (450, 800, 2830),
    (325, 700, 2700),
)  # a, e, o, u: formants in Hz
_PEAK = 0.89


def make_stems(*, seconds: float = 12.0, sample_rate: int = 44_100, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """The stems ``drums``, ``bass``, ``other`` and ``vocals``: float32 ``[2, frames]``. Their sum peaks at
    0.89.

    Raises:
        ValueError: the length is not positive.
    """
    frames = round(seconds * sample_rate)
    if frames < 1:
        raise ValueError("a song must have a length")
    rng = np.random.default_rng(seed)
    beats = int(np.ceil(seconds * _TEMPO / 60))
    parts = {
        "drums": _pan(_drums(frames, sample_rate, beats, rng), 0.0),
        "bass": _pan(_bass(frames, sample_rate, beats), 0.0),
        "other": _pan(_chords(frames, sample_rate, beats, 0.0), -0.5)
        + _pan(_chords(frames, sample_rate, beats, 0.11), 0.5),
        "vocals": _pan(_vocals(frames, sample_rate, beats, rng), 0.05),
    }
    loudest = float(np.abs(sum(parts.values())).max()) or 1.0
    return {name: (part * (_PEAK / loudest)).astype(np.float32) for name, part in parts.items()}


def write_song(
    path: str | os.PathLike[str], *, seconds: float = 12.0, sample_rate: int = 44_100, seed: int = 0
) -> None:
    """Write the mix of :func:`make_stems`; the extension (wav, flac, mp3, opus) chooses the format.

    Raises:
        ValueError: unknown extension or a length that is not positive.
    """
    stems = make_stems(seconds=seconds, sample_rate=sample_rate, seed=seed)
    _write(path, np.sum(list(stems.values()), axis=0, dtype=np.float32), sample_rate)


def write_stem(
    path: str | os.PathLike[str], stem: str, *, seconds: float = 12.0, sample_rate: int = 44_100, seed: int = 0
) -> None:
    """Write one of :func:`make_stems`, as :func:`write_song` does with their sum."""
    _write(path, make_stems(seconds=seconds, sample_rate=sample_rate, seed=seed)[stem], sample_rate)


def _write(path: str | os.PathLike[str], samples: NDArray[np.float32], sample_rate: int) -> None:
    audio_format = AudioFormat(Path(path).suffix.lstrip(".").lower())
    encoder = Encoder(audio_format, sample_rate=sample_rate, channels=2, frames=samples.shape[1])
    with open(path, "wb") as file:
        file.write(encoder.encode(samples))
        file.write(encoder.finish())


def _hertz(note: float) -> float:
    return float(440.0 * 2.0 ** ((note - 69) / 12))


def _pan(signal: Signal, position: float) -> Signal:
    """Mono to stereo at constant power; -1 is left, 1 right."""
    angle = (position + 1) * np.pi / 4
    return np.stack((np.cos(angle) * signal, np.sin(angle) * signal))


def _place(track: Signal, sound: Signal, at: int) -> None:
    """Add a sound at a position, cut where the track ends."""
    length = min(sound.size, track.size - at)
    if length > 0:
        track[at : at + length] += sound[:length]


def _position(beat: float, rate: int) -> int:
    return round(beat * 60 / _TEMPO * rate)


def _saw(frequency: float | Signal, length: int, rate: int, partials: int) -> Signal:
    """A sawtooth without aliases: only partials below 0.45 of the rate."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, length)) / rate
    top = int(0.45 * rate / float(np.max(frequency)))
    wave = np.zeros(length)
    for k in range(1, min(partials, top) + 1):
        wave += np.sin(k * phase) / k
    return wave


def _drums(frames: int, rate: int, beats: int, rng: np.random.Generator) -> Signal:
    t = np.arange(int(0.35 * rate)) / rate
    kick = np.sin(2 * np.pi * (50 * t + 8 * (1 - np.exp(-t / 0.03)))) * np.exp(-t / 0.11)
    snare = 0.5 * rng.standard_normal(t.size) * np.exp(-t / 0.07) + 0.5 * np.sin(2 * np.pi * 190 * t) * np.exp(
        -t / 0.05
    )
    hat = 0.25 * np.diff(rng.standard_normal(t.size + 1)) * np.exp(-t / 0.025)  # a difference is a high-pass filter
    track = np.zeros(frames)
    for beat in range(beats):
        _place(track, snare if beat % 2 else kick, _position(beat, rate))
        if beat % 4 == 2:
            _place(track, kick, _position(beat + 0.5, rate))
        for half in (0.0, 0.5):
            _place(track, hat * (1.0 if half else 0.6), _position(beat + half, rate))
    return track


def _bass(frames: int, rate: int, beats: int) -> Signal:
    track = np.zeros(frames)
    length = _position(0.48, rate)
    envelope = np.minimum(1, np.arange(length) / (0.005 * rate)) * np.linspace(1, 0.3, length)
    envelope *= np.minimum(1, np.arange(length)[::-1] / (0.01 * rate))
    for eighth in range(2 * beats):
        root = _ROOTS[eighth // 8 % 4] + (12 if eighth % 4 == 3 else 0)
        _place(track, 0.55 * _saw(_hertz(root), length, rate, 6) * envelope, _position(eighth / 2, rate))
    return track


def _chords(frames: int, rate: int, beats: int, detune: float) -> Signal:
    track = np.zeros(frames)
    length = _position(4, rate)
    envelope = np.minimum(1, np.arange(length) / (0.08 * rate)) * np.minimum(1, np.arange(length)[::-1] / (0.1 * rate))
    for bar in range(-(-beats // 4)):
        for note in _CHORDS[bar % 4]:
            _place(
                track,
                0.09 * _saw(_hertz(note + detune), length, rate, 8) * envelope,
                _position(4 * bar, rate),
            )
    return track


def _vocals(frames: int, rate: int, beats: int, rng: np.random.Generator) -> Signal:
    """One sung vowel a note: partials of a vibrato tone, weighted by their distance from three formants."""
    track = np.zeros(frames)
    beat = 1.0  # a rest first
    while beat < beats:
        duration = float(rng.choice((0.5, 1.0, 1.0, 1.5)))
        if rng.random() < 0.85:
            note, vowel = int(rng.choice(_SCALE)) - 12, _VOWELS[int(rng.integers(len(_VOWELS)))]
            _place(
                track,
                0.5 * _sung(_hertz(note), vowel, _position(0.95 * duration, rate), rate),
                _position(beat, rate),
            )
        beat += duration
    return track


def _sung(frequency: float, formants: tuple[int, int, int], length: int, rate: int) -> Signal:
    t = np.arange(length) / rate
    vibrato = 2.0 ** (0.35 / 12 * np.sin(2 * np.pi * 5.5 * t) * np.minimum(1, t / 0.3))
    phase = 2 * np.pi * np.cumsum(frequency * vibrato) / rate
    wave = np.zeros(length)
    for k in range(1, 1 + min(24, int(0.43 * rate / frequency))):
        weights = (
            np.exp(-0.5 * ((k * frequency - f) / (90 + 0.05 * f)) ** 2) / (1 + i) for i, f in enumerate(formants)
        )
        wave += (0.08 / k + sum(weights)) * np.sin(k * phase)
    wave *= np.minimum(1, t / 0.04) * np.minimum(1, t[::-1] / 0.06)
    return wave


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m servers.media.synthetic", description="Write a synthetic song.")
    parser.add_argument("out", help="a .flac, .wav, .mp3 or .opus file")
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--sample-rate", type=int, default=44_100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_song(options.out, seconds=options.seconds, sample_rate=options.sample_rate, seed=options.seed)


if __name__ == "__main__":
    main()
