"""Keys of what has one, and none of what has none."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import soundfile
import soxr

from servers.analyzer.key import Key, KeyFeature, Mode, camelot, name, open_key
from servers.analyzer.unknown import Unknown
from tests.analyzer import harmony
from tests.analyzer.harmony import MAJOR, MINOR, RATE, Playing, Samples
from tests.bench.common import ROOT

AUDIO = ROOT.parent / "shared" / "audio"
CODES = {
    "C major": "8B 1d", "G major": "9B 2d", "D major": "10B 3d", "A major": "11B 4d", "E major": "12B 5d",
    "B major": "1B 6d", "F# major": "2B 7d", "Db major": "3B 8d", "Ab major": "4B 9d", "Eb major": "5B 10d",
    "Bb major": "6B 11d", "F major": "7B 12d", "A minor": "8A 1m", "E minor": "9A 2m", "B minor": "10A 3m",
    "F# minor": "11A 4m", "C# minor": "12A 5m", "G# minor": "1A 6m", "Eb minor": "2A 7m", "Bb minor": "3A 8m",
    "F minor": "4A 9m", "C minor": "5A 10m", "G minor": "6A 11m", "D minor": "7A 12m",
}  # fmt: skip
PLAYINGS = [
    Playing(),
    Playing("organ", inversion=1, drums=True),
    Playing("saw", inversion=2, noise=0.1),
    Playing("clarinet", cents=40),
    Playing("strings"),
    Playing("saw", cents=-40, octave=3),
    Playing("piano", bass=False, noise=0.05),
]


def found(samples: Samples, cut: int = 100_000) -> Key | Unknown:
    feature = KeyFeature()
    for start in range(0, len(samples), cut):
        feature.process(samples[start : start + cut])
    return feature.finish()


def known(samples: Samples) -> Key:
    key = found(samples)
    assert isinstance(key, Key), key
    return key


def test_every_key_has_its_name_and_codes() -> None:
    keys = [(tonic, mode) for mode in Mode for tonic in range(12)]

    assert {name(*key): f"{camelot(*key)} {open_key(*key)}" for key in keys} == CODES


@pytest.mark.parametrize("tonic", range(12))
@pytest.mark.parametrize("mode", Mode)
def test_all_keys(tonic: int, mode: Mode) -> None:
    progressions = list((MAJOR if mode is Mode.MAJOR else MINOR).values())
    playing = PLAYINGS[(tonic + mode) % len(PLAYINGS)]

    key = known(harmony.song(tonic, progressions[tonic % len(progressions)], playing))

    assert (key.tonic, key.mode) == (tonic, mode)
    assert 0.4 < key.confidence <= 1
    assert key.camelot not in key.alternatives
    assert 1200 * np.log2(key.tuning_hz / 440) == pytest.approx(playing.cents, abs=8)


def test_all_progressions() -> None:
    for mode, progressions in ((Mode.MAJOR, MAJOR), (Mode.MINOR, MINOR)):
        for chords in progressions.values():
            key = known(harmony.song(8, chords, Playing("organ")))

            assert (key.tonic, key.mode) == (8, mode)


def test_relative_key_is_an_alternative_of_what_may_be_either() -> None:
    key = known(harmony.song(9, MINOR["i-VI-III-VII"], Playing("organ")))

    assert key.name == "A minor"
    assert key.alternatives[0] == "8B"
    assert key.confidence < 0.95


def test_result_does_not_depend_on_how_the_stream_was_cut() -> None:
    song = harmony.song(3, MAJOR["ii-V-I"], Playing(drums=True))

    assert found(song, 4096) == found(song, 777) == found(song, len(song))


def test_neither_level_nor_silence_matters() -> None:
    song = harmony.song(5, MINOR["i-iv-V-i"], Playing("saw"))
    silence = np.zeros(40 * RATE, np.float32)

    loud, quiet = known(song), known(np.concatenate([silence, 0.003 * song, silence]))

    assert (quiet.tonic, quiet.mode) == (loud.tonic, loud.mode) == (5, Mode.MINOR)
    assert quiet.confidence == pytest.approx(loud.confidence, abs=0.05)


def _sweep(seconds: float) -> Samples:
    time = np.arange(round(seconds * RATE)) / RATE
    growth = np.log(40.0) / seconds
    return (0.3 * np.sin(2 * np.pi * 50 * np.exp(growth * time) / growth)).astype(np.float32)


def _clicks(seconds: float, every: float) -> Samples:
    return (np.arange(round(seconds * RATE)) % round(every * RATE) == 0).astype(np.float32)


RANDOM = np.random.default_rng(0)
WITHOUT = {
    "white noise": 0.1 * RANDOM.standard_normal(10 * RATE),
    "brown noise": 0.001 * np.cumsum(RANDOM.standard_normal(10 * RATE)),
    "drums": harmony.drums(10 * RATE, RANDOM),
    "a click": np.eye(1, 5 * RATE, RATE)[0],
    "clicks": _clicks(10, 0.5),
    "a constant": np.full(5 * RATE, 0.5),
    "a tone": harmony.tone(69, "saw", 5 * RATE),
    "a sweep": _sweep(10),
    "all semitones": np.concatenate([harmony.tone(48 + step, "piano", RATE // 2) for step in range(24)]),
    "quarter tones": np.concatenate([harmony.tone(48 + step / 2, "piano", RATE // 2) for step in range(48)]),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_no_tonality(what: str) -> None:
    key = found(WITHOUT[what].astype(np.float32))

    assert isinstance(key, Unknown)
    assert key.reason == "NO_TONALITY"


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(0, np.float32), "TOO_SHORT"),
        (np.ones(1, np.float32), "TOO_SHORT"),
        (harmony.tone(60, "saw", RATE // 100), "TOO_SHORT"),
        (np.zeros(10 * RATE, np.float32), "SILENT"),
        (np.full(10 * RATE, 3e-4, np.float32), "SILENT"),
    ],
    ids=["nothing", "a sample", "10 ms", "zeros", "below -70 dBFS"],
)
def test_short_and_silent(samples: Samples, reason: str) -> None:
    key = found(samples)

    assert isinstance(key, Unknown)
    assert key.reason == reason


def test_memory_does_not_grow_with_the_stream() -> None:
    feature, block = KeyFeature(), harmony.song(0, MAJOR["I-IV-V-I"], Playing())[: 2 * RATE]
    feature.process(np.tile(block, 10))
    tracemalloc.start()
    try:
        for _ in range(60):
            feature.process(block)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert held < 2_000_000


@pytest.mark.skipif(not AUDIO.exists(), reason="needs the shared recordings")
@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("Karissa_Hobbs_-_Lets_Go_Fishin", "Bb major"),  # I-IV-V with ii and vi; librosa and essentia say so, too
        ("Kevin_MacLeod_-_Vibe_Ace", "E major"),  # E7 and B minor 7 about E; librosa and essentia say so, too
        ("sorohanro_-_solo-trumpet-06", "F minor"),  # "in F, mostly Blues and Dorian"
        ("198-209-0000", None),
        ("5703-47212-0000", None),
    ],
)
def test_recordings(file: str, expected: str | None) -> None:
    samples, rate = soundfile.read(AUDIO / f"{file}.hq.ogg", dtype="float32", always_2d=True)

    key = found(soxr.resample(samples.mean(axis=1), rate, RATE))

    assert (key.name if isinstance(key, Key) else None) == expected
