"""Tempo and beats of generated rhythms and of given recordings, beside librosa's and essentia's.

``python -m tests.bench.analysis.rhythm [AUDIO_FILE...]`` prints the table.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import librosa
import numpy as np
from numpy.typing import NDArray

from servers.analyzer.envelope import FRAME, HOP, EnvelopeFeature, Samples
from servers.analyzer.tempo import find_tempo
from servers.analyzer.unknown import Unknown
from servers.media.frames import Framer, power_spectra
from servers.media.synthetic import make_stems
from tests.analyzer.rhythms import RATE, Rhythm, clicks, drums, mixed, notes, strums, without_beat

SECONDS = 20.0
TEMPI = (42, 49, 58, 71, 85, 101, 117, 134, 151, 172, 197, 231)
SONG_BPM = 108.0
GROOVES: dict[str, tuple[float, float, float, dict[str, str]]] = {  # slowest, fastest, swing, sixteenths of a bar
    "disco": (110, 130, 0.5, {"kick": "x...x...x...x...", "snare": "....x.......x...", "hat": "o.x.o.x.o.x.o.x."}),
    "motorik": (135, 160, 0.5, {"kick": "x.x...x.x.x...x.", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."}),
    "one drop": (66, 84, 0.5, {"kick": "........x.......", "rim": "........x.......", "hat": "x.o.x.o.x.o.x.o."}),
    "funk": (94, 114, 0.5, {"kick": "x.x....x..x..x..", "snare": "....x..o.o..x...", "hat": "xoxoxoxoxoxoxoxo"}),
    "drummer": (94, 108, 0.5, {"kick": "x.x...x...x..x..", "snare": "....x..o.o.oxo.o", "hat": "x.x.x.x.x.x.x.x."}),
    "jungle": (162, 176, 0.5, {"kick": "x.........x.....", "snare": "....x..o....x...", "hat": "x.x.x.x.x.x.x.x."}),
    "slow soul": (58, 76, 0.5, {"kick": "x.....x...x.....", "snare": "....x.......x...", "hat": "xoxoxoxoxoxoxoxo"}),
    "shuffle": (92, 132, 0.66, {"kick": "x...x...x...x...", "snare": "....x.......x...", "hat": "x.x.x.x.x.x.x.x."}),
    "train": (98, 122, 0.5, {"kick": "x...x...x...x...", "snare": "ooxoooxoooxoooxo"}),
    "samba": (94, 116, 0.5, {"kick": "x..xx..xx..xx..x", "rim": "x.x.xx.x.x.xx.x.", "hat": "oxxooxxooxxooxxo"}),
    "dembow": (86, 102, 0.5, {"kick": "x...x...x...x...", "snare": "...x..x....x..x.", "hat": "x.x.x.x.x.x.x.x."}),
    "clave": (92, 112, 0.5, {"kick": "x..x..x...x.x...", "hat": "x.x.x.x.x.x.x.x."}),
    "polka": (104, 126, 0.5, {"kick": "x...x...x...x...", "snare": "..x...x...x...x."}),
    "march": (108, 122, 0.5, {"kick": "x...x...x...x...", "snare": "x.oox.oox.ooxooo"}),
    "mazurka": (126, 156, 0.5, {"kick": "x...........", "snare": "....x...o...", "hat": "x.....x.x..."}),
    "techno": (122, 138, 0.5, {"kick": "x...x...x...x...", "ride": "oooooooooooooooo", "hat": "..x...x...x...x."}),
}
Row = dict[str, str | float]


@dataclass(frozen=True)
class Answer:
    """What a tool says: 0 and nothing where it says that there is no beat."""

    bpm: float
    beats: NDArray[np.float64]
    downbeats: NDArray[np.float64]
    confidence: float = 1.0


def powers(samples: Samples) -> Samples:
    """What the analyzer computes once for all of its features."""
    window = librosa.filters.get_window("hann", FRAME).astype(np.float32)
    framer = Framer(FRAME, HOP)
    return np.concatenate([power_spectra(part, window) for part in (framer.process(samples), framer.finish())])


def ours(spectra: Samples) -> Answer:
    """This project's."""
    envelope = EnvelopeFeature()
    for begin in range(0, len(spectra), 256):
        envelope.process(spectra[begin : begin + 256])
    tempo = find_tempo(envelope.finish())
    if isinstance(tempo, Unknown):
        return Answer(0, np.zeros(0), np.zeros(0), 0)
    beats = np.array(tempo.beat_seconds)
    return Answer(tempo.bpm, beats, beats[list(tempo.downbeats)], tempo.confidence)


def librosas(samples: Samples) -> Answer:
    """librosa.beat.beat_track."""
    bpm, beats = librosa.beat.beat_track(y=samples, sr=RATE, units="time")
    return Answer(float(np.atleast_1d(bpm)[0]), beats, np.zeros(0))


def essentias(samples: Samples) -> Answer:
    """essentia's RhythmExtractor2013, which wants 44.1 kHz."""
    standard = importlib.import_module("essentia.standard")
    high = librosa.resample(samples, orig_sr=RATE, target_sr=2 * RATE)
    bpm, beats, *_ = standard.RhythmExtractor2013(method="multifeature")(high)
    return Answer(float(bpm), beats.astype(float), np.zeros(0))


def cases() -> Iterator[tuple[str, Rhythm]]:
    """Rhythms by kind, none of which had a part in the choice of weights or limits, but for the synthetic song."""
    for number, bpm in enumerate(map(float, TEMPI)):
        random = np.random.default_rng(70_000 + number)
        yield "clicks", clicks(bpm, SECONDS, random)
        yield "clicks in noise", clicks(bpm, SECONDS, random, noise=0.03)
        yield "clicks, accents", clicks(bpm, SECONDS, random, meter=3 + number % 2)
        if 60 <= bpm <= 180:
            yield "clicks, drift", clicks(bpm, SECONDS, random, drift=0.2 * (-1) ** number)
            yield "strums", strums(bpm, SECONDS, random, meter=3 + number % 2)
            yield "melody, bass", notes(bpm, SECONDS, random)
    for number, (slowest, fastest, swing, groove) in enumerate(GROOVES.values()):
        for part in range(2):
            random = np.random.default_rng(80_000 + 10 * number + part)
            bpm = float(random.uniform(slowest, fastest))
            yield "drums", drums(groove, bpm, SECONDS, random, swing=swing, noise=0.003)
            band = drums(groove, bpm, SECONDS, random, swing=swing, bass=True, chords=True, jitter=0.008)
            yield "band", band
            melody = notes(bpm, SECONDS, random, meter=len(groove["kick"]) // 4, swing=swing)
            yield "band, melody", mixed((band, 1.0), (melody, 0.7))
    for seed in range(6):
        yield "synthetic song", song(SECONDS, seed)
    for number, kind in enumerate(("noise", "drone", "talk", "rubato", "strokes") * 3):
        yield "no beat", without_beat(kind, SECONDS, np.random.default_rng(90_000 + number))
    for number in range(5):
        yield "no beat", rain(SECONDS, np.random.default_rng(95_000 + number))


def song(seconds: float, seed: int) -> Rhythm:
    """The project's own, heard as the analyzer hears files."""
    mix = np.sum([stem.mean(axis=0) for stem in make_stems(seconds=seconds, seed=seed).values()], axis=0)
    samples = librosa.resample(mix.astype(np.float32), orig_sr=44_100, target_sr=RATE)
    return Rhythm(samples, SONG_BPM, np.arange(0, seconds, 60 / SONG_BPM), np.arange(0, seconds, 240 / SONG_BPM))


def rain(seconds: float, random: np.random.Generator) -> Rhythm:
    """Drops at random over noise: 5 to 30 a second."""
    count = int(seconds * RATE)
    drops = np.where(random.random(count) < random.uniform(5, 30) / RATE, random.exponential(1, count), 0)
    rings = np.exp(-np.arange(1_000) / 150) * np.sin(2 * np.pi * random.uniform(900, 3_000) * np.arange(1_000) / RATE)
    wet = np.convolve(drops, rings)[:count] + 0.02 * random.normal(0, 1, count)
    return Rhythm((0.3 * wet / np.abs(wet).max()).astype(np.float32), 0)


def f_measure(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Of times that match within 70 ms, one to one."""
    if not len(found) or not len(true):
        return 0.0
    hits = 0
    left = list(found)
    for moment in true:
        nearest = min(left, key=lambda other: abs(other - moment), default=None)
        if nearest is not None and abs(nearest - moment) <= 0.07:
            hits += 1
            left.remove(nearest)
    return 2 * hits / (len(found) + len(true))


def within(bpm: float, true: float, factors: tuple[float, ...] = (1,)) -> bool:
    """Whether a tempo is right within 4 %, or is one of these multiples of what is right."""
    return any(abs(bpm / (true * factor) - 1) <= 0.04 for factor in factors)


def measured(tool: Callable[[Any], Answer], given: Any) -> tuple[Answer, float]:
    """An answer and the CPU seconds that it took."""
    begin = time.process_time()
    answer = tool(given)
    return answer, time.process_time() - begin


def table() -> list[Row]:
    """One row for each tool and kind of rhythm.

    ``accuracy1``: tempo within 4 %; ``accuracy2``: or its half, third, double or triple; ``beats_f``, ``downbeats_f``:
    F-measures at 70 ms (0 where a tool gives none). Of what has no beat, ``accuracy1`` is how often that is said.
    """
    tools = ["contrafact", "librosa"] + (["essentia"] if importlib.util.find_spec("essentia") else [])
    found: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for kind, rhythm in cases():
        for tool in tools:
            answer, _ = measured(*_call(tool, rhythm.samples))
            found.setdefault((tool, kind), []).append(_marks(answer, rhythm))
    rows: list[Row] = []
    for (tool, kind), marks in sorted(found.items()):
        names = ("accuracy1", "accuracy2", "beats_f", "downbeats_f", "bars_told")
        rows.append(
            {"tool": tool, "kind": kind, "n": len(marks), **dict(zip(names, np.mean(marks, axis=0), strict=True))}
        )
    return rows


def costs() -> list[Row]:
    """CPU seconds of each tool for 180 s of a band; this project's without the spectra that its features share."""
    rhythm = drums("rock", 118, 180, np.random.default_rng(0), bass=True, chords=True)
    tools = ["contrafact", "librosa"] + (["essentia"] if importlib.util.find_spec("essentia") else [])
    rows: list[Row] = []
    for tool in tools:
        call = _call(tool, rhythm.samples)
        measured(*_call(tool, rhythm.samples[: 10 * RATE]))  # what is compiled or loaded at the first call
        rows.append({"tool": tool, "cpu_seconds": measured(*call)[1]})
    return rows


def calibration() -> list[Row]:
    """Of our answers by their confidence: how many there are, and what share is right."""
    answers = [(ours(powers(rhythm.samples)), rhythm.bpm) for _, rhythm in cases()]
    rows: list[Row] = []
    for low, high in ((0.0, 0.3), (0.3, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.01)):
        some = [(answer, bpm) for answer, bpm in answers if answer.bpm and low <= answer.confidence < high]
        right = [bool(bpm) and within(answer.bpm, bpm) for answer, bpm in some]
        rows.append({"from": low, "to": high, "n": len(some), "right": float(np.mean(right)) if right else 0.0})
    return rows


def _call(tool: str, samples: Samples) -> tuple[Callable[[Any], Answer], Any]:
    if tool == "contrafact":
        return ours, powers(samples)
    return (librosas if tool == "librosa" else essentias), samples


def _marks(answer: Answer, rhythm: Rhythm) -> tuple[float, ...]:
    if not rhythm.bpm:
        return (
            float(not answer.bpm),
            float(not answer.bpm),
            float(not len(answer.beats)),
            0.0,
            float(len(answer.downbeats) > 0),
        )
    return (
        within(answer.bpm, rhythm.bpm),
        within(answer.bpm, rhythm.bpm, (1, 2, 3, 1 / 2, 1 / 3)),
        f_measure(answer.beats, rhythm.beats),
        f_measure(answer.downbeats, rhythm.downbeats),
        float(len(answer.downbeats) > 0),
    )


def _print(rows: list[Row]) -> None:
    for row in rows:
        print(
            "  ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{value}" for name, value in row.items())
        )


if __name__ == "__main__":
    for part in (table, costs, calibration):
        _print(part())
    for path in sys.argv[1:]:
        samples, _ = librosa.load(path, sr=RATE)
        for name in ("contrafact", "librosa", "essentia"):
            answer, _ = measured(*_call(name, samples))
            print(path, name, f"{answer.bpm:.1f}", len(answer.beats), len(answer.downbeats), f"{answer.confidence:.2f}")
